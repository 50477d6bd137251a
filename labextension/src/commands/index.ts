/** All commands, by noun. Buttons, menus and the palette run the same ones. */

import { addIcon, refreshIcon } from '@jupyterlab/ui-components';
import type { IDisposable } from '@lumino/disposable';

import { insertCell } from '../cells';
import { exampleCell } from '../words';
import type { ICommandServices } from './builder';
import { CommandBuilder } from './builder';
import { addCallCommands } from './call';
import { Commands } from './ids';
import { addPoolVerbs, addPoolViews } from './pool';
import { addReplicaCommands } from './replica';

export function addCommands(services: ICommandServices): IDisposable {
  const builder = new CommandBuilder(services);
  addPanelCommands(builder);
  addPoolViews(builder);
  addPoolVerbs(builder);
  addReplicaCommands(builder);
  addCallCommands(builder);
  notifyOfChanges(services);
  return builder.added;
}

/** The commands on no pool in particular. */
function addPanelCommands(builder: CommandBuilder): void {
  const { app, manager, trans, tracker } = builder.services;
  builder.add(Commands.refresh, {
    label: trans.__('Refresh Flyte Pools'),
    caption: trans.__('Ask the broker for its state now'),
    icon: refreshIcon,
    execute: () => manager.refresh()
  });
  builder.add(Commands.example, {
    label: trans.__('Insert an Example Pool'),
    caption: trans.__('Insert a cell that declares a pool and calls a task in it'),
    icon: addIcon,
    execute: () =>
      builder.attempt(undefined, async () => {
        await insertCell(app, tracker, exampleCell(), trans);
      })
  });
}

/** Let menus and palette read the commands again when the state has a new tag, not with every message. */
function notifyOfChanges({ app, manager }: ICommandServices): void {
  let tag: string | undefined;
  manager.changed.connect(() => {
    if (manager.state?.tag !== tag) {
      tag = manager.state?.tag;
      app.commands.notifyCommandChanged();
    }
  });
}
