/** The panel's content: a function of the manager's state. It keeps nothing but which rows are open. */

import type { TranslationBundle } from '@jupyterlab/translation';
import {
  addIcon,
  caretDownIcon,
  caretRightIcon,
  closeIcon,
  codeIcon,
  ellipsesIcon,
  refreshIcon
} from '@jupyterlab/ui-components';
import type { ReadonlyPartialJSONObject } from '@lumino/coreutils';
import React, { useContext, useEffect, useId, useRef, useState, useSyncExternalStore } from 'react';

import { Announcer, compare, newsOf } from './announcer';
import type { INews } from './announcer';
import type {
  IDevice,
  ILease,
  IPool,
  IRecent,
  IReplica,
  IState,
  PoolState,
  ReplicaState
} from './models';
import { poolEnd, stepped } from './models';
import type { IPoolManager } from './tokens';
import {
  countdown,
  deviceName,
  duration,
  lastLine,
  size,
  stateCounts,
  taskCell,
  visible
} from './words';

export interface IPanelProps {
  manager: IPoolManager;
  trans: TranslationBundle;
  /** Runs a command; all verbs are commands. */
  execute: (command: string, args?: ReadonlyPartialJSONObject) => void;
  startDrag: (press: PointerEvent, source: string, label: string) => void;
  reloadPage: () => void;
  settings: { warnSeconds: number; keepSeconds: number; showClients: boolean };
}

const Panel = React.createContext<IPanelProps | null>(null);

function usePanel(): IPanelProps {
  const panel = useContext(Panel);
  if (!panel) {
    throw new Error('rendered outside of the panel');
  }
  return panel;
}

/** The server's time, once a second; one timer for all that count. */
const Now = React.createContext(0);

export function PanelView(props: IPanelProps): JSX.Element {
  const { manager, trans } = props;
  const [now, setNow] = useState(() => manager.now());
  const [, redraw] = useState(0);
  useEffect(() => {
    const onChange = (): void => {
      setNow(manager.now());
      redraw(count => count + 1);
    };
    manager.changed.connect(onChange);
    const timer = window.setInterval(() => setNow(manager.now()), 1000);
    return () => {
      manager.changed.disconnect(onChange);
      window.clearInterval(timer);
    };
  }, [manager]);
  const { state } = manager;
  const snapshot = state?.snapshot ?? null;
  const hint = situation(props);
  return (
    <Panel.Provider value={props}>
      <Now.Provider value={now}>
        <Header />
        <div className="fj-Scroll">
          {hint && <Hint {...hint} />}
          {snapshot && (
            <div className={isStale(manager) ? 'fj-Content fj-mod-stale' : 'fj-Content'}>
              <Devices
                devices={snapshot.devices}
                problem={snapshot.device_problem}
                pools={snapshot.pools}
              />
              <Pools pools={snapshot.pools} />
              <Queue pools={snapshot.pools} />
              <Recent recent={manager.recent} />
              {props.settings.showClients && <Clients state={state} />}
            </div>
          )}
        </div>
        <Live trans={trans} />
      </Now.Provider>
    </Panel.Provider>
  );
}

function isStale({ link }: IPoolManager): boolean {
  return link === 'lost' || link === 'absent' || link === 'refused';
}

interface IHint {
  kind: string;
  title: string;
  text: string;
  detail?: string;
  action: string;
  act: () => void;
}

