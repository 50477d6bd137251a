/** The panel's content: a function of the manager's state. It keeps nothing but which rows are open. */

import type { TranslationBundle } from '@jupyterlab/translation';
import {
  addIcon,
  caretDownIcon,
  caretRightIcon,
  codeIcon,
  refreshIcon
} from '@jupyterlab/ui-components';
import React, { useEffect, useId, useRef, useState, useSyncExternalStore } from 'react';

import { Announcer, compare, newsOf } from './announcer';
import type { INews } from './announcer';
import { Devices } from './devices';
import type { IPool, IRecent, IReplica, IState, PoolState } from './models';
import { IconButton, MoreButton } from './components/buttons';
import { Calls, Waiting } from './components/calls';
import { StateMark } from './components/indicators';
import { PoolControls } from './components/pool_controls';
import { Notes } from './components/pool_notes';
import { PoolTimer } from './components/pool_timer';
import { PreloadLine } from './components/preload_line';
import { Section } from './components/section';
import { isStale, useNow, useRefusal, useView } from './view_context';
import type { IViewProps } from './view_context';
import {
  devicesOf,
  memoryLine,
  memoryOf,
  outcomeWord,
  poolLine,
  remarksOf,
  savingsLine,
  sinceOf,
  stateWord
} from './labels';
import type { IPoolManager } from './tokens';
import { age, clock, duration, taskCell, visible } from './words';

export function Panel(): JSX.Element {
  const view = useView();
  const { state, recent } = view.manager;
  const snapshot = state?.snapshot ?? null;
  const hint = situation(view);
  return (
    <>
      <Header />
      <div className="fj-Scroll">
        {hint && <Hint {...hint} />}
        {snapshot && (
          <div className={isStale(view.manager) ? 'fj-Content fj-mod-stale' : 'fj-Content'}>
            <Devices />
            <Pools pools={snapshot.pools} />
            <Queue pools={snapshot.pools} />
            <Recent recent={recent} />
            {view.settings.showClients && <Clients state={state} />}
          </div>
        )}
      </div>
      <Announcements />
    </>
  );
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
export function situation(props: IViewProps): IHint | null {
  const { manager, trans, execute, reloadPage } = props;
  const { state, serverStatus, problem } = manager;
  const again = (): void => void manager.refresh();
  switch (serverStatus) {
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
        text: state?.snapshot
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
  const { manager, trans, execute } = useView();
  const refused = useRefusal('change');
  const { state } = manager;
  const pools = (state?.snapshot?.pools ?? []).filter(pool => pool.cold_starts_avoided > 0);
  const saved = pools.length > 1 ? savingsLine(pools, trans) : ''; // of one it stands there
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
      {refused && (
        <p className="fj-Quiet" title={refused}>
          {trans.__('You may look at these pools, but not change them.')}
        </p>
      )}
      {saved && <p className="fj-Quiet fj-Saved">{saved}</p>}
    </header>
  );
}

function serviceLine(manager: IPoolManager, trans: TranslationBundle): string {
  const { state, serverStatus } = manager;
  switch (serverStatus) {
    case 'absent':
      return trans.__('service: not reached');
    case 'refused':
      return trans.__('no access');
    case 'lost':
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
    serverStatus === 'connecting' ? trans.__('reconnecting…') : trans.__('service: running'),
    trans._n('%1 pool', '%1 pools', pools.length),
    trans._n('%1 notebook', '%1 notebooks', notebooks)
  ];
  return words.join(' · ');
}

// --- pools

function Pools({ pools }: { pools: IPool[] }): JSX.Element | null {
  const { trans } = useView();
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

/** Up and down go from one pool's row to the same button in the next, Home and End to the first and last. */
function moveByArrow(event: React.KeyboardEvent<HTMLElement>): void {
  const kind = ['fj-Pool-toggle', 'fj-Pool-name'].find(name =>
    (event.target as HTMLElement).classList.contains(name)
  );
  if (!kind) {
    return;
  }
  const rows = [...event.currentTarget.querySelectorAll<HTMLElement>(`.${kind}`)];
  const at = rows.findIndex(row => row === event.target);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[event.key];
  if (to !== undefined && rows[to]) {
    event.preventDefault();
    rows[to].focus();
  }
}

function Pool({ pool }: { pool: IPool }): JSX.Element {
  const { trans, execute, startDrag, manager } = useView();
  const [open, setOpen] = useState(true);
  const details = useId();
  const { key, state } = pool;
  const name = visible(pool.name);
  const Caret = open ? caretDownIcon : caretRightIcon;
  const memory = manager.state ? memoryLine(manager.state, pool, trans) : '';
  const saved = savingsLine([pool], trans);
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
            className="fj-IconButton fj-Pool-toggle"
            aria-expanded={open}
            aria-controls={details}
            aria-label={trans.__('Replicas of %1', name)}
            onClick={() => setOpen(!open)}
          >
            <Caret.react className="fj-Caret" tag="span" width="16px" height="16px" />
          </button>
          <StateMark state={state} />
          <button
            type="button"
            className="fj-Pool-name fj-Name"
            title={trans.__('Details of %1', name)}
            onClick={() => execute('flyte-jupyter:details', { pool: key })}
          >
            {name}
          </button>
          <span className="fj-Grow">
            {pool.single_use && <span className="fj-Tag">{trans.__('fresh per call')}</span>}
            {pool.retiring && <span className="fj-Tag">{trans.__('replaced')}</span>}
          </span>
          <PoolTimer pool={pool} />
          <IconButton
            label={trans.__('Insert a task cell for %1', name)}
            icon={codeIcon}
            onClick={() => execute('flyte-jupyter:insert-task-cell', { pool: key })}
          />
          <MoreButton name={name} />
        </div>
        <p className="fj-Counts">{poolLine(pool, trans)}</p>
      </div>
      <div id={details} hidden={!open}>
        {memory && <p className="fj-Counts">{memory}</p>}
        <Notes pool={pool} />
        {/* Folded up, they would ask for what nobody sees. */}
        {open && pool.replicas.length > 0 && (
          <ul className="fj-Replicas" aria-label={trans.__('Replicas of %1', name)}>
            {pool.replicas.map(replica => (
              <Replica key={replica.id} replica={replica} pool={pool} />
            ))}
          </ul>
        )}
        {!pool.single_use && <PoolControls pool={pool} />}
        {saved && <p className="fj-Counts fj-Saved">{saved}</p>}
      </div>
    </li>
  );
}

function Replica({ replica, pool }: { replica: IReplica; pool: IPool }): JSX.Element {
  const { trans, manager } = useView();
  const now = useNow();
  const { id, state } = replica;
  const since = sinceOf(replica);
  const remarks = [
    ...(manager.state
      ? [devicesOf(manager.state, replica, trans), ...memoryOf(manager.state, id, trans)]
      : []),
    ...remarksOf(pool, replica, now, trans)
  ].filter(Boolean);
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
          {since !== null && <span className="fj-Number"> {clock(now - since)}</span>}
        </span>
        <span className="fj-Number fj-Quiet" title={trans.__('age')}>
          {age(now - replica.started_at)}
        </span>
        <MoreButton name={name} />
      </div>
      {remarks.length > 0 && <div className="fj-Remarks">{remarks.join(' · ')}</div>}
      <PreloadLine replica={replica} />
      <Calls replica={replica} />
    </li>
  );
}

