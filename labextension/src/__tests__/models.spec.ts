import { describe, expect, it } from 'vitest';

import contract from '../../../tests/contract/snapshot.json';
import type {
  IClient,
  IDevice,
  IDeviceUsage,
  IEndedCall,
  IFailure,
  ILease,
  IOwner,
  IPool,
  IReplica,
  IReplicaUsage,
  IRequest,
  IScaling,
  ISnapshot,
  IUsage
} from '../models';
import { NotAState, parseState } from '../parse_state';
import { deviceMemory, poolEnd, poolMemory, replicaOf, running, stepped } from '../queries';
import { ended, recentOf } from '../recent';

const state = parseState(contract);
const [gpu, asr] = state.snapshot?.pools ?? [];

/** The names of an interface: the compiler wants each of them, and no other. */
type Names<T> = { [name in keyof T]-?: true };

const lease: Names<ILease> = {
  lease: true,
  task: true,
  client: true,
  since: true,
  running: true,
  attached: true,
  session: true
};
const request: Names<IRequest> = { ...lease, position: true, expected_at: true };
const replica: Names<IReplica> = {
  id: true,
  index: true,
  name: true,
  state: true,
  pid: true,
  devices: true,
  leases: true,
  started_at: true,
  ready_at: true,
  idle_since: true,
  stops_at: true,
  generation_current: true,
  why: true
};
const pool: Names<IPool> = {
  key: true,
  name: true,
  state: true,
  scaling: true,
  devices: true,
  single_use: true,
  retiring: true,
  declared_by: true,
  replicas: true,
  queue: true,
  waiting: true,
  idle_stops_at: true,
  kept_until: true,
  failure: true,
  notes: true,
  waits_for: true,
  starts: true,
  failures: true,
  calls: true,
  cold_starts_avoided: true,
  cold_start_s: true
};
const scaling: Names<IScaling> = {
  min_replicas: true,
  max_replicas: true,
  concurrency: true,
  idle_ttl: true,
  scaledown_ttl: true
};
const failure: Names<IFailure> = { cause: true, replica: true, attempts: true, retry_at: true };
const device: Names<IDevice> = {
  uuid: true,
  index: true,
  model: true,
  partition: true,
  memory_bytes: true,
  replica: true,
  replica_name: true
};
const client: Names<IClient> = {
  client: true,
  label: true,
  kind: true,
  pid: true,
  leases: true,
  waiting: true
};
const snapshot: Names<ISnapshot> = {
  revision: true,
  now: true,
  pools: true,
  devices: true,
  device_problem: true,
  clients: true
};

const endedCall: Names<IEndedCall> = {
  id: true,
  replica: true,
  kind: true,
  task: true,
  client: true,
  began: true,
  ended: true,
  outcome: true,
  calls: true,
  pool: true
};
const usage: Names<IUsage> = { measured_at: true, devices: true, replicas: true, problem: true };
const deviceUsage: Names<IDeviceUsage> = {
  used_bytes: true,
  utilization: true,
  temperature_c: true,
  owners: true
};
const owner: Names<IOwner> = {
  label: true,
  kind: true,
  replica: true,
  pid: true,
  user: true,
  bytes: true
};
const replicaUsage: Names<IReplicaUsage> = { memory_bytes: true };

const wire = contract.snapshot;
it.each<[string, object, object]>([
  ['snapshot', wire, snapshot],
  ['pool', wire.pools[0], pool],
  ['scaling', wire.pools[0].scaling, scaling],
  ['replica', wire.pools[0].replicas[0], replica],
  ['lease', wire.pools[0].replicas[0].leases[0], lease],
  ['request', wire.pools[0].queue[0], request],
  ['failure', wire.pools[1].failure ?? {}, failure],
  ['device', wire.devices[0], device],
  ['client', wire.clients[0], client],
  ['call that ended', contract.recent[0], endedCall],
  ['usage', contract.usage, usage],
  ['usage of a device', contract.usage.devices['GPU-0'], deviceUsage],
  ['owner', contract.usage.devices['GPU-0'].owners[0], owner],
  ['usage of a replica', contract.usage.replicas['00000000'], replicaUsage]
])('a %s has the fields that the server writes', (_, sent, known) => {
  expect(Object.keys(sent).sort()).toEqual(Object.keys(known).sort());
});

