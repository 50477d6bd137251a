import { afterEach, beforeEach, expect, it, vi } from 'vitest';

import { PendingLimits } from '../../../flyte_jupyter/widgets/pending_limits.js';

const HAS = { minimum: 1, maximum: 3 };
const TWO = { minimum: 2, maximum: 3 };
const THREE = { minimum: 3, maximum: 3 };

/** Orders that are under way, each with what answers it. */
let orders: { minimum: number; answer: () => void; refuse: () => void }[];
let changes: number;
let pending: PendingLimits;

beforeEach(() => {
  vi.useFakeTimers();
  orders = [];
  changes = 0;
  pending = new PendingLimits(() => void (changes += 1));
});
afterEach(() => {
  pending.dispose();
  vi.useRealTimers();
});

const request = (limits: typeof HAS): Promise<void> =>
  pending.request(
    'gpu',
    limits,
    () =>
      new Promise((answer, refuse) => {
        const { minimum } = limits;
        orders.push({ minimum, answer: () => answer(null), refuse: () => refuse(new Error('no')) });
      })
  );
const shown = (): typeof HAS => pending.shown('gpu', HAS);
const pass = (ms: number): Promise<unknown> => vi.advanceTimersByTimeAsync(ms);

it('shows requested limits at once, and only for their pool', () => {
  void request(TWO);
  expect([shown(), pending.shown('asr', HAS)]).toEqual([TWO, HAS]);
  expect(changes).toBe(1);
});

it('shows them until the state has them, even if it first repeats the old ones', async () => {
  const done = request(TWO);
  await pass(1);
  expect(pending.shown('gpu', TWO)).toEqual(TWO); // by chance: it is not answered yet
  orders[0].answer();
  await done;
  expect(shown()).toEqual(TWO);
  expect(pending.shown('gpu', TWO)).toEqual(TWO);
  expect(shown()).toEqual(HAS);
});

it('sends one request at a time, and of those that wait only the last', async () => {
  const done = [request(TWO)];
  await pass(1);
  done.push(request(THREE), request(HAS), request(THREE));
  await pass(1);
  expect(orders.map(order => order.minimum)).toEqual([2]);
  orders[0].answer();
  await pass(1);
  expect(orders.map(order => order.minimum)).toEqual([2, 3]);
  orders[1].answer();
  await Promise.all(done);
  expect([orders.length, shown()]).toEqual([2, THREE]);
});

it('shows the old limits again after a refusal, and rejects', async () => {
  const done = expect(request(TWO)).rejects.toThrow('no');
  await pass(1);
  orders[0].refuse();
  await done;
  expect([shown(), changes]).toEqual([HAS, 2]);
});

it('a refusal does not undo a later request', async () => {
  const refused = expect(request(TWO)).rejects.toThrow('no');
  await pass(1);
  const done = request(THREE);
  orders[0].refuse();
  await refused;
  expect(shown()).toEqual(THREE);
  await pass(1);
  orders[1].answer();
  await done;
  expect(shown()).toEqual(THREE);
});

it('gives way to limits that somebody else has set meanwhile', async () => {
  const done = request(TWO);
  await pass(1);
  orders[0].answer();
  await done;
  await pass(5_000);
  expect([shown(), changes]).toEqual([HAS, 3]);
});

it('reports no change after its disposal', async () => {
  const done = request(TWO);
  await pass(1);
  pending.dispose();
  orders[0].answer();
  await done;
  await pass(5_000);
  expect(changes).toBe(1);
});
