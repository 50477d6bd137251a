/**
 * What a screen reader is told of changes: the news since the last announcement in one go, at most one
 * every ten seconds, and never a countdown.
 */

import type { IState } from '../models';

export const QUIET_MS = 10_000;

/** The part of a state that is worth a word, by pool: what it is called, what it does, how many wait. */
export interface INews {
  name: string;
  state: string;
  waiting: number;
  warned: boolean;
}

export function newsOf(state: IState, now: number, warnS: number): Map<string, INews> {
  return new Map(
    (state.snapshot?.pools ?? []).map(pool => [
      pool.key,
      {
        name: pool.name,
        state: pool.state,
        waiting: pool.waiting,
        warned: pool.idle_stops_at !== null && pool.idle_stops_at - now <= warnS
      }
    ])
  );
}

/** The pools whose news changed; one that is new counts, one that is gone has `null`. */
export function compare(
  before: ReadonlyMap<string, INews>,
  after: ReadonlyMap<string, INews>
): { key: string; before: INews | null; after: INews | null }[] {
  const keys = new Set([...before.keys(), ...after.keys()]);
  return [...keys]
    .map(key => ({ key, before: before.get(key) ?? null, after: after.get(key) ?? null }))
    .filter(
      ({ before: old, after: now }) =>
        old?.state !== now?.state || old?.waiting !== now?.waiting || old?.warned !== now?.warned
    );
}

/** Announces the newest text, with a pause of at least `QUIET_MS` after each. */
export class Announcer {
  /** @param say - Shows a text in the live region. */
  constructor(say: (text: string) => void) {
    this._say = say;
  }

  /** Say what `describe` returns then: nothing, if it is empty. What it describes may change while it waits. */
  request(describe: () => string): void {
    this._describe = describe;
    if (this._timer === undefined) {
      this._flush();
    }
  }

  dispose(): void {
    clearTimeout(this._timer);
    this._timer = undefined;
    this._describe = null;
  }

  private _flush(): void {
    this._timer = undefined;
    const text = this._describe?.() ?? '';
    this._describe = null;
    if (text) {
      this._say(text);
      this._timer = setTimeout(() => this._flush(), QUIET_MS);
    }
  }

  private readonly _say: (text: string) => void;
  private _describe: (() => string) | null = null;
  private _timer: ReturnType<typeof setTimeout> | undefined;
}
