/** Warns shortly before a pool in use stops for being idle, with a button that keeps it. */

import { Notification } from '@jupyterlab/apputils';
import type { TranslationBundle } from '@jupyterlab/translation';
import type { CommandRegistry } from '@lumino/commands';
import type { IDisposable } from '@lumino/disposable';

import { Commands } from './commands/ids';
import type { IPool, IState } from './models';
import { refusal } from './labels';
import type { IPanelSettings } from './settings';
import type { IPoolManager } from './tokens';
import { duration, roughly, visible } from './words';

/** When a pool's end is worth a warning, as Unix time; null if it is not. */
export function warnAt(pool: IPool, state: IState, warnSeconds: number): number | null {
  const end = pool.idle_stops_at;
  const clients = new Set(state.snapshot?.clients.map(client => client.label));
  const used = pool.calls > 0 && pool.declared_by.some(label => clients.has(label));
  // A pool that always goes so soon would warn after each call.
  const usual = !pool.kept_until && pool.scaling.idle_ttl <= warnSeconds;
  return end === null || !used || usual || warnSeconds <= 0 ? null : end - warnSeconds;
}

interface IWarning {
  end: number;
  id: string;
}

export class Warner implements IDisposable {
  /** @param settings - Read anew each time. */
  constructor(
    private readonly _manager: IPoolManager,
    private readonly _commands: CommandRegistry,
    private readonly _settings: () => IPanelSettings,
    private readonly _trans: TranslationBundle
  ) {
    _manager.changed.connect(this._look, this);
  }

  get isDisposed(): boolean {
    return this._isDisposed;
  }

  dispose(): void {
    this._isDisposed = true;
    window.clearTimeout(this._timer);
    this._manager.changed.disconnect(this._look, this);
  }

  private _look(): void {
    window.clearTimeout(this._timer);
    const { state, serverStatus } = this._manager;
    // While nobody watches the state is old: the pool may be in use again.
    if (!state?.snapshot || (serverStatus !== 'live' && serverStatus !== 'polling')) {
      return;
    }
    const { pools } = state.snapshot;
    for (const [key, { end, id }] of this._warnings) {
      if (pools.find(pool => pool.key === key)?.idle_stops_at !== end) {
        Notification.dismiss(id);
        this._warnings.delete(key);
      }
    }
    const { warnSeconds, notify } = this._settings();
    if (!notify) {
      return;
    }
    const now = this._manager.now();
    const later: number[] = [];
    for (const pool of pools) {
      const at = warnAt(pool, state, warnSeconds);
      if (at === null || pool.idle_stops_at === null || this._warnings.has(pool.key)) {
        continue;
      }
      if (at > now) {
        later.push(at);
      } else if (pool.idle_stops_at > now) {
        this._warnings.set(pool.key, { end: pool.idle_stops_at, id: this._warn(pool, now) });
      }
    }
    if (later.length) {
      this._timer = window.setTimeout(() => this._look(), 1000 * (Math.min(...later) - now) + 50);
    }
  }

  private _warn({ key, name, idle_stops_at }: IPool, now: number): string {
    const left = (idle_stops_at ?? now) - now;
    const { keepSeconds } = this._settings();
    return Notification.warning(
      // Longer notifications are cut.
      this._trans.__('Pool %1 stops in %2: it is idle.', visible(name, 60), roughly(left)),
      {
        autoClose: Math.max(1, left * 1000),
        actions: [
          ...(refusal(this._manager.state, 'change')
            ? []
            : [
                {
                  label: this._trans.__('Keep for %1', duration(keepSeconds)),
                  callback: () =>
                    void this._commands.execute(Commands.keep, { pool: key, seconds: keepSeconds })
                }
              ]),
          {
            label: this._trans.__('Details'),
            callback: () => void this._commands.execute(Commands.details, { pool: key })
          }
        ]
      }
    );
  }

  private readonly _warnings = new Map<string, IWarning>();
  private _timer: number | undefined;
  private _isDisposed = false;
}
