/** One replica that was there in the last minutes; `ready_at` and `ended_at` are null before they are reached. */
export interface TimelineLane {
  replica: string;
  name: string;
  index: number;
  started_at: number;
  ready_at: number | null;
  ended_at: number | null;
  why: string;
}

/** What a replica, a waiting request or somebody who had the replica open did from `began` to `ended` (null: still does). */
export interface TimelineSpan {
  id: number;
  replica: string | null;
  kind: 'starting' | 'loading' | 'running' | 'waiting' | 'attached';
  task: string;
  client: string;
  began: number;
  ended: number | null;
  outcome: 'succeeded' | 'failed' | 'cancelled' | 'lost' | null;
  calls: number;
}

/** Why the pool's number of replicas changed. */
export interface TimelineChange {
  id: number;
  at: number;
  text: string;
}

/** An answer of `GET flyte-jupyter/pools/KEY/timeline`. */
export interface TimelineAnswer {
  now: number;
  epoch_offset: number;
  mark: string;
  whole: boolean;
  window_s: number;
  lanes: TimelineLane[];
  spans: TimelineSpan[];
  changes: TimelineChange[];
}

export interface TimelineOptions {
  /** Translates an English text, in which %1, %2 stand for what follows. */
  text?: (key: string, ...args: string[]) => string;
}

/** Draws what a pool's replicas did in the last minutes, and goes on moving by itself. */
export class Timeline {
  constructor(host: HTMLElement, options?: TimelineOptions);

  /** What to ask the server with next, as `?since=`; null before the first answer. */
  get mark(): string | null;

  /** Why the pool's number of replicas changed, oldest first, with instants in Unix time. */
  get changes(): readonly TimelineChange[];

  take(answer: TimelineAnswer): void;

  /** Stops its ticking, and takes it out of the host. */
  dispose(): void;
}