describe('the state', () => {
  it('has its instants in Unix time', () => {
    expect(gpu.idle_stops_at).toBe(1_767_002_780);
    expect(gpu.replicas[1].ready_at).toBe(1_767_000_941);
    expect(gpu.replicas[0].leases[0].since).toBe(1_767_000_993);
    expect(gpu.queue[0].since).toBe(1_767_000_996);
    expect(gpu.queue[0].expected_at).toBe(1_767_001_007);
    expect(asr.failure?.retry_at).toBe(1_767_001_030);
    expect(gpu.replicas[2].ready_at).toBeNull();
  });

  it('is refused when it is something else', () => {
    for (const wrong of [null, 'page', {}, { now: 1, state: 'connected', snapshot: {} }]) {
      expect(() => parseState(wrong)).toThrow(NotAState);
    }
  });

  it('without a broker has no snapshot', () => {
    const none = { ...contract, state: 'no-broker', snapshot: null, epoch_offset: null };
    expect(parseState(none).snapshot).toBeNull();
  });

  it('answers questions', () => {
    expect(running(gpu)).toBe(1);
    expect(poolEnd(gpu)).toEqual({ at: 1_767_002_780, kept: true });
    expect(replicaOf(state, '00000001')?.name).toBe('gpu[1]');
    expect(replicaOf(state, 'none')).toBeNull();
  });
});

describe('a step', () => {
  const limits = { ...gpu.scaling, min_replicas: 2, max_replicas: 2 };
  it('moves the other limit out of its way', () => {
    expect(stepped(limits, 'minimum', 1)).toEqual({ minimum: 3, maximum: 3 });
    expect(stepped(limits, 'maximum', -1)).toEqual({ minimum: 1, maximum: 1 });
  });
  it('ends at 0 and 1', () => {
    expect(stepped({ ...limits, min_replicas: 0 }, 'minimum', -1)).toEqual({
      minimum: 0,
      maximum: 2
    });
    expect(stepped({ ...limits, min_replicas: 1, max_replicas: 1 }, 'maximum', -1)).toEqual({
      minimum: 1,
      maximum: 1
    });
  });
});

describe('memory', () => {
  const GIB = 2 ** 30;
  const of = (replica: string | null, bytes: number | null): IOwner => ({
    label: replica ?? 'python',
    kind: replica === null ? 'process' : 'replica',
    replica,
    pid: 1,
    user: null,
    bytes
  });
  const device_ = (...owners: IOwner[]): IDeviceUsage => ({
    used_bytes: 9 * GIB,
    utilization: null,
    temperature_c: null,
    owners
  });
  const measured: IUsage = {
    measured_at: 1,
    problem: null,
    devices: {
      a: device_(of('00000000', 2 * GIB), of(null, 5 * GIB)),
      b: device_(of('00000000', GIB), of('00000001', null))
    },
    replicas: { '00000001': { memory_bytes: 7 } }
  };
  it('of a replica is what it holds of all devices', () => {
    expect(deviceMemory(measured, '00000000')).toBe(3 * GIB);
    expect(deviceMemory(measured, '00000001')).toBeNull();
  });
  it('of a pool is the sum of what is known', () => {
    expect(poolMemory(measured, gpu)).toEqual({ device: 3 * GIB, main: 7 });
    expect(poolMemory(measured, asr)).toEqual({ device: null, main: null });
  });
});

describe('a server that was started before an upgrade', () => {
  it('is understood, too', () => {
    const { recent, refused, ...old } = contract;
    expect([recent.length, refused]).toEqual([2, {}]);
    const read = parseState({ ...old, usage: undefined });
    expect([read.recent, read.usage.devices, read.usage.replicas]).toEqual([[], {}, {}]);
    expect(read.refused).toEqual({});
  });
});

describe('what is over', () => {
  const later = structuredClone(contract);
  later.now += 10;
  later.snapshot.pools[0].replicas.pop();
  later.snapshot.pools[1].failures += 1;

  it('is found by comparing two states', () => {
    expect(ended(state, parseState(later)).map(({ kind, what }) => [kind, what])).toEqual([
      ['failure', 'asr[0]'],
      ['stopped', 'gpu[2]']
    ]);
  });
  it('is nothing across two brokers', () => {
    expect(ended(state, { ...parseState(later), broker_pid: 1 })).toEqual([]);
    expect(ended(null, state)).toEqual([]);
  });
  it('is what the broker reports of calls, and what was seen, in order of time', () => {
    const seen = ended(state, parseState(later));
    const all = recentOf(state, seen, 3);
    expect(all.map(({ kind, what }) => [kind, what])).toEqual([
      ['failure', 'asr[0]'],
      ['stopped', 'gpu[2]'],
      ['call', 'load']
    ]);
    expect(all[2]).toMatchObject({ outcome: 'succeeded', where: 'train.ipynb · gpu[0]' });
    expect(all[2].seconds).toBeCloseTo(1.4);
  });
});
