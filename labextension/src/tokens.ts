/** What other extensions may ask for: `IPoolManager`. */

import { Token } from '@lumino/coreutils';
import type { IDisposable } from '@lumino/disposable';
import type { ISignal } from '@lumino/signaling';

import type { TimelineAnswer } from '../../flyte_jupyter/widgets/timeline.js';
import type { IPeek, IRecent, IState, Verb } from './models';

/**
 * How we stand with the server: `connecting` for the first time or again, `live`, `polling` where the web
 * socket does not get through, `lost` without any answer, `absent` where the server lacks our extension,
 * `refused` if it does not let us in.
 */
export type Link = 'connecting' | 'live' | 'polling' | 'lost' | 'absent' | 'refused';

/** The state of the user's pools, and the verbs on them. */
export interface IPoolManager extends IDisposable {
  /**
   * The last state; null before the first. Its instants are Unix time. A pool's limits are already those that were
   * asked for last, unless they are refused.
   */
  readonly state: IState | null;
  readonly link: Link;
  /** What went wrong with the last request, for people; empty while nothing did. */
  readonly problem: string;
  /** What is over, newest first: calls; and what failed or stopped while somebody watched. */
  readonly recent: readonly IRecent[];
  /** Emitted when any of the above has changed. */
  readonly changed: ISignal<IPoolManager, void>;
  /** The server's Unix time in seconds. */
  now(): number;
  /** Keep the state up to date until disposed; requests are made only while somebody does. */
  watch(): IDisposable;
  /** Ask once. Never rejects: what went wrong is in `problem`. */
  refresh(): Promise<void>;
  /** Rejects with what the server says if it refuses. */
  act(verb: Verb): Promise<void>;
  /** The last lines that a replica printed outside of tasks. */
  log(replica: string, lines: number): Promise<string>;
  /** The whole traceback of a pool's last failed start. */
  failure(pool: string): Promise<string>;
  /** What a replica does now, and what these expressions are there, without disturbing it; rejects if it does not answer. */
  peek(replica: string, expressions: readonly string[]): Promise<IPeek>;
  /** A pool's last minutes: all of them, or what changed since the mark of the answer before. */
  timeline(pool: string, since: string | null): Promise<TimelineAnswer>;
}

export const IPoolManager = new Token<IPoolManager>(
  'flyte-jupyter:IPoolManager',
  'The warm pools of flyte_jupyter: their state, and the verbs on them.'
);
