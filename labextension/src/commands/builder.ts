/** Adds commands to the application. Finds the pool, replica or call that each is about, and reports its errors. */

import type { JupyterFrontEnd } from '@jupyterlab/application';
import type { ICommandPalette } from '@jupyterlab/apputils';
import { InputDialog, Notification, showErrorMessage } from '@jupyterlab/apputils';
import type { INotebookTracker } from '@jupyterlab/notebook';
import type { TranslationBundle } from '@jupyterlab/translation';
import type { LabIcon } from '@jupyterlab/ui-components';
import type { ReadonlyPartialJSONObject } from '@lumino/coreutils';
import { DisposableSet } from '@lumino/disposable';

import { refusal } from '../labels';
import type { Act, IPool, IReplica } from '../models';
import { poolOf, replicaOf } from '../queries';
import type { IPoolManager } from '../tokens';
import { visible } from '../words';

export interface ICommandServices {
  app: JupyterFrontEnd;
  manager: IPoolManager;
  trans: TranslationBundle;
  palette: ICommandPalette | null;
  tracker: INotebookTracker | null;
  /** How long "Keep" keeps, in seconds; a setting that may change. */
  keepSeconds: () => number;
  /** Show the tab about a pool. Its key and name may be all that is known yet. */
  openDetails: (pool: string, name: string) => void;
}

export type Args = ReadonlyPartialJSONObject;

interface IOptions {
  label: string | ((args: Args) => string);
  caption: string;
  icon?: LabIcon;
  /** The permission that it needs. Without it the command is disabled, and its caption gives the reason. */
  needs?: Act;
  /** Names of its arguments. */
  args?: string[];
}

/** JupyterLab cuts longer notifications, and the advice stands at their end. */
const LONGEST_NOTIFICATION = 140;

/** The argument of palette entries: they ask for the pool, whatever was clicked last. */
const ASK = { ask: true };

export class CommandBuilder {
  constructor(readonly services: ICommandServices) {}

  /** Everything that was added; dispose it to remove the commands. */
  readonly added = new DisposableSet();

  add(
    id: string,
    options: IOptions & {
      execute: (args: Args) => Promise<void> | void;
      isEnabled?: (args: Args) => boolean;
      inPalette?: boolean;
    }
  ): void {
    const {
      args: properties = [],
      inPalette = true,
      needs,
      caption,
      isEnabled = () => true,
      ...rest
    } = options;
    const { app, palette, trans } = this.services;
    this.added.add(
      app.commands.addCommand(id, {
        ...rest,
        caption: () => this._refused(needs) || caption,
        isEnabled: args => !this._refused(needs) && isEnabled(args),
        describedBy: {
          args: {
            type: 'object',
            properties: Object.fromEntries(properties.map(name => [name, {}]))
          }
        }
      })
    );
    if (palette && inPalette) {
      this.added.add(palette.addItem({ command: id, category: trans.__('Flyte'), args: ASK }));
    }
  }

  /** Add a command on one pool. */
  addForPool(
    id: string,
    options: IOptions & {
      /** Enable it only for a pool that has replicas. */
      needsReplicas?: boolean;
      run: (pool: IPool, args: Args) => Promise<void>;
    }
  ): void {
    const { run, args: names = [], needsReplicas, ...rest } = options;
    this.add(id, {
      ...rest,
      args: ['pool', 'ask', ...names],
      isEnabled: args => {
        const pool = this.pool(args);
        return !!args.ask || (pool !== null && !(needsReplicas && !pool.replicas.length));
      },
      execute: async args => {
        const pool = await this.choosePool(args);
        if (pool) {
          await this.attempt(rest.needs, () => run(pool, args));
        }
      }
    });
  }

  /** Add a command on one replica. It is not in the palette, which names no replica. */
  addForReplica(
    id: string,
    options: IOptions & {
      isEnabled?: (replica: IReplica) => boolean;
      run: (replica: IReplica) => Promise<void>;
    }
  ): void {
    const { run, isEnabled = () => true, ...rest } = options;
    this.add(id, {
      ...rest,
      inPalette: false,
      args: ['replica'],
      isEnabled: args => {
        const replica = this.replica(args);
        return replica !== null && isEnabled(replica);
      },
      execute: async args => {
        const replica = this.replica(args);
        if (replica) {
          await this.attempt(rest.needs, () => run(replica));
        }
      }
    });
  }

  /** The key or id in the arguments; without one, that of the row with the last context menu. */
  named(args: Args, noun: 'pool' | 'replica' | 'lease'): string | null {
    const given = args[noun];
    if (typeof given === 'string') {
      return given;
    }
    if (args.ask) {
      return null;
    }
    const { app } = this.services;
    return app.contextMenuHitTest(node => node.dataset[noun] !== undefined)?.dataset[noun] ?? null;
  }

  pool(args: Args): IPool | null {
    const key = this.named(args, 'pool');
    return key === null ? null : poolOf(this.services.manager.state, key);
  }

  replica(args: Args): IReplica | null {
    const id = this.named(args, 'replica');
    return id === null ? null : replicaOf(this.services.manager.state, id);
  }

  /** All pools, also when the panel has never been open. */
  async allPools(): Promise<IPool[]> {
    const { manager } = this.services;
    if (!manager.state) {
      await manager.refresh();
    }
    return manager.state?.snapshot?.pools ?? [];
  }

  /** The pool in the arguments. A palette entry asks which one, unless there is only one. */
  async choosePool(args: Args): Promise<IPool | null> {
    if (!args.ask) {
      return this.pool(args);
    }
    const { trans } = this.services;
    const all = await this.allPools();
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
  }

  /** Run this, and show its error. */
  async attempt(needs: Act | undefined, run: () => Promise<void>): Promise<void> {
    try {
      const why = this._refused(needs);
      if (why) {
        throw new Error(why);
      }
      await run();
    } catch (error) {
      const why = visible(error instanceof Error ? error.message : String(error), 2000);
      if (why.length <= LONGEST_NOTIFICATION) {
        Notification.error(why, { autoClose: 8000 });
      } else {
        await showErrorMessage(this.services.trans.__('That cannot be done'), why);
      }
    }
  }

  private _refused(needs: Act | undefined): string {
    return needs ? refusal(this.services.manager.state, needs) : '';
  }
}
