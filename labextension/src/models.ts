/**
 * The state that the server sends (docs/server-api.md), and pure questions to it. The fields of `ISnapshot`
 * are those of `flyte_jupyter/core/snapshot.py`; a test on each side holds them together.
 */

export type PoolState =
  'failed' | 'busy' | 'ready' | 'starting' | 'waiting' | 'stopping' | 'stopped';
export type ReplicaState = 'starting' | 'loading' | 'ready' | 'busy' | 'draining' | 'stopping';

export interface ILease {
  lease: string;
  task: string;
  client: string;
  since: number;
}

export interface IRequest extends ILease {
  position: number;
}

export interface IReplica {
  id: string;
  index: number;
  name: string;
  state: ReplicaState;
  pid: number | null;
  devices: string[];
  leases: ILease[];
  started_at: number;
  ready_at: number | null;
  idle_since: number | null;
  stops_at: number | null;
  generation_current: boolean;
  why: string;
}

export interface IFailure {
  cause: string;
  replica: string;
  attempts: number;
  retry_at: number | null;
}

export interface IScaling {
  min_replicas: number;
  max_replicas: number;
  concurrency: number;
  idle_ttl: number;
  scaledown_ttl: number;
}

export interface IPool {
  key: string;
  name: string;
  state: PoolState;
  scaling: IScaling;
  devices: { count: number; model: string | null; partition: string | null };
  single_use: boolean;
  retiring: boolean;
  declared_by: string[];
  replicas: IReplica[];
  queue: IRequest[];
  waiting: number;
  idle_stops_at: number | null;
  kept_until: number | null;
  failure: IFailure | null;
  notes: string[];
  waits_for: string | null;
  starts: number;
  failures: number;
  calls: number;
  calls_warm: number;
}

export interface IDevice {
  uuid: string;
  index: number;
  model: string;
  partition: string | null;
  memory_bytes: number;
  replica: string | null;
  replica_name: string | null;
}

export interface IClient {
  client: string;
  label: string;
  kind: string;
  pid: number;
  leases: number;
  waiting: number;
}

export interface ISnapshot {
  revision: number;
  now: number;
  pools: IPool[];
  devices: IDevice[];
  device_problem: string | null;
  clients: IClient[];
}

export type ServiceState = 'connected' | 'no-broker' | 'version-mismatch' | 'unavailable';

export interface IState {
  now: number;
  tag: string;
  state: ServiceState;
  message: string | null;
  versions: { server: string; broker: string | null };
  broker_pid: number | null;
  epoch_offset: number | null;
  spawned: { [pool: string]: string };
  snapshot: ISnapshot | null;
}

/** What can be asked of a pool, a replica or a call; `body` as docs/server-api.md says. */
export type Verb =
  | { on: 'pools'; id: string; verb: 'scale'; body: { minimum: number; maximum: number } }
  | { on: 'pools'; id: string; verb: 'warm'; body?: { replicas: number } }
  | { on: 'pools'; id: string; verb: 'keep'; body: { seconds: number } }
  | { on: 'pools'; id: string; verb: 'stop'; body?: { force: boolean } }
  | { on: 'pools'; id: string; verb: 'drain' | 'restart'; body?: undefined }
  | { on: 'replicas'; id: string; verb: 'restart'; body?: { force: boolean } }
  | { on: 'replicas'; id: string; verb: 'interrupt'; body?: undefined }
  | { on: 'leases'; id: string; verb: 'cancel'; body?: undefined };

/** A message from the server that is no state: a proxy's page, or a version that we do not know. */
export class NotAState extends Error {}

/**
 * The state with its instants in Unix time: past this border nobody adds an offset.
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
  if (snapshot === null || offset === null) {
    return { ...state, snapshot: null };
  }
  const at = (instant: number): number => instant + offset;
  const maybe = (instant: number | null): number | null => (instant === null ? null : at(instant));
  return {
    ...state,
    snapshot: {
      ...snapshot,
      now: at(snapshot.now),
      pools: snapshot.pools.map(pool => ({
        ...pool,
        idle_stops_at: maybe(pool.idle_stops_at),
        kept_until: maybe(pool.kept_until),
        failure: pool.failure && { ...pool.failure, retry_at: maybe(pool.failure.retry_at) },
        queue: pool.queue.map(request => ({ ...request, since: at(request.since) })),
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

/** A pool by its key. */
export function poolOf(state: IState | null, key: string): IPool | null {
  return state?.snapshot?.pools.find(pool => pool.key === key) ?? null;
}

/** A replica by its id, with its pool. */
export function replicaOf(state: IState | null, id: string): [IPool, IReplica] | null {
  for (const pool of state?.snapshot?.pools ?? []) {
    const replica = pool.replicas.find(each => each.id === id);
    if (replica) {
      return [pool, replica];
    }
  }
  return null;
}

/** How many calls run in a pool. */
export function running(pool: IPool): number {
  return pool.replicas.reduce((sum, replica) => sum + replica.leases.length, 0);
}

/** The instant at which the whole pool stops, and whether somebody asked to keep it until then. */
export function poolEnd(pool: IPool): { at: number; kept: boolean } | null {
  if (pool.idle_stops_at !== null) {
    return { at: pool.idle_stops_at, kept: pool.idle_stops_at === pool.kept_until };
  }
  return null;
}

/** Other limits after one step of a button; the other limit gives way, and `maximum` is at least 1. */
export function stepped(
  scaling: IScaling,
  limit: 'minimum' | 'maximum',
  by: 1 | -1
): { minimum: number; maximum: number } {
  let { min_replicas: minimum, max_replicas: maximum } = scaling;
  if (limit === 'minimum') {
    minimum = Math.max(0, minimum + by);
    maximum = Math.max(maximum, minimum);
  } else {
    maximum = Math.max(1, maximum + by);
    minimum = Math.min(minimum, maximum);
  }
  return { minimum, maximum };
}

/** Something that ended while somebody watched. */
export interface IRecent {
  id: string;
  kind: 'call' | 'failure' | 'stopped';
  what: string;
  where: string;
  at: number;
  seconds: number | null;
}

/** What ended between two states, newest first: calls, starts that failed, replicas. */
export function ended(before: IState | null, after: IState): IRecent[] {
  // After a gap in which another broker started there is nothing to compare.
  if (!before?.snapshot || !after.snapshot || before.broker_pid !== after.broker_pid) {
    return [];
  }
  const found: IRecent[] = [];
  for (const old of before.snapshot.pools) {
    const pool = poolOf(after, old.key);
    const leases = new Set(pool?.replicas.flatMap(replica => replica.leases.map(l => l.lease)));
    const replicas = new Set(pool?.replicas.map(replica => replica.id));
    for (const replica of old.replicas) {
      for (const { lease, task, since } of replica.leases.filter(each => !leases.has(each.lease))) {
        const seconds = Math.max(0, after.now - since);
        found.push({
          id: lease,
          kind: 'call',
          what: task,
          where: replica.name,
          at: after.now,
          seconds
        });
      }
      if (!replicas.has(replica.id)) {
        const { id, name, why } = replica;
        found.push({ id, kind: 'stopped', what: name, where: why, at: after.now, seconds: null });
      }
    }
    if (pool?.failure && pool.failures > old.failures) {
      const { cause, replica } = pool.failure;
      const id = `${pool.key}-${pool.failures}`;
      found.push({
        id,
        kind: 'failure',
        what: replica,
        where: cause,
        at: after.now,
        seconds: null
      });
    }
  }
  return found.reverse();
}
