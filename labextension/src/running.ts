/** Pools in the standard panel of what runs: a section of their own, so that nothing there takes them silently. */

import type { IRunningSessions } from '@jupyterlab/running';
import type { TranslationBundle } from '@jupyterlab/translation';
import type { CommandRegistry } from '@lumino/commands';
import type { ISignal } from '@lumino/signaling';
import { Signal } from '@lumino/signaling';
import type { IDisposable } from '@lumino/disposable';

import { Commands } from './commands/ids';
import { stopText } from './dialogs';
import { poolsIcon } from './icons';
import type { IPool } from './models';
import { countWords, refusal } from './labels';
import type { IPoolManager } from './tokens';
import { visible } from './words';

export class RunningPools implements IRunningSessions.IManager, IDisposable {
  constructor(
    private readonly _manager: IPoolManager,
    private readonly _commands: CommandRegistry,
    private readonly _trans: TranslationBundle
  ) {
    this.name = _trans.__('Flyte pools');
    this.shutdownLabel = _trans.__('Stop…');
    this.shutdownAllLabel = _trans.__('Stop All Pools');
    _manager.changed.connect(this._onChanged, this);
  }

  readonly name: string;
  readonly shutdownLabel: string;
  readonly shutdownAllLabel: string;
  readonly supportsMultipleViews = false;

  get runningChanged(): ISignal<this, void> {
    return this._changed;
  }

  get isDisposed(): boolean {
    return this._isDisposed;
  }

  running(): IRunningSessions.IRunningItem[] {
    return this._pools().map(pool => ({
      icon: () => poolsIcon,
      label: () => visible(pool.name),
      labelTitle: () => pool.key,
      detail: () => countWords(pool.replicas, this._trans).join(' · '),
      open: () => void this._commands.execute(Commands.open),
      // Asks first, as everywhere; without this there is no button.
      shutdown: this._refused
        ? undefined
        : () => void this._commands.execute(Commands.stop, { pool: pool.key })
    }));
  }

  /** Its own words: this does not end kernels of notebooks, and "Shut Down All Kernels" ends no replica. */
  get shutdownAllConfirmationText(): string {
    const replicas = this._pools().reduce((sum, pool) => sum + pool.replicas.length, 0);
    return this._refused || stopText(replicas, this._trans);
  }

  shutdownAll(): void {
    void this._commands.execute(Commands.stopAll, { confirmed: true });
  }

  refreshRunning(): void {
    void this._manager.refresh();
  }

  dispose(): void {
    this._isDisposed = true;
    this._manager.changed.disconnect(this._onChanged, this);
    Signal.clearData(this);
  }

  /** The server's reason to refuse this user to stop pools; empty if it is allowed. */
  private get _refused(): string {
    return refusal(this._manager.state, 'change');
  }

  private _pools(): IPool[] {
    return (this._manager.state?.snapshot?.pools ?? []).filter(pool => pool.replicas.length > 0);
  }

  private _onChanged(): void {
    // The standard panel draws everything anew: only where names or counts differ.
    const pools = this._pools().map(pool =>
      [pool.key, ...pool.replicas.map(replica => replica.state)].join()
    );
    const shown = [this._refused, ...pools].join(';');
    if (shown !== this._shown) {
      this._shown = shown;
      this._changed.emit();
    }
  }

  private readonly _changed = new Signal<this, void>(this);
  private _shown = '';
  private _isDisposed = false;
}
