/** What other extensions may ask for: `IPoolManager`. */

import { Token } from '@lumino/coreutils';
import type { IDisposable } from '@lumino/disposable';
import type { ISignal } from '@lumino/signaling';

import type { TimelineAnswer } from '../../flyte_jupyter/widgets/timeline.js';
import type { IPeek, IState, Verb } from './models';
import type { IRecent } from './recent';

/**
 * The panel's connection to the Jupyter server: `connecting` for the first time or again, `live` over the web socket,
 * `polling` where no web socket opens, `lost` when the server does not answer, `absent` when it lacks our extension,
 * `refused` when it denies access.
 */
export type ServerStatus = 'connecting' | 'live' | 'polling' | 'lost' | 'absent' | 'refused';

/** The state of the user's pools, and the verbs on them. */
export interface IPoolManager extends IDisposable {
  /**
   * The last state; null before the first. Its instants are Unix time. A pool has the limits that were requested
   * last, unless the server refused them.
   */
  readonly state: IState | null;
  readonly serverStatus: ServerStatus;
  /** The error of the last request, for people; empty if there was none. */
  readonly problem: string;
  /** Recent events, newest first: finished calls, and failures or stops seen while a view was open. */
  readonly recent: readonly IRecent[];
  /** Emitted when any of the above has changed. */
  readonly changed: ISignal<IPoolManager, void>;
  /** The server's Unix time in seconds. */
  now(): number;
  /** Keep the state up to date until disposed. The manager makes requests only while somebody watches. */
  watch(): IDisposable;
  /** Ask once. Never rejects: an error is in `problem`. */
  refresh(): Promise<void>;
  /** Rejects with the server's message if it refuses. */
  act(verb: Verb): Promise<void>;
  /** The last lines that a replica printed outside of tasks. */
  log(replica: string, lines: number): Promise<string>;
  /** The whole traceback of a pool's last failed start. */
  failure(pool: string): Promise<string>;
  /** The stack of a replica and the values of these expressions, without disturbing it. Rejects if it does not answer. */
  peek(replica: string, expressions: readonly string[]): Promise<IPeek>;
  /** A pool's last minutes: all of them, or only the changes since the mark of an earlier answer. */
  timeline(pool: string, since: string | null): Promise<TimelineAnswer>;
}

export const IPoolManager = new Token<IPoolManager>(
  'flyte-jupyter:IPoolManager',
  'The warm pools of flyte_jupyter: their state, and the verbs on them.'
);