/** What to say when there is nothing, or nothing new, to show: a text and one action. */
export function situation(props: IPanelProps): IHint | null {
  const { manager, trans, execute, reloadPage } = props;
  const { state, link, problem } = manager;
  const again = (): void => void manager.refresh();
  switch (link) {
    case 'absent':
      return {
        kind: 'absent',
        title: trans.__('The Jupyter server has no flyte_jupyter'),
        text: trans.__(
          'Its server extension is not enabled. Install flyte-jupyter into the environment that runs Jupyter, restart Jupyter, then try again. Task cells work without this panel.'
        ),
        action: trans.__('Try again'),
        act: again
      };
    case 'refused':
      return {
        kind: 'refused',
        title: trans.__('The server does not let you in'),
        text: trans.__(
          'You may have been signed out, or you may not see the pools of this server.'
        ),
        detail: problem,
        action: trans.__('Reload the page'),
        act: reloadPage
      };
    case 'lost':
      return {
        kind: 'lost',
        title: trans.__('No connection to the Jupyter server'),
        text: state
          ? trans.__(
              'What is shown below is old. Your pools go on running; the panel reconnects by itself.'
            )
          : trans.__('The panel tries again by itself.'),
        detail: problem,
        action: trans.__('Try now'),
        act: again
      };
  }
  if (!state) {
    return {
      kind: 'connecting',
      title: trans.__('Asking the server…'),
      text: trans.__('The state of your pools appears here.'),
      action: trans.__('Ask again'),
      act: again
    };
  }
  switch (state.state) {
    case 'no-broker':
      return {
        kind: 'no-broker',
        title: trans.__('The pool service is not running'),
        text: trans.__('It starts by itself with the first task that a notebook calls.'),
        action: trans.__('Insert an example'),
        act: () => execute('flyte-jupyter:create-example')
      };
    case 'version-mismatch':
      return {
        kind: 'version-mismatch',
        title: trans.__('Two versions of flyte_jupyter'),
        text: trans.__(
          'The Jupyter server has %1, the pool service %2. Task cells work; for the panel, install the same version in both environments and restart Jupyter.',
          state.versions.server,
          state.versions.broker ?? '?'
        ),
        detail: state.message ?? undefined,
        action: trans.__('Check again'),
        act: again
      };
    case 'unavailable':
      return {
        kind: 'unavailable',
        title: trans.__('The pool service does not answer'),
        text: state.message ?? '',
        action: trans.__('Try again'),
        act: again
      };
  }
  if (state.snapshot && !state.snapshot.pools.length) {
    return {
      kind: 'no-pool',
      title: trans.__('No pools yet'),
      text: trans.__(
        'A pool keeps kernels warm: what a task loads stays loaded. It appears here with the first call of a task.'
      ),
      action: trans.__('Insert an example'),
      act: () => execute('flyte-jupyter:create-example')
    };
  }
  return null;
}

function Hint({ kind, title, text, detail, action, act }: IHint): JSX.Element {
  return (
    <section className="fj-Hint" data-kind={kind}>
      <h3>{title}</h3>
      {text && <p>{text}</p>}
      {detail && <p className="fj-Detail">{visible(detail, 400)}</p>}
      <button type="button" className="jp-mod-styled jp-mod-accept fj-Hint-action" onClick={act}>
        {action}
      </button>
    </section>
  );
}

function Header(): JSX.Element {
  const { manager, trans, execute } = usePanel();
  const { state } = manager;
  return (
    <header className="fj-Header">
      <div className="fj-Header-row">
        <h2>{trans.__('Flyte pools')}</h2>
        <IconButton
          label={trans.__('Refresh')}
          icon={refreshIcon}
          onClick={() => execute('flyte-jupyter:refresh')}
        />
        <IconButton
          label={trans.__('Insert an example pool')}
          icon={addIcon}
          onClick={() => execute('flyte-jupyter:create-example')}
        />
      </div>
      <p
        className="fj-Service"
        title={state?.broker_pid ? trans.__('pid %1', state.broker_pid) : ''}
      >
        {serviceLine(manager, trans)}
      </p>
    </header>
  );
}

function serviceLine(manager: IPoolManager, trans: TranslationBundle): string {
  const { state, link } = manager;
  if (isStale(manager)) {
    return trans.__('no connection');
  }
  if (!state) {
    return trans.__('connecting…');
  }
  if (!state.snapshot) {
    return state.state === 'no-broker'
      ? trans.__('service: not running')
      : trans.__('service: no answer');
  }
  const { pools, clients } = state.snapshot;
  const notebooks = clients.filter(client => client.kind === 'notebook').length;
  const words = [
    link === 'connecting' ? trans.__('reconnecting…') : trans.__('service: running'),
    trans._n('%1 pool', '%1 pools', pools.length),
    trans._n('%1 notebook', '%1 notebooks', notebooks)
  ];
  return words.join(' · ');
}

// --- devices

