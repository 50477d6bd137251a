/** Parses the state that the server sends. */

import type { IState, IUsage } from './models';

/** The error for a message that is no state: a proxy's page, or an unknown version. */
export class NotAState extends Error {}

const NO_USAGE: IUsage = { measured_at: null, devices: {}, replicas: {}, problem: null };

/**
 * The state with its instants in Unix time, so that no other code adds an offset.
 *
 * @throws NotAState - If the essential fields are not there.
 */
export function parseState(wire: unknown): IState {
  const state = wire as IState | null;
  if (
    typeof state !== 'object' ||
    state === null ||
    typeof state.now !== 'number' ||
    typeof state.state !== 'string' ||
    (state.snapshot !== null && !Array.isArray(state.snapshot?.pools))
  ) {
    throw new NotAState('The server sent something that is not the state of its pools.');
  }
  const { snapshot, epoch_offset: offset } = state;
  // A server that was started before an upgrade serves the new files of the panel, but lacks these fields.
  const { refused = {}, recent = [], usage = NO_USAGE } = state;
  if (snapshot === null || offset === null) {
    return { ...state, refused, snapshot: null, recent: [], usage: NO_USAGE };
  }
  const at = (instant: number): number => instant + offset;
  const maybe = (instant: number | null): number | null => (instant === null ? null : at(instant));
  return {
    ...state,
    refused,
    usage,
    recent: recent.map(call => ({ ...call, began: at(call.began), ended: maybe(call.ended) })),
    snapshot: {
      ...snapshot,
      now: at(snapshot.now),
      pools: snapshot.pools.map(pool => ({
        ...pool,
        idle_stops_at: maybe(pool.idle_stops_at),
        kept_until: maybe(pool.kept_until),
        failure: pool.failure && { ...pool.failure, retry_at: maybe(pool.failure.retry_at) },
        queue: pool.queue.map(request => ({
          ...request,
          since: at(request.since),
          expected_at: maybe(request.expected_at ?? null) // an older server does not send it
        })),
        replicas: pool.replicas.map(replica => ({
          ...replica,
          started_at: at(replica.started_at),
          ready_at: maybe(replica.ready_at),
          idle_since: maybe(replica.idle_since),
          stops_at: maybe(replica.stops_at),
          leases: replica.leases.map(lease => ({ ...lease, since: at(lease.since) }))
        }))
      }))
    }
  };
}
