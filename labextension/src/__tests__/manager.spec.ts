import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';

import contract from '../../../tests/contract/snapshot.json';
import type { IApi, IStreamListener } from '../api';
import type { IState } from '../models';
import { parseState } from '../parse_state';
import { poolOf } from '../queries';
import { PoolManager } from '../manager';

const STATE = parseState(contract);

/** A server that does what a test says, and counts. */
class FakeApi implements IApi {
  asked: (string | null)[] = [];
  streams: { listener: IStreamListener; disposed: boolean }[] = [];
  acted: unknown[] = [];
  refuse: Error | null = null;
  answer: () => Promise<IState | null> = () => Promise.resolve(STATE);

  state(since: string | null): Promise<IState | null> {
    this.asked.push(since);
    return this.answer();
  }
  stream(listener: IStreamListener): { dispose: () => void } {
    const stream = { listener, disposed: false };
    this.streams.push(stream);
    return { dispose: () => void (stream.disposed = true) };
  }
  act(verb: unknown): Promise<void> {
    this.acted.push(verb);
    return this.refuse ? Promise.reject(this.refuse) : Promise.resolve();
  }
  log = (): Promise<string> => Promise.resolve('');
  failure = (): Promise<string> => Promise.resolve('');
  peek = (): Promise<never> => Promise.reject(new Error('not asked here'));
  timeline = (): Promise<never> => Promise.reject(new Error('not asked here'));
}

let api: FakeApi;
let manager: PoolManager;
let changes: number;

beforeEach(() => {
  vi.useFakeTimers();
  api = new FakeApi();
  manager = new PoolManager(api, () => 1_000);
  changes = 0;
  manager.changed.connect(() => void (changes += 1));
});
afterEach(() => {
  manager.dispose();
  vi.useRealTimers();
});

const pass = (ms: number): Promise<unknown> => vi.advanceTimersByTimeAsync(ms);
const refused = (status: number) => (): Promise<never> =>
  Promise.reject(Object.assign(new Error('no'), { status }));

it('makes no request while nobody watches', async () => {
  await pass(60_000);
  expect([api.asked, api.streams]).toEqual([[], []]);
});

it('stops when the last watcher goes, and starts again with the next', async () => {
  const [one, two] = [manager.watch(), manager.watch()];
  api.streams[0].listener.onState(STATE);
  one.dispose();
  expect(api.streams).toMatchObject([{ disposed: false }]);
  two.dispose();
  expect(api.streams).toMatchObject([{ disposed: true }]);
  const asked = api.asked.length;
  await pass(60_000);
  expect(api.asked).toHaveLength(asked);
  manager.watch();
  expect(api.streams).toHaveLength(2);
});

it('does not poll while the web socket lives', async () => {
  manager.watch();
  api.streams[0].listener.onState(STATE);
  await pass(30_000);
  expect(manager.serverStatus).toBe('live');
  expect(api.asked.length).toBeLessThanOrEqual(1);
});

it('counts on the clock of the server', () => {
  manager.watch();
  api.streams[0].listener.onState(STATE);
  expect(manager.now()).toBe(1_767_001_000);
});

it('polls where the web socket does not get through, with the tag it has', async () => {
  manager.watch();
  api.streams[0].listener.onClose();
  await pass(1);
  expect(manager.serverStatus).toBe('polling');
  api.answer = () => Promise.resolve(null);
  await pass(2_100);
  expect(api.asked.slice(-1)).toEqual([STATE.tag]);
  expect(manager.state).toEqual(STATE);
});

it('opens the web socket again, each time after a longer pause', async () => {
  manager.watch();
  api.streams[0].listener.onClose();
  await pass(500);
  expect(api.streams).toHaveLength(2);
  api.streams[1].listener.onClose();
  await pass(999);
  expect(api.streams).toHaveLength(2);
  await pass(1);
  expect(api.streams).toHaveLength(3);
});

it('says that the connection is lost, keeps the last state, and recovers', async () => {
  manager.watch();
  api.streams[0].listener.onState(STATE);
  api.answer = refused(503);
  api.streams[0].listener.onClose();
  await pass(600);
  expect([manager.serverStatus, manager.problem, manager.state]).toEqual(['lost', 'no', STATE]);
  api.streams[1].listener.onState(STATE);
  expect([manager.serverStatus, manager.problem]).toEqual(['live', '']);
});

it.each([
  [404, 'absent'],
  [403, 'refused'],
  [500, 'lost']
])('an answer %d means: %s', async (status, serverStatus) => {
  api.answer = refused(status);
  await manager.refresh();
  expect(manager.serverStatus).toBe(serverStatus);
});

it('asks for the outcome of a verb where no stream brings it', async () => {
  await manager.act({ on: 'pools', id: 'k', verb: 'restart' });
  expect(api.acted).toEqual([{ on: 'pools', id: 'k', verb: 'restart' }]);
  expect(api.asked).toEqual([null]);
  expect(changes).toBe(1);
});

it('what was asked for once is not kept up to date', async () => {
  await manager.refresh();
  expect([manager.state, manager.serverStatus]).toEqual([STATE, 'connecting']);
  manager.watch();
  await pass(1);
  expect(manager.serverStatus).toBe('polling');
});

it('does nothing after its end', async () => {
  manager.watch();
  manager.dispose();
  expect(api.streams).toMatchObject([{ disposed: true }]);
  const { asked } = api;
  const before = asked.length;
  await pass(60_000);
  expect(asked).toHaveLength(before);
});

it('has what is over: calls as the broker reports them, and what it saw go', () => {
  manager.watch();
  const what = (): string[] => manager.recent.map(each => `${each.kind} ${each.what}`);
  api.streams[0].listener.onState(STATE);
  expect(what()).toEqual(['call load', 'call <img src=x>']);
  const later = structuredClone(contract);
  later.now += 10;
  later.snapshot.pools[0].replicas.pop();
  api.streams[0].listener.onState(parseState(later));
  expect(what()).toEqual(['stopped gpu[2]', 'call load', 'call <img src=x>']);
});

describe('limits that were asked for', () => {
  const [{ key }] = contract.snapshot.pools;
  const limits = (): number[] => {
    const { min_replicas = 0, max_replicas = 0 } = poolOf(manager.state, key)?.scaling ?? {};
    return [min_replicas, max_replicas];
  };
  const scale = (minimum: number): Promise<void> =>
    manager.act({ on: 'pools', id: key, verb: 'scale', body: { minimum, maximum: 3 } });
  const answered = (minimum: number): IState => {
    const wire = structuredClone(contract);
    wire.snapshot.pools[0].scaling.min_replicas = minimum;
    return parseState(wire);
  };

  beforeEach(() => {
    manager.watch();
    api.streams[0].listener.onState(STATE);
  });

  it('are those of the state from then on, until the server says others', async () => {
    const done = scale(2);
    expect([limits(), changes]).toEqual([[2, 3], 2]);
    api.streams[0].listener.onState(parseState(contract)); // it was on its way
    expect(limits()).toEqual([2, 3]);
    await done;
    expect(limits()).toEqual([2, 3]);
    api.streams[0].listener.onState(answered(2));
    api.streams[0].listener.onState(answered(1)); // somebody else's
    expect(limits()).toEqual([1, 3]);
  });

  it('are given back if they are refused', async () => {
    api.refuse = new Error('no');
    const done = expect(scale(2)).rejects.toThrow('no');
    expect(limits()).toEqual([2, 3]);
    await done;
    expect([limits(), manager.state]).toEqual([[1, 3], STATE]);
  });
});