function Devices(props: {
  devices: IDevice[];
  problem: string | null;
  pools: IPool[];
}): JSX.Element | null {
  const { trans, manager } = usePanel();
  const { devices, problem, pools } = props;
  const wanted = pools.some(pool => pool.devices.count > 0);
  if (!devices.length && !problem) {
    return (
      <Section title={trans.__('GPUs')}>
        <p className="fj-Quiet">{trans.__('none found; tasks run on the CPU')}</p>
      </Section>
    );
  }
  return (
    <Section title={trans.__('GPUs')}>
      {problem && (
        <div className={wanted ? 'fj-Problem' : 'fj-Quiet'} data-kind="no-gpu">
          <p>{trans.__('No GPU can be used: %1', visible(problem, 300))}</p>
          <button type="button" className="fj-Link" onClick={() => void manager.refresh()}>
            {trans.__('Check again')}
          </button>
        </div>
      )}
      {devices.length > 0 && (
        <ul className="fj-Devices">
          {devices.map(device => (
            <Device key={device.uuid} device={device} />
          ))}
        </ul>
      )}
    </Section>
  );
}

function Device({ device }: { device: IDevice }): JSX.Element {
  const { trans } = usePanel();
  const holder = device.replica_name;
  return (
    <li className="fj-Device" title={device.uuid}>
      <div className="fj-Row">
        <span className="fj-Grow fj-Name">
          {trans.__('GPU %1', device.index)} · {deviceName(device)}
        </span>
        {device.memory_bytes > 0 && <span className="fj-Number">{size(device.memory_bytes)}</span>}
      </div>
      <div className={holder ? 'fj-Holder' : 'fj-Holder fj-mod-free'}>
        {holder ? trans.__('held by %1', visible(holder)) : trans.__('free')}
      </div>
    </li>
  );
}

// --- pools

function Pools({ pools }: { pools: IPool[] }): JSX.Element | null {
  const { trans } = usePanel();
  if (!pools.length) {
    return null;
  }
  return (
    <Section title={trans.__('Pools')}>
      <ul className="fj-Pools" onKeyDown={moveByArrow}>
        {pools.map(pool => (
          <Pool key={pool.key} pool={pool} />
        ))}
      </ul>
    </Section>
  );
}

/** Up and down go from one pool's row to the next, Home and End to the first and last. */
function moveByArrow(event: React.KeyboardEvent<HTMLElement>): void {
  const rows = [...event.currentTarget.querySelectorAll<HTMLElement>('.fj-Pool-toggle')];
  const at = rows.findIndex(row => row === event.target);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[event.key];
  if (at >= 0 && to !== undefined && rows[to]) {
    event.preventDefault();
    rows[to].focus();
  }
}

function Pool({ pool }: { pool: IPool }): JSX.Element {
  const { trans, execute, startDrag, manager } = usePanel();
  const [open, setOpen] = useState(true);
  const details = useId();
  const { key, state, failure } = pool;
  const name = visible(pool.name);
  const Caret = open ? caretDownIcon : caretRightIcon;
  const spawned = manager.state?.spawned[key];
  return (
    <li className="fj-Pool" data-state={state}>
      <div
        className="fj-Pool-head"
        data-pool={key}
        onPointerDown={event => startDrag(event.nativeEvent, taskCell(pool.name), name)}
        title={trans.__('Drag into a notebook for a cell that runs in this pool')}
      >
        <div className="fj-Row">
          <button
            type="button"
            className="fj-Pool-toggle fj-Grow"
            aria-expanded={open}
            aria-controls={details}
            title={name}
            onClick={() => setOpen(!open)}
          >
            <Caret.react className="fj-Caret" tag="span" width="16px" height="16px" />
            <StateMark state={state} />
            <span className="fj-Name">{name}</span>
            {pool.single_use && <span className="fj-Tag">{trans.__('fresh per call')}</span>}
            {pool.retiring && <span className="fj-Tag">{trans.__('replaced')}</span>}
          </button>
          <PoolTimer pool={pool} />
          <IconButton
            label={trans.__('Insert a task cell for %1', name)}
            icon={codeIcon}
            onClick={() => execute('flyte-jupyter:insert-task-cell', { pool: key })}
          />
          <IconButton
            label={trans.__('More actions for %1', name)}
            icon={ellipsesIcon}
            hasMenu
            onClick={openMenu}
          />
        </div>
        <p className="fj-Counts">{poolLine(pool, trans)}</p>
      </div>
      <div id={details} hidden={!open}>
        {failure && <Failure pool={pool} />}
        {pool.waits_for && (
          <p className="fj-Note fj-mod-warn">
            {trans.__('waits for a GPU; held now: %1', visible(pool.waits_for, 300))}
          </p>
        )}
        {pool.notes.map(note => (
          <p key={note} className="fj-Note fj-mod-warn">
            {visible(note, 300)}
          </p>
        ))}
        {spawned && (
          <p className="fj-Note">
            {trans.__('starts slowly, not forked: %1', visible(spawned, 300))}
          </p>
        )}
        {pool.replicas.length > 0 && (
          <ul className="fj-Replicas" aria-label={trans.__('Replicas of %1', name)}>
            {pool.replicas.map(replica => (
              <Replica key={replica.id} replica={replica} pool={pool} />
            ))}
          </ul>
        )}
        {!pool.single_use && <PoolControls pool={pool} />}
      </div>
    </li>
  );
}

