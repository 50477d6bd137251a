import { afterEach, beforeEach, expect, it, vi } from 'vitest';

import { Wishes } from '../../../flyte_jupyter/widgets/wishes.js';

const HAS = { minimum: 1, maximum: 3 };
const TWO = { minimum: 2, maximum: 3 };
const THREE = { minimum: 3, maximum: 3 };

/** Orders that are under way, each with what answers it. */
let orders: { minimum: number; answer: () => void; refuse: () => void }[];
let changes: number;
let wishes: Wishes;

beforeEach(() => {
  vi.useFakeTimers();
  orders = [];
  changes = 0;
  wishes = new Wishes(() => void (changes += 1));
});
afterEach(() => {
  wishes.dispose();
  vi.useRealTimers();
});

const want = (limits: typeof HAS): Promise<void> =>
  wishes.want(
    'gpu',
    limits,
    () =>
      new Promise((answer, refuse) => {
        const { minimum } = limits;
        orders.push({ minimum, answer: () => answer(null), refuse: () => refuse(new Error('no')) });
      })
  );
const shown = (): typeof HAS => wishes.over('gpu', HAS);
const pass = (ms: number): Promise<unknown> => vi.advanceTimersByTimeAsync(ms);

it('shows what is wanted at once, and of no other pool', () => {
  void want(TWO);
  expect([shown(), wishes.over('asr', HAS)]).toEqual([TWO, HAS]);
  expect(changes).toBe(1);
});

it('goes on until the state has it, however often the state says what it was', async () => {
  const done = want(TWO);
  await pass(1);
  expect(wishes.over('gpu', TWO)).toEqual(TWO); // by chance: it is not answered yet
  orders[0].answer();
  await done;
  expect(shown()).toEqual(TWO);
  expect(wishes.over('gpu', TWO)).toEqual(TWO);
  expect(shown()).toEqual(HAS);
});

it('sends one order after the other, and of those that wait only the last', async () => {
  const done = [want(TWO)];
  await pass(1);
  done.push(want(THREE), want(HAS), want(THREE));
  await pass(1);
  expect(orders.map(order => order.minimum)).toEqual([2]);
  orders[0].answer();
  await pass(1);
  expect(orders.map(order => order.minimum)).toEqual([2, 3]);
  orders[1].answer();
  await Promise.all(done);
  expect([orders.length, shown()]).toEqual([2, THREE]);
});

it('gives back what is refused, and says it to who wanted it', async () => {
  const done = expect(want(TWO)).rejects.toThrow('no');
  await pass(1);
  orders[0].refuse();
  await done;
  expect([shown(), changes]).toEqual([HAS, 2]);
});

it('a refusal does not take back what was wanted after it', async () => {
  const refused = expect(want(TWO)).rejects.toThrow('no');
  await pass(1);
  const done = want(THREE);
  orders[0].refuse();
  await refused;
  expect(shown()).toEqual(THREE);
  await pass(1);
  orders[1].answer();
  await done;
  expect(shown()).toEqual(THREE);
});

it('gives way to what somebody else has ordered meanwhile', async () => {
  const done = want(TWO);
  await pass(1);
  orders[0].answer();
  await done;
  await pass(5_000);
  expect([shown(), changes]).toEqual([HAS, 3]);
});

it('is silent after its end', async () => {
  const done = want(TWO);
  await pass(1);
  wishes.dispose();
  orders[0].answer();
  await done;
  await pass(5_000);
  expect(changes).toBe(1);
});
