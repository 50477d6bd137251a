import { nullTranslator } from '@jupyterlab/translation';
import { act, render, screen } from '@testing-library/react';
import React from 'react';
import { afterEach, beforeEach, expect, it, vi } from 'vitest';

import contract from '../../../tests/contract/snapshot.json';
import { parseState } from '../parse_state';
import { recentOf } from '../recent';
import type { IViewProps } from '../view_context';
import { Frame } from '../view_context';
import type { ServerStatus } from '../tokens';
import { Panel } from '../panel/panel';
import { FakeManager } from './fakes';

const trans = nullTranslator.load('flyte_jupyter');
const START = 1_767_001_000;

const execute = vi.fn();
let manager: FakeManager;

const view = (of: FakeManager): IViewProps => ({
  manager: of,
  trans,
  execute,
  startDrag: () => undefined,
  reloadPage: () => undefined,
  settings: { warnSeconds: 120, keepSeconds: 7200, showClients: true, notify: true }
});

function show(state: unknown, serverStatus: ServerStatus = 'live'): HTMLElement {
  manager = new FakeManager();
  const { container } = render(
    <Frame view={view(manager)} visible>
      {() => <Panel />}
    </Frame>
  );
  act(() => manager.set(state === null ? null : parseState(state), serverStatus));
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

it('says what a preload has said last, as text, while it runs and can be seen', async () => {
  manager = new FakeManager();
  manager.log.mockResolvedValue('shard 1/4\rshard 2/4 \u001b[31m<b>\n\n');
  const at = view(manager);
  const panel = (seen: boolean): JSX.Element => (
    <Frame view={at} visible={seen}>
      {() => <Panel />}
    </Frame>
  );
  const { container, rerender } = render(panel(true));
  const said = (): string[] =>
    [...container.querySelectorAll('.fj-Said')].map(line => line.textContent ?? '');
  act(() => manager.set(parseState(contract)));
  await act(() => vi.advanceTimersByTimeAsync(100));
  expect(said()).toEqual(['“shard 2/4 \\u001b[31m<b>”']);
  manager.log.mockResolvedValue('x'.repeat(5000));
  await act(() => vi.advanceTimersByTimeAsync(3100));
  expect(said()).toEqual([`“${'x'.repeat(119)}…”`]);
  rerender(panel(false));
  const asked = manager.log.mock.calls;
  expect(new Set(asked.map(String))).toEqual(new Set(['00000002,5']));
  const before = asked.length;
  await act(() => vi.advanceTimersByTimeAsync(20_000));
  expect(manager.log).toHaveBeenCalledTimes(before);
  rerender(panel(true));
  const ready = structuredClone(contract);
  ready.snapshot.pools[0].replicas[2].state = 'ready';
  act(() => manager.set(parseState(ready)));
  expect(said()).toEqual([]);
});

it('shows nothing of a preload whose log cannot be had', async () => {
  const container = show(contract);
  manager.log.mockRejectedValue(new Error('no'));
  await act(() => vi.advanceTimersByTimeAsync(10_000));
  expect(container.querySelector('.fj-Said')).toBeNull();
});

it('asks for no log where one may not read it', async () => {
  show({ ...contract, refused: { logs: 'You may not read logs.' } });
  await act(() => vi.advanceTimersByTimeAsync(10_000));
  expect(manager.log).not.toHaveBeenCalled();
});

it('asks for no log of a pool that is folded up', async () => {
  show(contract);
  act(() => screen.getByRole('button', { name: 'Replicas of gpu' }).click());
  await act(() => vi.advanceTimersByTimeAsync(10_000));
  expect(manager.log).not.toHaveBeenCalled();
});

it('says how long a call is likely to wait, and when that was not true', () => {
  const container = show(contract);
  const waits = (): string | undefined =>
    container.querySelector('.fj-Queue .fj-Number')?.textContent?.replace(/\u00a0/g, ' ');
  expect(waits()).toBe('waits 0:04 · about 7 s');
  act(() => void vi.advanceTimersByTime(3000));
  expect(waits()).toBe('waits 0:07 · about 4 s');
  act(() => void vi.advanceTimersByTime(5000));
  expect(waits()).toBe('waits 0:12 · longer than usual');
});

it('says only how long a call has waited where nothing else is known', () => {
  const unknown = structuredClone(contract) as { snapshot: { pools: { queue: unknown[] }[] } };
  const [request] = contract.snapshot.pools[0].queue;
  const older: Partial<typeof request> = { ...request }; // of a server that does not know better
  delete older.expected_at;
  unknown.snapshot.pools[0].queue = [{ ...request, lease: 'x', expected_at: null }, older];
  const container = show(unknown);
  const waits = [...container.querySelectorAll('.fj-Queue .fj-Number')];
  expect(waits.map(each => each.textContent)).toEqual(['waits 0:04', 'waits 0:04']);
});

it('is not drawn while it cannot be seen, and is up to date when it can', () => {
  manager = new FakeManager();
  const drawn = vi.fn(() => null);
  const at = view(manager);
  const { rerender } = render(
    <Frame view={at} visible={false}>
      {drawn}
    </Frame>
  );
  drawn.mockClear();
  act(() => manager.set(parseState(contract)));
  act(() => void vi.advanceTimersByTime(3000));
  expect(drawn).not.toHaveBeenCalled();
  rerender(
    <Frame view={at} visible>
      {() => <Panel />}
    </Frame>
  );
  expect(screen.getByRole('button', { name: 'gpu' })).not.toBeNull();
  act(() => manager.set(null, 'absent'));
  expect(screen.queryByRole('button', { name: 'gpu' })).toBeNull();
});

it('shows names as text', () => {
  const odd = structuredClone(contract);
  odd.snapshot.pools[0].name = '<img src=x onerror=alert(1)>';
  const container = show(odd);
  expect(container.querySelector('img')).toBeNull();
  expect(container.textContent).toContain('<img src=x onerror=alert(1)>');
});

it.each<[string, unknown, ServerStatus]>([
  ['connecting', null, 'connecting'],
  ['lost', null, 'lost'],
  ['absent', null, 'absent'],
  ['refused', null, 'refused'],
  ['no-broker', { ...contract, state: 'no-broker', snapshot: null }, 'live'],
  ['version-mismatch', { ...contract, state: 'version-mismatch', snapshot: null }, 'live'],
  ['unavailable', { ...contract, state: 'unavailable', snapshot: null, message: 'hangs' }, 'live'],
  ['no-pool', { ...contract, snapshot: { ...contract.snapshot, pools: [] } }, 'live']
])('says something and offers one action: %s', (kind, state, serverStatus) => {
  const container = show(state, serverStatus);
  expect(container.querySelector(`.fj-Hint[data-kind="${kind}"]`)).not.toBeNull();
  expect(container.querySelectorAll('.fj-Hint button')).toHaveLength(1);
});

it('keeps the last state in sight when the connection is lost', () => {
  const container = show(contract, 'lost');
  expect(container.querySelector('.fj-mod-stale .fj-Pool')).not.toBeNull();
});

it('speaks of an old state only where there is one', () => {
  const text = (state: unknown): string | null | undefined =>
    show(state, 'lost').querySelector('.fj-Hint')?.textContent;
  expect(text(contract)).toContain('What is shown below is old');
  expect(text({ ...contract, state: 'no-broker', snapshot: null })).not.toContain('below');
});

it('scales by one', () => {
  show(contract);
  act(() => screen.getAllByRole('button', { name: 'Raise the minimum' })[0].click());
  const pool = contract.snapshot.pools[0].key;
  expect(execute).toHaveBeenCalledWith('flyte-jupyter:scale', { pool, minimum: 2, maximum: 3 });
});

it('offers nothing that is refused, says why as text, and can be reached to say it', () => {
  const why = 'You may only look <b>here</b>\x1b[31m';
  const container = show({ ...contract, refused: { change: why, logs: 'No logs.' } });
  const may = /^(Refresh|Insert|Replicas of|More actions|gpu$|asr$|embed$)/;
  const refused = screen
    .getAllByRole('button')
    .filter(button => !may.test(button.getAttribute('aria-label') ?? button.textContent ?? ''));
  expect(refused.length).toBeGreaterThan(10);
  for (const button of refused) {
    expect(button.getAttribute('aria-disabled')).toBe('true');
    expect(button.title).toBe(
      button.textContent === 'Show' ? 'No logs.' : 'You may only look <b>here</b>\\u001b[31m'
    );
    act(() => button.click());
  }
  expect(execute).not.toHaveBeenCalled();
  expect(container.querySelector('.fj-Header')?.textContent).toContain('You may look');
});

it('a step counts from the last one, drawn or not', () => {
  show(contract);
  const [pool] = contract.snapshot.pools;
  act(() => {
    const [raise] = screen.getAllByRole('button', { name: 'Raise the minimum' });
    raise.click();
    const asked = structuredClone(contract);
    asked.snapshot.pools[0].scaling.min_replicas = 2;
    manager.set(parseState(asked));
    raise.click(); // nothing is drawn in between
  });
  const minima = execute.mock.calls.map(([, limits]) => (limits as { minimum: number }).minimum);
  expect(minima).toEqual([2, 3]);
  expect(execute).toHaveBeenLastCalledWith('flyte-jupyter:scale', {
    pool: pool.key,
    minimum: 3,
    maximum: 3
  });
});

it('every button has a name', () => {
  show(contract);
  for (const button of screen.getAllByRole('button')) {
    expect(button.getAttribute('aria-label') ?? button.textContent).toBeTruthy();
  }
});

it('shows how full a device is, and of what', () => {
  const GIB = 2 ** 30;
  const measured = structuredClone(contract) as { usage: object };
  const odd = '<b>x</b>\x1b[31m';
  const owner = { label: 'gpu[0]', kind: 'replica', replica: '00000000', pid: 1, user: null };
  measured.usage = {
    measured_at: 1,
    problem: null,
    devices: {
      'GPU-0': {
        used_bytes: 12 * GIB,
        utilization: 83,
        temperature_c: 62,
        owners: [
          { ...owner, bytes: 6 * GIB },
          { ...owner, label: odd, kind: 'process', replica: null, pid: 2, user: odd, bytes: GIB }
        ]
      }
    },
    replicas: { '00000000': { memory_bytes: 3 * GIB } }
  };
  const container = show(measured);
  const meter = screen.getByRole('meter', { name: 'Memory of GPU 0' });
  expect(meter.getAttribute('aria-valuenow')).toBe('50');
  expect(meter.getAttribute('aria-valuetext')).toBe('12.0 GiB of 24.0 GiB');
  const device = container.querySelector('[data-device="GPU-0"]')?.textContent;
  expect(device).toContain('12.0 GiB of 24.0 GiB · 83 % busy · 62 °C');
  expect(device).toContain('gpu[0]6.0 GiB<b>x</b>\\u001b[31m (<b>x</b>\\u001b[31m)1.0 GiB');
  expect(container.querySelector('b')).toBeNull();
  const replica = container.querySelector('[data-replica="00000000"]')?.textContent;
  expect(replica).toContain('6.0 GiB GPU memory · 3.0 GiB RAM');
  expect(container.querySelector('[data-device="GPU-1"]')?.textContent).toContain('24.0 GiB');
});

it('counts the cold starts that were avoided', () => {
  expect(show(contract).textContent).toContain('cold starts avoided: 38 (about 26 min saved)');
});

it('says of a slot that is only held who holds it, and shows no call', () => {
  const held = show(contract).querySelector('[data-replica="00000001"]');
  expect(held?.textContent).toContain('held by train.ipynb');
  expect(held?.querySelector('.fj-Call')).toBeNull();
});

it('shows how calls ended, also to those who cannot see the mark', () => {
  const container = show(contract);
  act(() => {
    manager.recent = recentOf(parseState(contract), [], 10);
    manager.set(manager.state);
  });
  const rows = [...container.querySelectorAll('.fj-Recent > li')].map(row => row.textContent);
  expect(rows[0]).toContain('✓load');
  expect(rows[0]).toContain('succeeded');
  expect(rows[1]).toContain('✕<img src=x>');
  expect(rows[1]).toContain('failed');
});
