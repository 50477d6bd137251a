/** The verbs, as commands: buttons, menus and the palette run the same ones. */

import type { JupyterFrontEnd } from '@jupyterlab/application';
import type { ICommandPalette } from '@jupyterlab/apputils';
import {
  Clipboard,
  Dialog,
  InputDialog,
  Notification,
  showDialog,
  showErrorMessage
} from '@jupyterlab/apputils';
import type { INotebookTracker } from '@jupyterlab/notebook';
import type { TranslationBundle } from '@jupyterlab/translation';
import {
  addIcon,
  codeIcon,
  consoleIcon,
  copyIcon,
  notebookIcon,
  refreshIcon,
  stopIcon
} from '@jupyterlab/ui-components';
import type { ReadonlyPartialJSONObject } from '@lumino/coreutils';
import type { IDisposable } from '@lumino/disposable';
import { DisposableSet } from '@lumino/disposable';

import { openConsole, openNotebook } from './attach';
import { insertCell } from './cells';
import { askHours, askLimits, confirmStop, forceBox } from './dialogs';
import { poolsIcon } from './icons';
import type { Act, IPool, IReplica, IState } from './models';
import { calls, poolOf, replicaOf } from './models';
import { PeekTab } from './peek';
import { refusal } from './phrases';
import { addTab, TextTab } from './texts';
import type { IPoolManager } from './tokens';
import { connectionCell, duration, exampleCell, taskCell, visible } from './words';

export const Commands = {
  open: 'flyte-jupyter:open',
  refresh: 'flyte-jupyter:refresh',
  example: 'flyte-jupyter:create-example',
  insert: 'flyte-jupyter:insert-task-cell',
  connect: 'flyte-jupyter:insert-connection-code',
  details: 'flyte-jupyter:details',
  scale: 'flyte-jupyter:scale',
  warm: 'flyte-jupyter:warm',
  keep: 'flyte-jupyter:keep',
  keepFor: 'flyte-jupyter:keep-for',
  drain: 'flyte-jupyter:drain',
  restart: 'flyte-jupyter:restart',
  stop: 'flyte-jupyter:stop',
  stopAll: 'flyte-jupyter:stop-all',
  restartReplica: 'flyte-jupyter:restart-replica',
  interrupt: 'flyte-jupyter:interrupt',
  cancel: 'flyte-jupyter:cancel',
  console: 'flyte-jupyter:open-console',
  notebook: 'flyte-jupyter:open-notebook',
  peek: 'flyte-jupyter:peek',
  logs: 'flyte-jupyter:logs',
  failure: 'flyte-jupyter:show-failure',
  copyId: 'flyte-jupyter:copy-id'
} as const;

export interface ICommandServices {
  app: JupyterFrontEnd;
  manager: IPoolManager;
  trans: TranslationBundle;
  palette: ICommandPalette | null;
  tracker: INotebookTracker | null;
  /** How long "Keep" keeps, in seconds; a setting that may change. */
  keepSeconds: () => number;
  /** Show the tab about a pool, of which only key and name may be known yet. */
  openDetails: (pool: string, name: string) => void;
}

type Args = ReadonlyPartialJSONObject;

/** JupyterLab cuts those that are longer, and what to do stands at their end. */
const LONGEST_NOTIFICATION = 140;

/** Palette entries have this argument: they ask for the pool, whatever was clicked last. */
const ASK = { ask: true };

