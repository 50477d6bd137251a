/**
 * The state that the server sends (docs/server-api.md). The fields of `ISnapshot` are those of
 * `flyte_jupyter/core/snapshot.py`; a test on each side holds them together.
 */

import type { Limits } from '../../flyte_jupyter/widgets/pending_limits.js';
import type { TimelineSpan } from '../../flyte_jupyter/widgets/timeline.js';

export type PoolState =
  'failed' | 'busy' | 'ready' | 'starting' | 'waiting' | 'stopping' | 'stopped';

export type ReplicaState =
  'starting' | 'loading' | 'ready' | 'busy' | 'attached' | 'draining' | 'stopping';

export interface ILease {
  lease: string;
  task: string;
  client: string;
  since: number;
  /** False while its client holds the slot between two calls. */
  running: boolean;
  /** True of a console or notebook that is attached to the replica; it is no call. */
  attached: boolean;
  /** The session that keeps the slot between its cells; empty is the one without a name. Null if none does. */
  session: string | null;
}

/** A call that waits; `running` is false of it. */
export interface IRequest extends ILease {
  position: number;
  /** When it will probably start. Null if unknown, in the past if it takes longer than usual. */
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

/** A process that holds memory of a device: a replica, or one of somebody else. */
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

/** Main memory of a replica and its child processes. */
export interface IReplicaUsage {
  memory_bytes: number;
}

/** The last measurement. Unknown devices and replicas are absent. */
export interface IUsage {
  measured_at: number | null;
  devices: { [uuid: string]: IDeviceUsage };
  replicas: { [replica: string]: IReplicaUsage };
  /** Why nothing is known of any device. */
  problem: string | null;
}

/** The result of one look into a replica. */
export interface IPeek {
  lines: string[];
}

/** Acts that need permission: change pools, read logs, look into a replica, attach to one. */
export type Act = 'change' | 'logs' | 'peek' | 'attach';

export type BrokerState = 'connected' | 'no-broker' | 'version-mismatch' | 'unavailable';

export interface IState {
  now: number;
  /** The acts that the server refuses to this user, with its reasons. */
  refused: { [act in Act]?: string };
  tag: string;
  state: BrokerState;
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

/** A change of a pool, a replica or a call; docs/server-api.md describes `body`. */
export type Verb =
  | { on: 'pools'; id: string; verb: 'scale'; body: Limits }
  | { on: 'pools'; id: string; verb: 'warm'; body?: { replicas: number } }
  | { on: 'pools'; id: string; verb: 'keep'; body: { seconds: number } }
  | { on: 'pools'; id: string; verb: 'stop'; body?: { force: boolean } }
  | { on: 'pools'; id: string; verb: 'restart'; body?: undefined }
  | { on: 'pools'; id: string; verb: 'interrupt'; body?: undefined }
  | { on: 'replicas'; id: string; verb: 'restart'; body?: { force: boolean } }
  | { on: 'replicas'; id: string; verb: 'interrupt'; body?: undefined }
  | { on: 'leases'; id: string; verb: 'cancel'; body?: undefined };
