import { afterEach, beforeEach, expect, it, vi } from 'vitest';

import contract from '../../../tests/contract/snapshot.json';
import { Announcer, compare, newsOf } from '../panel/announcer';
import { parseState } from '../parse_state';

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

it('speaks at once, then at most every ten seconds, and then of what is new', () => {
  const said: string[] = [];
  const announcer = new Announcer(text => said.push(text));
  announcer.request(() => 'one');
  announcer.request(() => 'two');
  announcer.request(() => 'three');
  expect(said).toEqual(['one']);
  vi.advanceTimersByTime(9_999);
  expect(said).toEqual(['one']);
  vi.advanceTimersByTime(1);
  expect(said).toEqual(['one', 'three']);
});

it('keeps quiet when there is nothing to say, and when it is over', () => {
  const said: string[] = [];
  const announcer = new Announcer(text => said.push(text));
  announcer.request(() => '');
  expect(said).toEqual([]);
  announcer.request(() => 'one');
  announcer.request(() => 'two');
  announcer.dispose();
  vi.advanceTimersByTime(60_000);
  expect(said).toEqual(['one']);
});

it('a countdown is no news until it is nearly over', () => {
  const state = parseState(contract);
  const before = newsOf(state, 1_767_001_000, 120);
  expect(compare(before, newsOf(state, 1_767_001_005, 120))).toEqual([]);
  const [change] = compare(before, newsOf(state, 1_767_002_700, 120));
  expect(change.after).toMatchObject({ name: 'gpu', warned: true });
});
