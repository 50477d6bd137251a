/** Loads a pool's last minutes into a timeline, once a second while it runs. */

import type { IDisposable } from '@lumino/disposable';
import { DisposableDelegate } from '@lumino/disposable';
import { Poll } from '@lumino/polling';
import type { ISignal } from '@lumino/signaling';
import { Signal } from '@lumino/signaling';

import type { Timeline } from '../../../flyte_jupyter/widgets/timeline.js';
import type { IPoolManager } from '../tokens';

const ASK_MS = 1_000;
const MAX_ASK_MS = 15_000;

type Changes = Timeline['changes'];

export class TimelineFeed implements IDisposable {
  constructor(
    manager: IPoolManager,
    pool: string,
    timeline: Pick<Timeline, 'mark' | 'changes' | 'take'>
  ) {
    this._manager = manager;
    this._pool = pool;
    this._timeline = timeline;
    this._poll = new Poll({
      name: 'flyte-jupyter:timeline',
      auto: false,
      factory: () => this._ask(),
      frequency: { interval: ASK_MS, backoff: true, max: MAX_ASK_MS },
      standby: 'never' // the owner runs it only while the timeline is visible
    });
  }

  /** Why the pool has scaled, newest first; instants are Unix time. */
  get changes(): Changes {
    return this._changes;
  }

  /** The error of the last request, for people; empty if there was none. */
  get problem(): string {
    return this._problem;
  }

  /** Emitted when `changes` or `problem` has changed. */
  get changed(): ISignal<this, void> {
    return this._changed;
  }

  get isDisposed(): boolean {
    return this._poll.isDisposed;
  }

  /** Run until the result is disposed. */
  run(): IDisposable {
    void this._poll.start();
    return new DisposableDelegate(() => {
      if (!this.isDisposed) {
        void this._poll.stop();
      }
    });
  }

  dispose(): void {
    this._poll.dispose();
    Signal.clearData(this);
  }

  private async _ask(): Promise<void> {
    try {
      const answer = await this._manager.timeline(this._pool, this._timeline.mark);
      if (this.isDisposed) {
        return;
      }
      this._timeline.take(answer);
      const said = this._problem !== '';
      this._problem = '';
      if (answer.whole || answer.changes.length || said) {
        this._changes = [...this._timeline.changes].reverse();
        this._changed.emit();
      }
    } catch (error) {
      if (!this.isDisposed) {
        this._problem = error instanceof Error ? error.message : String(error);
        this._changed.emit();
      }
      throw error; // the poll asks less often then
    }
  }

  private readonly _manager: IPoolManager;
  private readonly _pool: string;
  private readonly _timeline: Pick<Timeline, 'mark' | 'changes' | 'take'>;
  private readonly _poll: Poll;
  private readonly _changed = new Signal<this, void>(this);
  private _changes: Changes = [];
  private _problem = '';
}