// --- queue, recent, clients

function Queue({ pools }: { pools: IPool[] }): JSX.Element | null {
  const { trans } = useView();
  const total = pools.reduce((sum, pool) => sum + pool.waiting, 0);
  if (!total) {
    return null;
  }
  const shown = pools.reduce((sum, pool) => sum + pool.queue.length, 0);
  return (
    <Section title={trans.__('Queue (%1)', total)}>
      {pools.map(pool => (
        <Waiting key={pool.key} pool={pool} />
      ))}
      {shown < total && <p className="fj-Quiet">{trans.__('and %1 more', total - shown)}</p>}
    </Section>
  );
}

function Recent({ recent }: { recent: readonly IRecent[] }): JSX.Element | null {
  const { trans } = useView();
  if (!recent.length) {
    return null;
  }
  return (
    <Section title={trans.__('Recent')}>
      <ul className="fj-Recent">
        {recent.map(each => (
          <Ended key={`${each.kind}-${each.id}`} ended={each} />
        ))}
      </ul>
    </Section>
  );
}

function Ended({ ended }: { ended: IRecent }): JSX.Element {
  const { trans } = useView();
  const { kind, what, where, outcome, seconds } = ended;
  const good = outcome === 'succeeded';
  const mark = kind === 'stopped' ? '○' : good ? '✓' : '✕';
  const text =
    kind === 'call'
      ? visible(what)
      : kind === 'failure'
        ? trans.__('%1 did not start', visible(what))
        : trans.__('%1 stopped', visible(what));
  return (
    <li data-kind={kind} data-outcome={outcome ?? undefined}>
      <div className="fj-Row">
        <span
          className="fj-Mark"
          data-state={mark === '✕' ? 'failed' : undefined}
          aria-hidden="true"
        >
          {mark}
        </span>
        <span className="fj-Grow fj-Name" title={`${text} · ${visible(where, 300)}`}>
          {text} <span className="fj-Quiet">{kind === 'call' && visible(where, 120)}</span>
        </span>
        {kind === 'call' && (
          <span className={good ? 'fj-Hidden' : 'fj-Quiet'}>{outcomeWord(outcome, trans)}</span>
        )}
        {seconds !== null && <span className="fj-Number">{duration(seconds)}</span>}
      </div>
    </li>
  );
}

function Clients({ state }: { state: IState | null }): JSX.Element | null {
  const { trans } = useView();
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
              {[
                leases ? trans.__('%1 running', leases) : '',
                waiting ? trans.__('%1 waiting', waiting) : ''
              ]
                .filter(Boolean)
                .join(', ') || visible(kind)}
            </span>
          </li>
        ))}
      </ul>
    </Section>
  );
}

// --- announcements

/** Says what changed, politely and seldom; never a countdown. */
function Announcements(): JSX.Element {
  const { manager, settings, trans } = useView();
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
