/** The texts of states, counts, memory and times in the views. Pure, except for the translation. */

import type { TranslationBundle } from '@jupyterlab/translation';

import type {
  Act,
  IPool,
  IReplica,
  IRequest,
  IState,
  Outcome,
  PoolState,
  ReplicaState
} from './models';
import { calls, deviceMemory, poolMemory } from './queries';
import { clock, roughly, size, stateCounts, visible } from './words';

/** The server's reason to refuse this user an act; empty if it is allowed, or if nothing is known yet. */
export function refusal(state: IState | null, act: Act): string {
  return visible(state?.refused[act] ?? '', 300);
}

export function stateWord(state: PoolState | ReplicaState, trans: TranslationBundle): string {
  switch (state) {
    case 'busy':
      return trans.__('busy');
    case 'ready':
      return trans.__('ready');
    case 'attached':
      return trans.__('attached');
    case 'loading':
      return trans.__('loading');
    case 'starting':
      return trans.__('starting');
    case 'waiting':
      return trans.__('waiting');
    case 'draining':
      return trans.__('draining');
    case 'stopping':
      return trans.__('stopping');
    case 'stopped':
      return trans.__('stopped');
    case 'failed':
      return trans.__('failed');
    default:
      return state; // of a newer broker
  }
}

/** How a call ended. */
export function outcomeWord(outcome: Outcome, trans: TranslationBundle): string {
  switch (outcome) {
    case 'succeeded':
      return trans.__('succeeded');
    case 'failed':
      return trans.__('failed');
    case 'cancelled':
      return trans.__('cancelled');
    case 'lost':
      return trans.__('lost: its replica ended');
    default:
      return outcome ?? ''; // of a newer broker
  }
}

/** How many replicas are in each state: ["2 ready", "1 busy"]. */
export function countWords(replicas: readonly IReplica[], trans: TranslationBundle): string[] {
  return stateCounts(replicas).map(([state, count]) => `${count} ${stateWord(state, trans)}`);
}

/** "2 ready · 1 busy · queue 3", or the state where that says more. */
export function poolLine(pool: IPool, trans: TranslationBundle): string {
  const words = countWords(pool.replicas, trans);
  if (!words.length || pool.state === 'failed' || pool.state === 'waiting') {
    words.unshift(stateWord(pool.state, trans));
  }
  if (pool.waiting) {
    words.push(trans.__('queue %1', pool.waiting));
  }
  const { min_replicas: least, max_replicas: most } = pool.scaling;
  words.push(
    least === most
      ? trans._n('%1 replica', '%1 replicas', most)
      : trans.__('%1 to %2 replicas', least, most)
  );
  return unbroken(words);
}

/** A line that wraps only between its parts. */
function unbroken(parts: readonly string[]): string {
  return parts.map(part => part.replace(/ /g, '\u00a0')).join(' · ');
}

/** "cold starts avoided: 3 (about 2 min saved)"; empty while there is none. */
export function savingsLine(pools: readonly IPool[], trans: TranslationBundle): string {
  const avoided = pools.reduce((sum, pool) => sum + (pool.cold_starts_avoided || 0), 0);
  if (!avoided) {
    return '';
  }
  const saved = pools.reduce(
    (sum, pool) => sum + (pool.cold_starts_avoided || 0) * (pool.cold_start_s ?? 0),
    0
  );
  return saved
    ? trans.__('cold starts avoided: %1 (about %2 saved)', avoided, roughly(saved))
    : trans.__('cold starts avoided: %1', avoided);
}

/** "9.8 GiB GPU memory · 3.1 GiB RAM", as far as it is known. */
export function memoryLine(state: IState, pool: IPool, trans: TranslationBundle): string {
  const { main, device } = poolMemory(state.usage, pool);
  return memoryWords(device, main, trans).join(' · ');
}

export function memoryOf(state: IState, replica: string, trans: TranslationBundle): string[] {
  const main = state.usage.replicas[replica]?.memory_bytes ?? null;
  return memoryWords(deviceMemory(state.usage, replica), main, trans);
}

function memoryWords(
  device: number | null,
  main: number | null,
  trans: TranslationBundle
): string[] {
  return [
    ...(device === null ? [] : [trans.__('%1 GPU memory', size(device))]),
    ...(main === null ? [] : [trans.__('%1 RAM', size(main))])
  ];
}

/** The devices that a replica holds, as "GPU 0, 1"; empty if none. */
export function devicesOf(state: IState, replica: IReplica, trans: TranslationBundle): string {
  const devices = state.snapshot?.devices ?? [];
  const held = replica.devices.map(
    uuid => devices.find(device => device.uuid === uuid)?.index ?? '?'
  );
  return held.length ? trans.__('GPU %1', held.join(', ')) : '';
}

/** Facts about a replica that its state does not show: who holds it, when it stops, why it stops. */
export function remarksOf(
  pool: IPool,
  replica: IReplica,
  now: number,
  trans: TranslationBundle
): string[] {
  const { state, stops_at, leases, why, generation_current } = replica;
  const holders = leases.filter(lease => lease.attached || !lease.running);
  return [
    ...holders.map(({ attached, client }) =>
      attached ? trans.__('opened in %1', visible(client)) : trans.__('held by %1', visible(client))
    ),
    ...(stops_at !== null && stops_at !== pool.idle_stops_at
      ? [trans.__('off in %1', clock(stops_at - now))]
      : []),
    ...(generation_current ? [] : [trans.__('old preload')]),
    ...((state === 'draining' || state === 'stopping') && why ? [visible(why, 120)] : [])
  ];
}

/** "waits 0:04 · about 12 s": how long a call has waited, and how long it is likely to wait. */
export function waitWords(request: IRequest, now: number, trans: TranslationBundle): string {
  const { since, expected_at } = request;
  const waits = trans.__('waits %1', clock(now - since));
  if (expected_at === null) {
    return waits;
  }
  const left = expected_at - now;
  const rest = left > 0 ? trans.__('about %1', roughly(left)) : trans.__('longer than usual');
  return unbroken([waits, rest]);
}

/** When the running call or the start of a replica began; null while it is idle. */
export function sinceOf(replica: IReplica): number | null {
  const running = calls(replica);
  if (running.length) {
    return Math.min(...running.map(call => call.since));
  }
  return replica.ready_at === null ? replica.started_at : null;
}
