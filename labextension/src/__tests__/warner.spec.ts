import { Notification } from '@jupyterlab/apputils';
import { nullTranslator } from '@jupyterlab/translation';
import { CommandRegistry } from '@lumino/commands';
import { afterEach, beforeEach, expect, it, vi } from 'vitest';

import contract from '../../../tests/contract/snapshot.json';
import type { IState } from '../models';
import { parseState } from '../parse_state';
import { Warner } from '../warner';
import { FakeManager } from './fakes';

const START = 1_767_001_000;
/** When the contract's pool stops. */
const END = 1_767_002_780;

let manager: FakeManager;
let warner: Warner;
let kept: unknown[];
let notify: boolean;

beforeEach(() => {
  vi.useFakeTimers({ now: START * 1000 });
  manager = new FakeManager();
  kept = [];
  notify = true;
  const commands = new CommandRegistry();
  commands.addCommand('flyte-jupyter:keep', { execute: args => kept.push(args) });
  const settings = { warnSeconds: 120, keepSeconds: 7200, showClients: true };
  warner = new Warner(
    manager,
    commands,
    () => ({ ...settings, notify }),
    nullTranslator.load('flyte_jupyter')
  );
});
afterEach(() => {
  warner.dispose();
  Notification.dismiss();
  vi.useRealTimers();
});

const idle = (change: (state: IState) => void = () => undefined): IState => {
  const state = parseState(structuredClone(contract));
  change(state);
  return state;
};
const pool = (state: IState): NonNullable<IState['snapshot']>['pools'][0] => {
  if (!state.snapshot) {
    throw new Error('no snapshot');
  }
  return state.snapshot.pools[0];
};
const said = (): string[] => Notification.manager.notifications.map(each => each.message);
const pass = (until: number): void => void vi.advanceTimersByTime(until * 1000 - Date.now());

it('says two minutes before that a pool stops, once, without any new state', () => {
  manager.set(idle());
  pass(END - 125);
  expect(said()).toEqual([]);
  pass(END - 115);
  expect(said()).toEqual(['Pool gpu stops in 2 min: it is idle.']);
  manager.set(idle());
  expect(said()).toHaveLength(1);
});

it('has a button that keeps the pool, and takes it back when it is kept', () => {
  manager.set(idle());
  pass(END - 100);
  Notification.manager.notifications[0].options.actions?.[0].callback(new MouseEvent('click'));
  expect(kept).toEqual([{ pool: contract.snapshot.pools[0].key, seconds: 7200 }]);
  manager.set(idle(state => void (pool(state).idle_stops_at = END + 7200)));
  expect(said()).toEqual([]);
});

it('offers to keep the pool only to those who may', () => {
  manager.set(idle(state => void (state.refused = { change: 'You may look.' })));
  pass(END - 100);
  const [{ options }] = Notification.manager.notifications;
  expect(options.actions?.map(action => action.label)).toEqual(['Details']);
});

it.each<[string, (state: IState) => void]>([
  ['nobody uses', state => void (pool(state).declared_by = ['gone.ipynb'])],
  ['nobody has called', state => void (pool(state).calls = 0)],
  ['is busy', state => void (pool(state).idle_stops_at = null)],
  [
    'always stops so soon',
    state => {
      pool(state).kept_until = null;
      pool(state).scaling.idle_ttl = 60;
    }
  ]
])('is silent about a pool that %s', (_, change) => {
  manager.set(idle(change));
  pass(END - 60);
  expect(said()).toEqual([]);
});

it('is silent while nobody watches, and where the setting says so', () => {
  manager.set(idle());
  manager.serverStatus = 'connecting'; // what a manager says that nobody asks to watch
  pass(END - 60);
  expect(said()).toEqual([]);
  notify = false;
  manager.set(idle());
  expect(said()).toEqual([]);
});
