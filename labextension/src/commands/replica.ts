/** The commands on a replica. */

import { Clipboard, Dialog, showDialog } from '@jupyterlab/apputils';
import type { LabIcon } from '@jupyterlab/ui-components';
import { consoleIcon, copyIcon, notebookIcon } from '@jupyterlab/ui-components';

import { openConsole, openNotebook } from '../attach';
import { forceBox } from '../dialogs';
import type { IReplica } from '../models';
import { calls } from '../queries';
import { PeekTab } from '../peek';
import { showText, TextTab } from '../text_tab';
import { visible } from '../words';
import type { CommandBuilder } from './builder';
import { Commands } from './ids';

export function addReplicaCommands(builder: CommandBuilder): void {
  const { app, manager, trans, tracker } = builder.services;
  addAttach(builder, Commands.console, {
    label: trans.__('Open Console'),
    caption: trans.__('A console on the warm kernel; what is loaded stays when it closes'),
    icon: consoleIcon,
    open: target => openConsole(app, target, trans)
  });
  addAttach(builder, Commands.notebook, {
    label: trans.__('Open Notebook'),
    caption: trans.__('A new notebook on the warm kernel; what is loaded stays when it closes'),
    icon: notebookIcon,
    open: target => openNotebook(app, tracker, target, trans)
  });
  builder.addForReplica(Commands.peek, {
    label: trans.__('Peek'),
    needs: 'peek',
    caption: trans.__('What it does now: its stack and GPU memory, without disturbing it'),
    isEnabled: replica => isWarm(replica) || replica.state === 'attached',
    run: replica => showText(app.shell, new PeekTab(manager, replica, trans))
  });
  builder.addForReplica(Commands.restartReplica, {
    label: trans.__('Restart Replica…'),
    needs: 'change',
    caption: trans.__('A fresh replica takes its place after the calls that run on it'),
    run: async replica => {
      const { id, name } = replica;
      const count = calls(replica).length;
      const { button, isChecked } = await showDialog({
        title: trans.__('Restart replica %1?', visible(name)),
        body: trans.__('A fresh replica takes its place and loads everything again.'),
        checkbox: count ? forceBox(count, trans) : null,
        buttons: [Dialog.cancelButton(), Dialog.warnButton({ label: trans.__('Restart') })],
        defaultButton: 0
      });
      if (button.accept) {
        const body = { force: isChecked === true };
        await manager.act({ on: 'replicas', id, verb: 'restart', body });
      }
    }
  });
  builder.addForReplica(Commands.interrupt, {
    label: trans.__('Interrupt'),
    needs: 'change',
    caption: trans.__('Stop the calls that run on it; what is loaded stays'),
    isEnabled: replica => calls(replica).length > 0,
    run: ({ id }) => manager.act({ on: 'replicas', id, verb: 'interrupt' })
  });
  builder.addForReplica(Commands.logs, {
    label: trans.__('Show Log'),
    needs: 'logs',
    caption: trans.__('What this replica printed outside of tasks'),
    run: ({ id, name }) => {
      const label = trans.__('Log of %1', visible(name));
      return showText(app.shell, new TextTab(label, () => manager.log(id, 500), trans));
    }
  });
  builder.add(Commands.copyId, {
    label: trans.__('Copy ID'),
    caption: trans.__('Copy the id, as the command line takes it'),
    icon: copyIcon,
    inPalette: false,
    args: ['pool', 'replica'],
    isEnabled: args =>
      builder.named(args, 'replica') !== null || builder.named(args, 'pool') !== null,
    execute: args => {
      const id = builder.named(args, 'replica') ?? builder.named(args, 'pool');
      if (id !== null) {
        Clipboard.copyToSystem(id);
      }
    }
  });
}

/** Add a command that attaches to the replica in its arguments, or to any replica of the pool in its arguments. */
function addAttach(
  builder: CommandBuilder,
  id: string,
  options: {
    label: string;
    caption: string;
    icon: LabIcon;
    open: (target: string) => Promise<void>;
  }
): void {
  const { open, ...rest } = options;
  builder.add(id, {
    ...rest,
    needs: 'attach',
    args: ['replica', 'pool', 'ask'],
    isEnabled: args => {
      const replica = builder.replica(args);
      const candidates = replica ? [replica] : builder.pool(args)?.replicas;
      return !!args.ask || !!candidates?.some(isWarm);
    },
    execute: async args => {
      const target = builder.replica(args)?.name ?? (await builder.choosePool(args))?.name;
      if (target !== undefined) {
        await builder.attempt('attach', () => open(target));
      }
    }
  });
}

/** Whether a console or notebook could attach at once. A replica that another one has to itself would make it wait. */
function isWarm({ state }: IReplica): boolean {
  return state === 'ready' || state === 'busy';
}