/** "2 ready · 1 busy · queue 3", or the state where that says more. */
export function poolLine(pool: IPool, trans: TranslationBundle): string {
  const words = stateCounts(pool.replicas).map(
    ([state, count]) => `${count} ${stateWord(state, trans)}`
  );
  if (!words.length || pool.state === 'failed' || pool.state === 'waiting') {
    words.unshift(stateWord(pool.state, trans));
  }
  if (pool.waiting) {
    words.push(trans.__('queue %1', pool.waiting));
  }
  const { min_replicas: least, max_replicas: most } = pool.scaling;
  words.push(least === most ? trans.__('fixed at %1', most) : trans.__('%1 to %2', least, most));
  // A line breaks between the parts, not in them.
  return words.map(word => word.replace(/ /g, '\u00a0')).join(' · ');
}

function PoolTimer({ pool }: { pool: IPool }): JSX.Element | null {
  const { trans, settings } = usePanel();
  const now = useContext(Now);
  const end = poolEnd(pool);
  if (!end) {
    return pool.kept_until ? (
      <span className="fj-Timer" role="timer" title={trans.__('kept warm for so long')}>
        <Clock />
        <span className="fj-Hidden">{trans.__('kept for')} </span>
        {countdown(pool.kept_until - now)}
      </span>
    ) : null;
  }
  const left = end.at - now;
  const soon = left <= settings.warnSeconds;
  const what = end.kept ? trans.__('kept; idle off in') : trans.__('idle off in');
  return (
    <span
      className={soon ? 'fj-Timer fj-mod-soon' : 'fj-Timer'}
      role="timer"
      title={`${what} ${countdown(left)}`}
    >
      {soon ? <span aria-hidden="true">!</span> : <Clock />}
      <span className="fj-Hidden">{what} </span>
      {countdown(left)}
    </span>
  );
}

/** Drawn: fonts seldom have the character. */
function Clock(): JSX.Element {
  return (
    <svg viewBox="0 0 16 16" aria-hidden="true">
      <circle cx="8" cy="8" r="6.5" />
      <path d="M8 4v4l3 2" />
    </svg>
  );
}

function PoolControls({ pool }: { pool: IPool }): JSX.Element {
  const { trans, execute, settings } = usePanel();
  const { key, scaling } = pool;
  const step = (limit: 'minimum' | 'maximum', by: 1 | -1): void =>
    execute('flyte-jupyter:scale', { pool: key, ...stepped(scaling, limit, by) });
  return (
    <div
      className="fj-Controls"
      role="group"
      aria-label={trans.__('Replicas of %1', visible(pool.name))}
    >
      <Stepper
        label={trans.__('min')}
        value={scaling.min_replicas}
        least={0}
        less={trans.__('Lower the minimum')}
        more={trans.__('Raise the minimum')}
        onStep={by => step('minimum', by)}
      />
      <Stepper
        label={trans.__('max')}
        value={scaling.max_replicas}
        least={1}
        less={trans.__('Lower the maximum')}
        more={trans.__('Raise the maximum')}
        onStep={by => step('maximum', by)}
      />
      <span className="fj-Verbs">
        {pool.replicas.length === 0 && (
          <TextButton
            label={trans.__('Warm now')}
            onClick={() => execute('flyte-jupyter:warm', { pool: key })}
          />
        )}
        {pool.replicas.length > 0 && (
          <>
            <TextButton
              label={
                pool.kept_until
                  ? trans.__('Stop keeping')
                  : trans.__('Keep %1', duration(settings.keepSeconds))
              }
              onClick={() => execute('flyte-jupyter:keep', { pool: key })}
            />
            <TextButton
              label={trans.__('Stop…')}
              onClick={() => execute('flyte-jupyter:stop', { pool: key })}
            />
          </>
        )}
      </span>
    </div>
  );
}

