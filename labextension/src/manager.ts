/**
 * PoolManager: the last state that the server sent, for all views. It talks to the server only while
 * somebody looks: without watchers the web socket is closed and the poll stands still.
 */

import type { IDisposable } from '@lumino/disposable';
import { DisposableDelegate } from '@lumino/disposable';
import { Poll } from '@lumino/polling';
import type { ISignal } from '@lumino/signaling';
import { Signal } from '@lumino/signaling';

import type { IApi, IStream } from './api';
import type { TimelineAnswer } from '../../flyte_jupyter/widgets/timeline.js';
import { PendingLimits } from '../../flyte_jupyter/widgets/pending_limits.js';
import type { IPeek, IState, Verb } from './models';
import type { IRecent } from './recent';
import { withLimits } from './queries';
import { ended, recentOf } from './recent';
import type { IPoolManager, ServerStatus } from './tokens';

/** How often is asked without a web socket, and how long at most between two questions nobody answers. */
const POLL_MS = 2_000;
const MAX_POLL_MS = 30_000;
/** The first pause before the web socket is opened again, and the longest. */
const RECONNECT_MS = 500;
const MAX_RECONNECT_MS = 15_000;
const SHOWN_RECENT = 10;

export class PoolManager implements IPoolManager {
  /**
   * @param api - What makes the requests.
   * @param clock - This machine's Unix time in seconds; the server's may differ.
   */
  constructor(api: IApi, clock: () => number = () => Date.now() / 1000) {
    this._api = api;
    this._clock = clock;
    this._poll = new Poll({
      name: 'flyte-jupyter:pools',
      auto: false,
      factory: () => this._ask(),
      frequency: { interval: POLL_MS, backoff: true, max: MAX_POLL_MS },
      standby: () => !this._watchers || this._serverStatus === 'live'
    });
  }

  get state(): IState | null {
    return this._state;
  }

  get serverStatus(): ServerStatus {
    return this._serverStatus;
  }

  get problem(): string {
    return this._problem;
  }

  get recent(): readonly IRecent[] {
    return this._recent;
  }

  get changed(): ISignal<this, void> {
    return this._changed;
  }

  get isDisposed(): boolean {
    return this._isDisposed;
  }

  now(): number {
    return this._clock() + this._skew;
  }

  watch(): IDisposable {
    this._watchers += 1;
    if (this._watchers === 1 && !this._isDisposed) {
      this._connect();
      void this._poll.start();
    }
    return new DisposableDelegate(() => {
      this._watchers -= 1;
      if (!this._watchers) {
        this._disconnect();
      }
    });
  }

  async refresh(): Promise<void> {
    if (this._watchers && this._retry !== undefined) {
      window.clearTimeout(this._retry);
      this._failures = 0;
      this._connect();
    }
    // What goes wrong is kept in `problem`.
    await this._ask(true).catch(() => undefined);
  }

  async act(verb: Verb): Promise<void> {
    const order = (): Promise<void> => this._api.act(verb);
    await (verb.verb === 'scale'
      ? this._pendingLimits.request(verb.id, verb.body, order)
      : order());
    if (this._serverStatus !== 'live') {
      await this.refresh();
    }
  }

  log(replica: string, lines: number): Promise<string> {
    return this._api.log(replica, lines);
  }

  failure(pool: string): Promise<string> {
    return this._api.failure(pool);
  }

  peek(replica: string, expressions: readonly string[]): Promise<IPeek> {
    return this._api.peek(replica, expressions);
  }

  timeline(pool: string, since: string | null): Promise<TimelineAnswer> {
    return this._api.timeline(pool, since);
  }

  dispose(): void {
    if (this._isDisposed) {
      return;
    }
    this._isDisposed = true;
    this._disconnect();
    this._poll.dispose();
    this._pendingLimits.dispose();
    Signal.clearData(this);
  }

  private async _ask(whole = false): Promise<void> {
    try {
      const state = await this._api.state(whole ? null : (this._heard?.tag ?? null));
      if (this._serverStatus !== 'live') {
        this._serverStatus = this._watchers ? 'polling' : 'connecting';
      }
      this._take(state ?? this._heard);
    } catch (error) {
      this._lose(error);
      throw error; // the poll asks less often then
    }
  }

  private _connect(): void {
    this._retry = undefined;
    this._stream = this._api.stream({
      onState: state => {
        this._failures = 0;
        this._serverStatus = 'live';
        this._take(state);
      },
      onClose: () => this._reconnect()
    });
  }

  private _reconnect(): void {
    this._stream = null;
    if (this._isDisposed || !this._watchers) {
      return;
    }
    if (this._serverStatus === 'live') {
      this._serverStatus = 'connecting';
      this._changed.emit();
      void this._poll.refresh(); // finds out whether the server is there at all
    }
    const pause = Math.min(MAX_RECONNECT_MS, RECONNECT_MS * 2 ** this._failures);
    this._failures += 1;
    this._retry = window.setTimeout(() => this._connect(), pause);
  }

  private _disconnect(): void {
    window.clearTimeout(this._retry);
    this._retry = undefined;
    this._stream?.dispose();
    this._stream = null;
    this._failures = 0;
    this._serverStatus = 'connecting';
    this._seen = null; // what ends while nobody looks would get the wrong time
    if (!this._poll.isDisposed) {
      void this._poll.stop();
    }
  }

  private _take(state: IState | null): void {
    if (this._isDisposed || state === null) {
      return;
    }
    if (state !== this._heard) {
      this._skew = state.now - this._clock();
      this._gone = [...ended(this._seen, state), ...this._gone].slice(0, SHOWN_RECENT);
      this._recent = recentOf(state, this._gone, SHOWN_RECENT);
      this._heard = this._seen = state;
    }
    this._problem = '';
    this._show();
  }

  /** Show the last state, with the limits that are still pending. */
  private _show(): void {
    this._state =
      this._heard && withLimits(this._heard, (...of) => this._pendingLimits.shown(...of));
    this._changed.emit();
  }

  private _lose(error: unknown): void {
    if (this._isDisposed || this._serverStatus === 'live') {
      return;
    }
    const status = (error as { status?: number }).status;
    this._serverStatus =
      status === 404 ? 'absent' : status === 401 || status === 403 ? 'refused' : 'lost';
    this._problem = error instanceof Error ? error.message : String(error);
    this._changed.emit();
  }

  private readonly _api: IApi;
  private readonly _clock: () => number;
  private readonly _poll: Poll;
  private readonly _changed = new Signal<this, void>(this);
  private readonly _pendingLimits = new PendingLimits(() => this._show());
  private _state: IState | null = null;
  private _heard: IState | null = null;
  private _seen: IState | null = null;
  private _serverStatus: ServerStatus = 'connecting';
  private _problem = '';
  private _gone: IRecent[] = [];
  private _recent: IRecent[] = [];
  private _skew = 0;
  private _watchers = 0;
  private _failures = 0;
  private _retry: number | undefined;
  private _stream: IStream | null = null;
  private _isDisposed = false;
}