export function addCommands(services: ICommandServices): IDisposable {
  const { app, manager, trans, palette, tracker, keepSeconds } = services;
  const { commands } = app;
  const owned = new DisposableSet();

  const pools = (): IPool[] => manager.state?.snapshot?.pools ?? [];

  /** What the arguments, or else the last context menu, name. */
  const named = (args: Args, what: 'pool' | 'replica' | 'lease'): string | null => {
    if (typeof args[what] === 'string') {
      return args[what];
    }
    if (args.ask) {
      return null;
    }
    return app.contextMenuHitTest(node => node.dataset[what] !== undefined)?.dataset[what] ?? null;
  };
  const poolNow = (args: Args): IPool | null => {
    const key = named(args, 'pool');
    return key === null ? null : poolOf(manager.state, key);
  };
  const replicaNow = (args: Args): IReplica | null => {
    const id = named(args, 'replica');
    return id === null ? null : replicaOf(manager.state, id);
  };

  /** The pool that is meant; asks where there is a choice. */
  const choosePool = async (args: Args): Promise<IPool | null> => {
    if (!args.ask) {
      return poolNow(args);
    }
    if (!manager.state) {
      await manager.refresh(); // the panel may never have been open
    }
    const all = pools();
    if (!all.length) {
      Notification.info(trans.__('There is no pool yet.'), { autoClose: 4000 });
    }
    if (all.length < 2) {
      return all[0] ?? null;
    }
    const labels = all.map(pool => `${visible(pool.name)} (${pool.key.slice(0, 8)})`);
    const { button, value } = await InputDialog.getItem({
      title: trans.__('Which pool?'),
      items: labels
    });
    return button.accept && value ? (all[labels.indexOf(value)] ?? null) : null;
  };

  const refused = (needs?: Act): string => (needs ? refusal(manager.state, needs) : '');

  /** Do it, and say it if it cannot be done. */
  const attempt = async (needs: Act | undefined, doing: () => Promise<void>): Promise<void> => {
    try {
      const why = refused(needs);
      if (why) {
        throw new Error(why);
      }
      await doing();
    } catch (error) {
      const why = visible(error instanceof Error ? error.message : String(error), 2000);
      if (why.length <= LONGEST_NOTIFICATION) {
        Notification.error(why, { autoClose: 8000 });
      } else {
        await showErrorMessage(trans.__('That cannot be done'), why);
      }
    }
  };

  const add = (
    id: string,
    options: {
      label: string | ((args: Args) => string);
      caption?: string;
      icon?: typeof poolsIcon;
      execute: (args: Args) => Promise<void> | void;
      isEnabled?: (args: Args) => boolean;
      /** What one must be allowed; else it is disabled, and its caption says why. */
      needs?: Act;
      args?: string[];
      inPalette?: boolean;
    }
  ): void => {
    const {
      args: properties = [],
      inPalette = true,
      needs,
      caption = '',
      isEnabled = () => true,
      ...rest
    } = options;
    owned.add(
      commands.addCommand(id, {
        ...rest,
        caption: () => refused(needs) || caption,
        isEnabled: args => !refused(needs) && isEnabled(args),
        describedBy: {
          args: {
            type: 'object',
            properties: Object.fromEntries(properties.map(name => [name, {}]))
          }
        }
      })
    );
    if (palette && inPalette) {
      owned.add(palette.addItem({ command: id, category: trans.__('Flyte'), args: ASK }));
    }
  };

  /** A command on one pool. */
  const addPoolVerb = (
    id: string,
    options: {
      label: string | ((args: Args) => string);
      caption: string;
      icon?: typeof poolsIcon;
      args?: string[];
      needs?: Act;
      /** There must be something to end. */
      needsReplicas?: boolean;
      run: (pool: IPool, args: Args) => Promise<void>;
    }
  ): void => {
    const { run, args, needsReplicas, ...rest } = options;
    add(id, {
      ...rest,
      args: ['pool', 'ask', ...(args ?? [])],
      isEnabled: args_ => {
        const pool = poolNow(args_);
        return !!args_.ask || (pool !== null && !(needsReplicas && !pool.replicas.length));
      },
      execute: async args_ => {
        const pool = await choosePool(args_);
        if (pool) {
          await attempt(rest.needs, () => run(pool, args_));
        }
      }
    });
  };

  add(Commands.refresh, {
    label: trans.__('Refresh Flyte Pools'),
    caption: trans.__('Ask the service for its state now'),
    icon: refreshIcon,
    execute: () => manager.refresh()
  });
  add(Commands.example, {
    label: trans.__('Insert an Example Pool'),
    caption: trans.__('Insert a cell that declares a pool and calls a task in it'),
    icon: addIcon,
    execute: () =>
      attempt(undefined, async () => {
        await insertCell(app, tracker, exampleCell(), trans);
      })
  });
  addPoolVerb(Commands.insert, {
    label: trans.__('Insert Task Cell'),
    caption: trans.__('Insert a cell that runs in this pool, below the active one'),
    icon: codeIcon,
    run: async pool => {
      await insertCell(app, tracker, taskCell(pool.name), trans);
    }
  });
  addPoolVerb(Commands.connect, {
    label: trans.__('Insert Connection Code'),
    caption: trans.__('Insert a cell with which this notebook finds and shows the pool'),
    icon: codeIcon,
    run: async pool => {
      await insertCell(app, tracker, connectionCell(pool.name), trans);
    }
  });
  add(Commands.details, {
    label: args => (args.ask ? trans.__('Pool Details') : trans.__('Details')),
    caption: trans.__('Show all about this pool in a tab'),
    icon: poolsIcon,
    args: ['pool', 'name', 'ask'],
    isEnabled: args => !!args.ask || named(args, 'pool') !== null,
    execute: async args => {
      const pool = await choosePool(args);
      // A tab of the last session comes back before anything is known of its pool.
      const key = pool?.key ?? named(args, 'pool');
      if (key !== null) {
        services.openDetails(key, pool?.name ?? (typeof args.name === 'string' ? args.name : key));
      }
    }
  });
  addPoolVerb(Commands.scale, {
    label: trans.__('Scale…'),
    needs: 'change',
    caption: trans.__('Change how many replicas there are at least and at most'),
    args: ['minimum', 'maximum'],
    run: async (pool, args) => {
      const limits =
        typeof args.minimum === 'number' && typeof args.maximum === 'number'
          ? { minimum: args.minimum, maximum: args.maximum }
          : await askLimits(pool, trans);
      if (limits) {
        await manager.act({ on: 'pools', id: pool.key, verb: 'scale', body: limits });
      }
    }
  });
  addPoolVerb(Commands.warm, {
    label: trans.__('Warm Now'),
    needs: 'change',
    caption: trans.__('Start the minimum of replicas, at least one, now'),
    run: pool =>
      manager.act({
        on: 'pools',
        id: pool.key,
        verb: 'warm',
        body: { replicas: Math.max(1, pool.scaling.min_replicas) }
      })
  });
  addPoolVerb(Commands.keep, {
    label: args =>
      poolNow(args)?.kept_until
        ? trans.__('Stop Keeping')
        : trans.__('Keep for %1', duration(keepSeconds())),
    needs: 'change',
    caption: trans.__('No replica stops for being idle in that time'),
    args: ['seconds'],
    run: (pool, { seconds }) => {
      const usual = pool.kept_until ? 0 : keepSeconds();
      const body = { seconds: typeof seconds === 'number' ? seconds : usual };
      return manager.act({ on: 'pools', id: pool.key, verb: 'keep', body });
    }
  });
  addPoolVerb(Commands.keepFor, {
    label: trans.__('Keep…'),
    needs: 'change',
    caption: trans.__('Say for how long no replica stops for being idle'),
    run: async pool => {
      const hours = await askHours(pool, keepSeconds() / 3600, trans);
      if (hours !== null) {
        const body = { seconds: hours * 3600 };
        await manager.act({ on: 'pools', id: pool.key, verb: 'keep', body });
      }
    }
  });
  addPoolVerb(Commands.restart, {
    label: trans.__('Restart One by One…'),
    needs: 'change',
    caption: trans.__('Replace all replicas; the old ones answer until the new ones are ready'),
    needsReplicas: true,
    run: async pool => {
      const { button } = await showDialog({
        title: trans.__('Restart pool %1?', visible(pool.name)),
        body: trans.__(
          'Its replicas are replaced one by one and load everything again. The old ones answer until then.'
        ),
        buttons: [Dialog.cancelButton(), Dialog.okButton({ label: trans.__('Restart') })],
        defaultButton: 0
      });
      if (button.accept) {
        await manager.act({ on: 'pools', id: pool.key, verb: 'restart' });
      }
    }
  });
  addPoolVerb(Commands.drain, {
    label: trans.__('Drain…'),
    needs: 'change',
    caption: trans.__('Stop every replica after the calls that run on it'),
    needsReplicas: true,
    run: async pool => {
      const { button } = await showDialog({
        title: trans.__('Drain pool %1?', visible(pool.name)),
        body: trans.__(
          'Each replica stops after the calls that run on it. The next call starts the pool again, and loads everything again.'
        ),
        buttons: [Dialog.cancelButton(), Dialog.warnButton({ label: trans.__('Drain') })],
        defaultButton: 0
      });
      if (button.accept) {
        await manager.act({ on: 'pools', id: pool.key, verb: 'drain' });
      }
    }
  });
  addPoolVerb(Commands.stop, {
    label: trans.__('Stop…'),
    needs: 'change',
    caption: trans.__('Stop all replicas of this pool'),
    icon: stopIcon,
    needsReplicas: true,
    run: async pool => {
      const force = await confirmStop([pool], trans);
      if (force !== null) {
        await manager.act({ on: 'pools', id: pool.key, verb: 'stop', body: { force } });
      }
    }
  });
  add(Commands.stopAll, {
    label: trans.__('Stop All Pools…'),
    needs: 'change',
    caption: trans.__('Stop all replicas of all pools'),
    args: ['confirmed'],
    execute: async args => {
      if (!manager.state) {
        await manager.refresh();
      }
      const all = pools().filter(pool => pool.replicas.length > 0);
      if (!all.length) {
        return;
      }
      await attempt('change', async () => {
        const force = args.confirmed === true ? false : await confirmStop(all, trans);
        if (force !== null) {
          await Promise.all(
            all.map(({ key }) =>
              manager.act({ on: 'pools', id: key, verb: 'stop', body: { force } })
            )
          );
        }
      });
    }
  });

  /** What can be attached to: the replica that is meant, or one of the pool that is meant. */
  const addAttach = (
    id: string,
    options: {
      label: string;
      caption: string;
      icon: typeof poolsIcon;
      open: (target: string) => Promise<void>;
    }
  ): void => {
    const { open, ...rest } = options;
    add(id, {
      ...rest,
      needs: 'attach',
      args: ['replica', 'pool', 'ask'],
      isEnabled: args => {
        const replica = replicaNow(args);
        const some = replica ? [replica] : poolNow(args)?.replicas;
        return !!args.ask || !!some?.some(isWarm);
      },
      execute: async args => {
        const target = replicaNow(args)?.name ?? (await choosePool(args))?.name;
        if (target !== undefined) {
          await attempt('attach', () => open(target));
        }
      }
    });
  };
  addAttach(Commands.console, {
    label: trans.__('Open Console'),
    caption: trans.__('A console on the warm kernel; what is loaded stays when it closes'),
    icon: consoleIcon,
    open: target => openConsole(app, target, trans)
  });
  addAttach(Commands.notebook, {
    label: trans.__('Open Notebook'),
    caption: trans.__('A new notebook on the warm kernel; what is loaded stays when it closes'),
    icon: notebookIcon,
    open: target => openNotebook(app, tracker, target, trans)
  });
  /** A command on one replica; the palette has none, where no replica is meant. */
  const addReplicaVerb = (
    id: string,
    options: {
      label: string;
      needs: Act;
      caption: string;
      isEnabled?: (replica: IReplica) => boolean;
      run: (replica: IReplica) => Promise<void>;
    }
  ): void => {
    const { run, isEnabled = () => true, ...rest } = options;
    add(id, {
      ...rest,
      inPalette: false,
      args: ['replica'],
      isEnabled: args => {
        const replica = replicaNow(args);
        return replica !== null && isEnabled(replica);
      },
      execute: async args => {
        const replica = replicaNow(args);
        if (replica) {
          await attempt(rest.needs, () => run(replica));
        }
      }
    });
  };
  addReplicaVerb(Commands.peek, {
    label: trans.__('Peek'),
    needs: 'peek',
    caption: trans.__('What it does now: its stack and GPU memory, without disturbing it'),
    isEnabled: replica => isWarm(replica) || replica.state === 'attached',
    run: replica => showText(app, new PeekTab(manager, replica, trans))
  });
  addReplicaVerb(Commands.restartReplica, {
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
  addReplicaVerb(Commands.interrupt, {
    label: trans.__('Interrupt'),
    needs: 'change',
    caption: trans.__('Stop the calls that run on it; what is loaded stays'),
    isEnabled: replica => calls(replica).length > 0,
    run: ({ id }) => manager.act({ on: 'replicas', id, verb: 'interrupt' })
  });
  addReplicaVerb(Commands.logs, {
    label: trans.__('Show Log'),
    needs: 'logs',
    caption: trans.__('What this replica printed outside of tasks'),
    run: ({ id, name }) =>
      showText(
        app,
        new TextTab(trans.__('Log of %1', visible(name)), () => manager.log(id, 500), trans)
      )
  });
  add(Commands.cancel, {
    label: trans.__('Cancel Call'),
    needs: 'change',
    caption: trans.__('Withdraw a call that waits, or stop one that runs'),
    inPalette: false,
    args: ['lease'],
    isEnabled: args => named(args, 'lease') !== null,
    execute: async args => {
      const id = named(args, 'lease');
      if (id) {
        await attempt('change', () => manager.act({ on: 'leases', id, verb: 'cancel' }));
      }
    }
  });
  add(Commands.failure, {
    label: trans.__('Show Failure'),
    needs: 'logs',
    caption: trans.__('The whole traceback of the last failed start'),
    inPalette: false,
    args: ['pool'],
    isEnabled: args => !!poolNow(args)?.failure,
    execute: async args => {
      const pool = poolNow(args);
      if (pool) {
        const label = trans.__('Failure of %1', visible(pool.name));
        const load = (): Promise<string> => manager.failure(pool.key);
        await attempt('logs', () => showText(app, new TextTab(label, load, trans)));
      }
    }
  });
  add(Commands.copyId, {
    label: trans.__('Copy ID'),
    caption: trans.__('Copy the id, as the command line takes it'),
    icon: copyIcon,
    inPalette: false,
    args: ['pool', 'replica'],
    isEnabled: args => named(args, 'replica') !== null || named(args, 'pool') !== null,
    execute: args => {
      const id = named(args, 'replica') ?? named(args, 'pool');
      if (id !== null) {
        Clipboard.copyToSystem(id);
      }
    }
  });

  const notify = (): void => commands.notifyCommandChanged();
  // Menus and palette look again only when what they depend on has changed, not with every state.
  let before: IState | null = null;
  const onChange = (): void => {
    if (manager.state?.tag !== before?.tag) {
      before = manager.state;
      notify();
    }
  };
  manager.changed.connect(onChange);
  return owned;
}

/** Whether somebody can open it; whoever wants one that somebody has opened alone would wait. */
function isWarm({ state }: IReplica): boolean {
  return state === 'ready' || state === 'busy';
}

/** Show a tab once its text is there; without one there is no tab. */
async function showText({ shell }: JupyterFrontEnd, tab: TextTab): Promise<void> {
  try {
    await tab.reload();
  } catch (error) {
    tab.dispose();
    throw error;
  }
  addTab(shell, tab);
}