function Stepper(props: {
  label: string;
  value: number;
  least: number;
  less: string;
  more: string;
  onStep: (by: 1 | -1) => void;
}): JSX.Element {
  const { label, value, least, less, more, onStep } = props;
  return (
    <span className="fj-Stepper">
      <button
        type="button"
        aria-label={less}
        title={less}
        disabled={value <= least}
        onClick={() => onStep(-1)}
      >
        −
      </button>
      <span>
        {label} <output>{value}</output>
      </span>
      <button type="button" aria-label={more} title={more} onClick={() => onStep(1)}>
        +
      </button>
    </span>
  );
}

function Failure({ pool }: { pool: IPool }): JSX.Element | null {
  const { trans, execute } = usePanel();
  const now = useContext(Now);
  const { failure, key } = pool;
  if (!failure) {
    return null;
  }
  return (
    <div className="fj-Problem" data-kind="failure">
      <p>
        {trans.__('%1 did not start:', visible(failure.replica))}{' '}
        <code>{visible(lastLine(failure.cause), 300)}</code>
      </p>
      <p>
        {failure.retry_at === null
          ? trans._n('Given up after %1 attempt.', 'Given up after %1 attempts.', failure.attempts)
          : trans.__('Next attempt in %1.', countdown(failure.retry_at - now))}
      </p>
      <button
        type="button"
        className="fj-Link"
        onClick={() => execute('flyte-jupyter:show-failure', { pool: key })}
      >
        {trans.__('Show')}
      </button>
      <button
        type="button"
        className="fj-Link"
        onClick={() => execute('flyte-jupyter:warm', { pool: key })}
      >
        {trans.__('Retry')}
      </button>
    </div>
  );
}

function Replica({ replica, pool }: { replica: IReplica; pool: IPool }): JSX.Element {
  const { trans, manager } = usePanel();
  const now = useContext(Now);
  const { id, state, leases, ready_at, started_at, stops_at } = replica;
  const since = leases.length
    ? Math.min(...leases.map(lease => lease.since))
    : ready_at === null
      ? started_at
      : null;
  const devices = manager.state?.snapshot?.devices ?? [];
  const held = replica.devices.map(
    uuid => devices.find(device => device.uuid === uuid)?.index ?? '?'
  );
  const remarks = [
    ...(held.length ? [trans.__('GPU %1', held.join(', '))] : []),
    ...(stops_at !== null && stops_at !== pool.idle_stops_at
      ? [trans.__('off in %1', countdown(stops_at - now))]
      : []),
    ...(replica.generation_current ? [] : [trans.__('old preload')]),
    ...((state === 'draining' || state === 'stopping') && replica.why
      ? [visible(replica.why, 120)]
      : [])
  ];
  const name = visible(replica.name);
  return (
    <li
      className="fj-Replica"
      data-replica={id}
      data-state={state}
      title={visible(replica.why, 300)}
    >
      <div className="fj-Row">
        <StateMark state={state} />
        <span className="fj-Name">{name}</span>
        <span className="fj-Grow fj-State">
          {stateWord(state, trans)}
          {since !== null && <span className="fj-Number"> {countdown(now - since)}</span>}
        </span>
        <span className="fj-Number fj-Quiet" title={trans.__('age')}>
          {duration(Math.floor(now - started_at))}
        </span>
        <IconButton
          label={trans.__('More actions for %1', name)}
          icon={ellipsesIcon}
          hasMenu
          onClick={openMenu}
        />
      </div>
      {remarks.length > 0 && <div className="fj-Remarks">{remarks.join(' · ')}</div>}
      {leases.length > 0 && (
        <ul className="fj-Calls" aria-label={trans.__('Calls on %1', name)}>
          {leases.map(lease => (
            <Call
              key={lease.lease}
              lease={lease}
              verb={trans.__('Stop call %1', visible(lease.task))}
            />
          ))}
        </ul>
      )}
    </li>
  );
}

