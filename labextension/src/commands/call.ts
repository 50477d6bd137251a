/** The command on a call. */

import type { CommandBuilder } from './builder';
import { Commands } from './ids';

export function addCallCommands(builder: CommandBuilder): void {
  const { manager, trans } = builder.services;
  builder.add(Commands.cancel, {
    label: trans.__('Cancel Call'),
    needs: 'change',
    caption: trans.__('Withdraw a call that waits, or stop one that runs'),
    inPalette: false,
    args: ['lease'],
    isEnabled: args => builder.named(args, 'lease') !== null,
    execute: async args => {
      const id = builder.named(args, 'lease');
      if (id) {
        await builder.attempt('change', () => manager.act({ on: 'leases', id, verb: 'cancel' }));
      }
    }
  });
}
