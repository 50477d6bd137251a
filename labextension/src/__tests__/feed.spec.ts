import { afterEach, beforeEach, expect, it, vi } from 'vitest';

import type { TimelineAnswer } from '../../../flyte_jupyter/widgets/timeline.js';
import { TimelineFeed } from '../details/feed';
import { FakeManager } from './fakes';

const CHANGES = [
  { id: 1, at: 10, text: 'gpu[0] starts' },
  { id: 2, at: 20, text: 'gpu[0] stops' }
];

let manager: FakeManager;
let feed: TimelineFeed;
let taken: TimelineAnswer[];

beforeEach(() => {
  vi.useFakeTimers();
  manager = new FakeManager();
  manager.answer = () =>
    Promise.resolve({ whole: taken.length === 0, changes: [] } as unknown as TimelineAnswer);
  taken = [];
  feed = new TimelineFeed(manager, 'key', {
    get mark() {
      return taken.length ? `m${taken.length}` : null;
    },
    changes: CHANGES,
    take: answer => void taken.push(answer)
  });
});
afterEach(() => {
  feed.dispose();
  vi.useRealTimers();
  vi.restoreAllMocks();
});

const pass = (ms: number): Promise<unknown> => vi.advanceTimersByTimeAsync(ms);

it('asks once a second with the last mark, and not while nobody looks', async () => {
  await pass(5_000);
  expect(manager.marks).toEqual([]);
  const looking = feed.run();
  await pass(2_100);
  expect(manager.marks).toEqual([null, 'm1', 'm2']);
  looking.dispose();
  await pass(60_000);
  expect(manager.marks).toHaveLength(3);
  feed.run();
  await pass(1);
  expect(manager.marks.slice(3)).toEqual(['m3']);
});

it('has the changes, newest first', async () => {
  feed.run();
  await pass(1);
  expect(feed.changes.map(change => change.id)).toEqual([2, 1]);
});

it('says what went wrong, asks less often, and recovers', async () => {
  vi.spyOn(Math, 'random').mockReturnValue(0.5); // the poll's pauses are random
  const { answer } = manager;
  manager.answer = () => Promise.reject(new Error('There is no pool key.'));
  feed.run();
  await pass(60_000);
  expect(feed.problem).toBe('There is no pool key.');
  expect(manager.marks.length).toBeLessThan(15);
  manager.answer = answer;
  await pass(60_000);
  expect(feed.problem).toBe('');
});