function Call({
  lease,
  verb,
  waits
}: {
  lease: ILease;
  verb: string;
  waits?: boolean;
}): JSX.Element {
  const { trans, execute } = usePanel();
  const now = useContext(Now);
  const time = countdown(now - lease.since);
  return (
    <li className="fj-Call fj-Row">
      <span className="fj-Grow fj-Name" title={`${visible(lease.task)} · ${visible(lease.client)}`}>
        {visible(lease.task)} <span className="fj-Quiet">{visible(lease.client)}</span>
      </span>
      <span className="fj-Number">{waits ? trans.__('waits %1', time) : time}</span>
      <IconButton
        label={verb}
        icon={closeIcon}
        onClick={() => execute('flyte-jupyter:cancel', { lease: lease.lease })}
      />
    </li>
  );
}

// --- queue, recent, clients

function Queue({ pools }: { pools: IPool[] }): JSX.Element | null {
  const { trans } = usePanel();
  const total = pools.reduce((sum, pool) => sum + pool.waiting, 0);
  if (!total) {
    return null;
  }
  const shown = pools.reduce((sum, pool) => sum + pool.queue.length, 0);
  return (
    <Section title={trans.__('Queue (%1)', total)}>
      {pools
        .filter(pool => pool.queue.length)
        .map(pool => (
          <ol
            key={pool.key}
            className="fj-Queue"
            aria-label={trans.__('Waiting for %1', visible(pool.name))}
          >
            {pool.queue.map(request => (
              <Call
                key={request.lease}
                lease={request}
                verb={trans.__('Withdraw call %1', visible(request.task))}
                waits
              />
            ))}
          </ol>
        ))}
      {shown < total && <p className="fj-Quiet">{trans.__('and %1 more', total - shown)}</p>}
    </Section>
  );
}

function Recent({ recent }: { recent: readonly IRecent[] }): JSX.Element | null {
  const { trans } = usePanel();
  if (!recent.length) {
    return null;
  }
  return (
    <Section title={trans.__('Recent')}>
      <ul className="fj-Recent">
        {recent.map(({ id, kind, what, where, seconds }) => (
          <li key={`${kind}-${id}`} className="fj-Row" data-kind={kind}>
            <span aria-hidden="true">{{ call: '•', failure: '✕', stopped: '○' }[kind]}</span>
            <span className="fj-Grow fj-Name" title={`${visible(what)} · ${visible(where, 300)}`}>
              {kind === 'call'
                ? visible(what)
                : kind === 'failure'
                  ? trans.__('%1 did not start', visible(what))
                  : trans.__('%1 stopped', visible(what))}
            </span>
            {seconds !== null && <span className="fj-Number">{duration(seconds)}</span>}
          </li>
        ))}
      </ul>
    </Section>
  );
}

function Clients({ state }: { state: IState | null }): JSX.Element | null {
  const { trans } = usePanel();
  const clients = (state?.snapshot?.clients ?? []).filter(
    ({ kind }) => kind !== 'replica' && kind !== 'server' && kind !== 'cli'
  );
  if (!clients.length) {
    return null;
  }
  return (
    <Section title={trans.__('Connected')}>
      <ul className="fj-Clients">
        {clients.map(({ client, label, kind, pid, leases, waiting }) => (
          <li key={client} className="fj-Row" title={trans.__('pid %1', pid)}>
            <span className="fj-Grow fj-Name">{visible(label)}</span>
            <span className="fj-Quiet">
              {leases || waiting
                ? trans.__('%1 running, %2 waiting', leases, waiting)
                : visible(kind)}
            </span>
          </li>
        ))}
      </ul>
    </Section>
  );
}

// --- parts

