/** What ended last: calls, replicas, and starts that failed. */

import type { IState, Outcome } from './models';
import { poolOf, replicaOf } from './queries';

/** A call, a failed start or a replica that has ended. */
export interface IRecent {
  id: string;
  kind: 'call' | 'failure' | 'stopped';
  what: string;
  where: string;
  at: number;
  /** How a call ended, and how long it took; null for anything else. */
  outcome: Outcome;
  seconds: number | null;
}

/** The starts that failed and the replicas that ended between two states, newest first. */
export function ended(before: IState | null, after: IState): IRecent[] {
  // Another broker has started meanwhile: its pools cannot be compared.
  if (!before?.snapshot || !after.snapshot || before.broker_pid !== after.broker_pid) {
    return [];
  }
  const found: IRecent[] = [];
  const add = (id: string, kind: 'failure' | 'stopped', what: string, where: string): void =>
    void found.push({ id, kind, what, where, at: after.now, outcome: null, seconds: null });
  for (const old of before.snapshot.pools) {
    const pool = poolOf(after, old.key);
    const replicas = new Set(pool?.replicas.map(replica => replica.id));
    for (const { id, name, why } of old.replicas.filter(each => !replicas.has(each.id))) {
      add(id, 'stopped', name, why);
    }
    if (pool?.failure && pool.failures > old.failures) {
      add(`${pool.key}-${pool.failures}`, 'failure', pool.failure.replica, pool.failure.cause);
    }
  }
  return found.reverse();
}

/** What ended last, newest first: the calls in the state, and `seen`, as `ended` found it. */
export function recentOf(state: IState, seen: readonly IRecent[], most: number): IRecent[] {
  const calls = state.recent.map((call): IRecent => {
    const replica = call.replica === null ? null : replicaOf(state, call.replica);
    const at = call.ended ?? state.now;
    return {
      id: `${call.pool}-${call.id}`,
      kind: 'call',
      what: call.calls > 1 ? `${call.task} × ${call.calls}` : call.task,
      where: [call.client, replica?.name ?? poolOf(state, call.pool)?.name]
        .filter(Boolean)
        .join(' · '),
      at,
      outcome: call.outcome,
      seconds: Math.max(0, at - call.began)
    };
  });
  return [...calls, ...seen].sort((one, other) => other.at - one.at).slice(0, most);
}
