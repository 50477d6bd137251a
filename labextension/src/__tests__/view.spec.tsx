import { nullTranslator } from '@jupyterlab/translation';
import { Signal } from '@lumino/signaling';
import { act, render, screen } from '@testing-library/react';
import React from 'react';
import { afterEach, beforeEach, expect, it, vi } from 'vitest';

import contract from '../../../tests/contract/snapshot.json';
import type { IState } from '../models';
import { parseState } from '../models';
import type { IPoolManager, Link } from '../tokens';
import { PanelView } from '../view';

const trans = nullTranslator.load('flyte_jupyter');
const START = 1_767_001_000;

interface IFakeManager extends IPoolManager {
  set(state: IState | null, link: Link): void;
}

function fakeManager(): IFakeManager {
  const fake = {
    state: null as IState | null,
    link: 'connecting' as Link,
    problem: '',
    recent: [],
    now: () => Date.now() / 1000,
    watch: () => ({ isDisposed: false, dispose: () => undefined }),
    refresh: vi.fn(() => Promise.resolve()),
    act: () => Promise.resolve(),
    log: () => Promise.resolve(''),
    failure: () => Promise.resolve(''),
    isDisposed: false,
    dispose: () => undefined,
    set(state: IState | null, link: Link): void {
      fake.state = state;
      fake.link = link;
      changed.emit();
    }
  };
  const changed = new Signal<IPoolManager, void>(fake as unknown as IPoolManager);
  return Object.assign(fake, { changed });
}

const execute = vi.fn();
let manager: IFakeManager;

function show(state: unknown, link: Link = 'live'): HTMLElement {
  manager = fakeManager();
  const { container } = render(
    <PanelView
      manager={manager}
      trans={trans}
      execute={execute}
      startDrag={() => undefined}
      reloadPage={() => undefined}
      settings={{ warnSeconds: 120, keepSeconds: 7200, showClients: true }}
    />
  );
  act(() => manager.set(state === null ? null : parseState(state), link));
  return container;
}

beforeEach(() => {
  vi.useFakeTimers({ now: START * 1000 });
  execute.mockClear();
});
afterEach(() => void vi.useRealTimers());

it('counts down by itself, without a state', () => {
  const container = show(contract);
  const timer = container.querySelector('[role="timer"]');
  expect(timer?.textContent).toContain('29:40');
  act(() => void vi.advanceTimersByTime(3000));
  expect(timer?.textContent).toContain('29:37');
});

it('shows names as text', () => {
  const odd = structuredClone(contract);
  odd.snapshot.pools[0].name = '<img src=x onerror=alert(1)>';
  const container = show(odd);
  expect(container.querySelector('img')).toBeNull();
  expect(container.textContent).toContain('<img src=x onerror=alert(1)>');
});

it.each<[string, unknown, Link]>([
  ['connecting', null, 'connecting'],
  ['lost', null, 'lost'],
  ['absent', null, 'absent'],
  ['refused', null, 'refused'],
  ['no-broker', { ...contract, state: 'no-broker', snapshot: null }, 'live'],
  ['version-mismatch', { ...contract, state: 'version-mismatch', snapshot: null }, 'live'],
  ['unavailable', { ...contract, state: 'unavailable', snapshot: null, message: 'hangs' }, 'live'],
  ['no-pool', { ...contract, snapshot: { ...contract.snapshot, pools: [] } }, 'live']
])('says something and offers one action: %s', (kind, state, link) => {
  const container = show(state, link);
  expect(container.querySelector(`.fj-Hint[data-kind="${kind}"]`)).not.toBeNull();
  expect(container.querySelectorAll('.fj-Hint button')).toHaveLength(1);
});

it('keeps the last state in sight when the connection is lost', () => {
  const container = show(contract, 'lost');
  expect(container.querySelector('.fj-mod-stale .fj-Pool')).not.toBeNull();
});

it('scales by one', () => {
  show(contract);
  act(() => screen.getAllByRole('button', { name: 'Raise the minimum' })[0].click());
  const pool = contract.snapshot.pools[0].key;
  expect(execute).toHaveBeenCalledWith('flyte-jupyter:scale', { pool, minimum: 2, maximum: 3 });
});

it('every button has a name', () => {
  show(contract);
  for (const button of screen.getAllByRole('button')) {
    expect(button.getAttribute('aria-label') ?? button.textContent).toBeTruthy();
  }
});