function Section({ title, children }: { title: string; children: React.ReactNode }): JSX.Element {
  const id = useId();
  return (
    <section className="fj-Section" aria-labelledby={id}>
      <h3 id={id}>{title}</h3>
      {children}
    </section>
  );
}

/** A shape for each state; its word stands beside it, so neither colour nor shape alone says it. */
const MARKS: { [state in PoolState | ReplicaState]: string } = {
  busy: '◉',
  ready: '●',
  loading: '◔',
  starting: '◌',
  waiting: '◇',
  draining: '◍',
  stopping: '◍',
  stopped: '○',
  failed: '✕'
};

function StateMark({ state }: { state: PoolState | ReplicaState }): JSX.Element {
  return (
    <span className="fj-Mark" data-state={state} aria-hidden="true">
      {MARKS[state] ?? '?'}
    </span>
  );
}

export function stateWord(state: PoolState | ReplicaState, trans: TranslationBundle): string {
  switch (state) {
    case 'busy':
      return trans.__('busy');
    case 'ready':
      return trans.__('ready');
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
      return state; // of a newer service
  }
}

function IconButton(props: {
  label: string;
  icon: typeof refreshIcon;
  hasMenu?: boolean;
  onClick: (event: React.MouseEvent<HTMLElement>) => void;
}): JSX.Element {
  const { label, icon: Icon, hasMenu, onClick } = props;
  return (
    <button
      type="button"
      className="fj-IconButton"
      title={label}
      aria-label={label}
      aria-haspopup={hasMenu ? 'menu' : undefined}
      onClick={onClick}
    >
      <Icon.react tag="span" width="16px" height="16px" />
    </button>
  );
}

function TextButton({ label, onClick }: { label: string; onClick: () => void }): JSX.Element {
  return (
    <button type="button" className="fj-TextButton" onClick={onClick}>
      {label}
    </button>
  );
}

/** The row's context menu, for whoever has no right button: the application opens it as for a right click. */
function openMenu(event: React.MouseEvent<HTMLElement>): void {
  const { left, bottom } = event.currentTarget.getBoundingClientRect();
  event.currentTarget.dispatchEvent(
    new MouseEvent('contextmenu', {
      bubbles: true,
      cancelable: true,
      clientX: left,
      clientY: bottom
    })
  );
}

// --- announcements

/** Says what changed, politely and seldom; never a countdown. */
function Live({ trans }: { trans: TranslationBundle }): JSX.Element {
  const { manager, settings } = usePanel();
  const [text, setText] = useState('');
  const said = useRef<Map<string, INews> | null>(null);
  const announcer = useRef<Announcer | null>(null);
  const tag = useSyncExternalStore(
    onChange => {
      manager.changed.connect(onChange);
      return () => void manager.changed.disconnect(onChange);
    },
    () => manager.state?.tag ?? ''
  );
  useEffect(() => {
    const made = (announcer.current = new Announcer(setText));
    return () => made.dispose();
  }, []);
  useEffect(() => {
    const { state } = manager;
    if (!state) {
      return;
    }
    if (!said.current) {
      said.current = newsOf(state, manager.now(), settings.warnSeconds); // nobody needs the beginning
      return;
    }
    announcer.current?.request(() => {
      const news = manager.state
        ? newsOf(manager.state, manager.now(), settings.warnSeconds)
        : new Map();
      const changes = compare(said.current ?? new Map(), news);
      said.current = news;
      return changes.map(change => sentence(change.before, change.after, trans)).join(' ');
    });
  }, [tag, manager, settings.warnSeconds, trans]);
  return (
    <div className="fj-Hidden" aria-live="polite" data-testid="fj-live">
      {text}
    </div>
  );
}

function sentence(before: INews | null, after: INews | null, trans: TranslationBundle): string {
  if (!after) {
    return before ? trans.__('Pool %1 is gone.', visible(before.name)) : '';
  }
  const words = [
    trans.__('Pool %1: %2.', visible(after.name), stateWord(after.state as PoolState, trans))
  ];
  if (after.waiting !== (before?.waiting ?? 0)) {
    words.push(trans._n('%1 call waits.', '%1 calls wait.', after.waiting));
  }
  if (after.warned && !before?.warned) {
    words.push(trans.__('It stops soon.'));
  }
  return words.join(' ');
}
