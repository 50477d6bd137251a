/**
 * The state that the server sends (docs/server-api.md), and pure questions to it. The fields of `ISnapshot`
 * are those of `flyte_jupyter/core/snapshot.py`; a test on each side holds them together.
 */

import type { TimelineSpan } from '../../flyte_jupyter/widgets/timeline.js';
import type { Limits } from '../../flyte_jupyter/widgets/pending_limits.js';

export type PoolState =
  'failed' | 'busy' | 'ready' | 'starting' | 'waiting' | 'stopping' | 'stopped';
export type ReplicaState =
  'starting' | 'loading' | 'ready' | 'busy' | 'attached' | 'draining' | 'stopping';

export interface ILease {
  lease: string;
  task: string;
  client: string;
  since: number;
  /** False while its client only holds the slot, between two calls. */
  running: boolean;
  /** Somebody who has opened the replica, and no call. */
  attached: boolean;
}

/** A call that waits; `running` is false of it. */
export interface IRequest extends ILease {
  position: number;
  /** When it is likely to start; null if nothing is known, passed if it takes longer than usual. */
  expected_at: number | null;
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
  /** Calls that found a warm replica. */
  cold_starts_avoided: number;
  /** Mean seconds until a replica was ready; null before the first. */
  cold_start_s: number | null;
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

export type Outcome = TimelineSpan['outcome'];

/** A call that has ended, or several short ones in a row, of the pool with that key. */
export interface IEndedCall extends TimelineSpan {
  pool: string;
}

/** A process that holds memory of a device: a replica, or somebody else's. */
export interface IOwner {
  label: string;
  kind: 'replica' | 'notebook' | 'process';
  replica: string | null;
  pid: number;
  user: string | null;
  bytes: number | null;
}

export interface IDeviceUsage {
  used_bytes: number;
  utilization: number | null;
  temperature_c: number | null;
  owners: IOwner[];
}

/** Main memory of a replica and of what it has started. */
export interface IReplicaUsage {
  memory_bytes: number;
}

/** What was measured last; what is unknown is not there. */
export interface IUsage {
  measured_at: number | null;
  devices: { [uuid: string]: IDeviceUsage };
  replicas: { [replica: string]: IReplicaUsage };
  /** Why nothing is known of any device. */
  problem: string | null;
}

/** What one look into a replica has seen. */
export interface IPeek {
  lines: string[];
}

/** What not everybody may do: change pools, read logs, look into a replica, open one. */
export type Act = 'change' | 'logs' | 'peek' | 'attach';

export type ServiceState = 'connected' | 'no-broker' | 'version-mismatch' | 'unavailable';

export interface IState {
  now: number;
  /** Why whoever looks may not do some things. */
  refused: { [act in Act]?: string };
  tag: string;
  state: ServiceState;
  message: string | null;
  versions: { server: string; broker: string | null };
  broker_pid: number | null;
  epoch_offset: number | null;
  spawned: { [pool: string]: string };
  snapshot: ISnapshot | null;
  /** The calls that ended last, newest first. */
  recent: IEndedCall[];
  usage: IUsage;
}

/** What can be asked of a pool, a replica or a call; `body` as docs/server-api.md says. */
export type Verb =
  | { on: 'pools'; id: string; verb: 'scale'; body: Limits }
  | { on: 'pools'; id: string; verb: 'warm'; body?: { replicas: number } }
  | { on: 'pools'; id: string; verb: 'keep'; body: { seconds: number } }
  | { on: 'pools'; id: string; verb: 'stop'; body?: { force: boolean } }
  | { on: 'pools'; id: string; verb: 'drain' | 'restart'; body?: undefined }
  | { on: 'replicas'; id: string; verb: 'restart'; body?: { force: boolean } }
  | { on: 'replicas'; id: string; verb: 'interrupt'; body?: undefined }
  | { on: 'leases'; id: string; verb: 'cancel'; body?: undefined };

/** A message from the server that is no state: a proxy's page, or a version that we do not know. */
export class NotAState extends Error {}

const NO_USAGE: IUsage = { measured_at: null, devices: {}, replicas: {}, problem: null };

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
  // A server that was started before an upgrade lacks these, and sends this page's newer files nevertheless.
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
          expected_at: maybe(request.expected_at ?? null) // an older server does not say it
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

/** The state with the limits that `limitsOf` says, which is told those that each pool has. */
export function withLimits(
  state: IState,
  limitsOf: (pool: string, limits: Limits) => Limits
): IState {
  const { snapshot } = state;
  const limited = (pool: IPool): IPool => {
    const { min_replicas, max_replicas } = pool.scaling;
    const { minimum, maximum } = limitsOf(pool.key, {
      minimum: min_replicas,
      maximum: max_replicas
    });
    const scaling = { ...pool.scaling, min_replicas: minimum, max_replicas: maximum };
    return { ...pool, scaling };
  };
  return { ...state, snapshot: snapshot && { ...snapshot, pools: snapshot.pools.map(limited) } };
}

/** A pool by its key. */
export function poolOf(state: IState | null, key: string): IPool | null {
  return state?.snapshot?.pools.find(pool => pool.key === key) ?? null;
}

/** A replica by its id. */
export function replicaOf(state: IState | null, id: string): IReplica | null {
  const replicas = state?.snapshot?.pools.flatMap(pool => pool.replicas);
  return replicas?.find(replica => replica.id === id) ?? null;
}

/** How many calls run in a pool. */
export function running(pool: IPool): number {
  return pool.replicas.reduce((sum, replica) => sum + calls(replica).length, 0);
}

/** The calls that run on a replica; a slot that is only held is none, nor is somebody who has it open. */
export function calls(replica: IReplica): ILease[] {
  return replica.leases.filter(lease => lease.running && !lease.attached);
}

/** The device memory that a replica holds, in bytes; null if that is not known. */
export function deviceMemory(usage: IUsage, replica: string): number | null {
  const held = Object.values(usage.devices)
    .flatMap(device => device.owners)
    .filter(owner => owner.replica === replica && owner.bytes !== null);
  return held.length ? held.reduce((sum, owner) => sum + (owner.bytes ?? 0), 0) : null;
}

/** The memory of all replicas of a pool together; a part is null if it is not known of any of them. */
export function poolMemory(
  usage: IUsage,
  pool: IPool
): { main: number | null; device: number | null } {
  const sum = (parts: (number | null)[]): number | null => {
    const known = parts.filter((part): part is number => part !== null);
    return known.length ? known.reduce((total, part) => total + part, 0) : null;
  };
  return {
    main: sum(pool.replicas.map(({ id }) => usage.replicas[id]?.memory_bytes ?? null)),
    device: sum(pool.replicas.map(({ id }) => deviceMemory(usage, id)))
  };
}

/** The instant at which the whole pool stops, and whether somebody asked to keep it until then. */
export function poolEnd(pool: IPool): { at: number; kept: boolean } | null {
  if (pool.idle_stops_at !== null) {
    return { at: pool.idle_stops_at, kept: pool.idle_stops_at === pool.kept_until };
  }
  return null;
}

/** Other limits after one step of a button; the other limit gives way, and `maximum` is at least 1. */
export function stepped(scaling: IScaling, limit: 'minimum' | 'maximum', by: 1 | -1): Limits {
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

/** Something that is over: a call, a start that failed, a replica. */
export interface IRecent {
  id: string;
  kind: 'call' | 'failure' | 'stopped';
  what: string;
  where: string;
  at: number;
  /** How a call ended, and how long it took; null of anything else. */
  outcome: Outcome;
  seconds: number | null;
}

/** What went wrong or went away between two states, newest first: starts that failed, replicas. */
export function ended(before: IState | null, after: IState): IRecent[] {
  // After a gap in which another broker started there is nothing to compare.
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

/** The last things that are over, newest first: calls as the service tells them, and what was seen to end. */
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
