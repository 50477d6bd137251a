/** Pure functions that find something in a state, or change limits. */

import type { Limits } from '../../flyte_jupyter/widgets/pending_limits.js';
import type { ILease, IPool, IReplica, IScaling, IState, IUsage } from './models';

/** The state with each pool's limits replaced by those that `limitsOf` returns for them. */
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

/** The calls that run on a replica, without slots that are only held and without what is attached. */
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

/** The memory of all replicas of a pool together. A part is null if it is unknown for all of them. */
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

/** When the whole pool stops, and whether somebody has kept it until then. */
export function poolEnd(pool: IPool): { at: number; kept: boolean } | null {
  if (pool.idle_stops_at !== null) {
    return { at: pool.idle_stops_at, kept: pool.idle_stops_at === pool.kept_until };
  }
  return null;
}

/** The limits after one step of a button. The other limit gives way, and `maximum` is at least 1. */
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
