/** All about one pool, in a tab of the main area. */

import type { DisposableSet } from '@lumino/disposable';
import type { Message } from '@lumino/messaging';
import React, { useEffect, useId, useRef, useSyncExternalStore } from 'react';

import { Timeline } from '../../flyte_jupyter/widgets/timeline.js';
import { TimelineFeed } from './feed';
import { poolsIcon } from './icons';
import type { IPool, IReplica } from './models';
import { calls, deviceMemory, poolOf } from './models';
import { MoreButton, TextButton } from './components/buttons';
import { Calls, Waiting } from './components/calls';
import { Meter, StateMark } from './components/indicators';
import { PoolControls } from './components/pool_controls';
import { Notes } from './components/pool_notes';
import { PoolTimer } from './components/pool_timer';
import { PreloadLine } from './components/preload_line';
import { Section } from './components/section';
import { PoolsWidget } from './pools_widget';
import { isStale, useNow, useView } from './view_context';
import type { IViewProps } from './view_context';
import {
  devicesOf,
  memoryLine,
  memoryOf,
  poolLine,
  remarksOf,
  savingsLine,
  sinceOf,
  stateWord
} from './labels';
import { age, clock, taskCell, timeOfDay, visible } from './words';

export class DetailsTab extends PoolsWidget {
  /**
   * @param pool - The pool's key; nothing may be known of it yet, or any more.
   * @param name - What to call it until then.
   * @param view - Read anew at each `update()`.
   */
  constructor(pool: string, name: string, view: () => IViewProps) {
    super(view);
    this.pool = pool;
    this.name = name;
    const { trans, manager } = view();
    this.id = `fj-details-${pool}`;
    this.title.label = visible(name);
    this.title.caption = trans.__('Pool %1', visible(name));
    this.title.icon = poolsIcon;
    this.title.closable = true;
    this.addClass('fj-Details');
    this.node.tabIndex = -1;
    this.node.setAttribute('aria-label', trans.__('Details of pool %1', visible(name)));
    this._canvas.className = 'fj-Timeline';
    this._timeline = new Timeline(this._canvas, { text: trans.__.bind(trans) });
    this._feed = new TimelineFeed(manager, pool, this._timeline);
  }

  readonly pool: string;
  readonly name: string;

  dispose(): void {
    if (this.isDisposed) {
      return;
    }
    super.dispose();
    this._feed.dispose();
    this._timeline.dispose();
  }

  protected watch(): DisposableSet {
    const held = super.watch();
    held.add(this._feed.run());
    return held;
  }

  protected content(): JSX.Element {
    return (
      <Details
        pool={this.pool}
        name={this.name}
        feed={this._feed}
        timeline={this._canvas}
        close={() => this.close()}
      />
    );
  }

  protected onCloseRequest(message: Message): void {
    super.onCloseRequest(message);
    this.dispose();
  }

  protected onActivateRequest(message: Message): void {
    super.onActivateRequest(message);
    (this.node.querySelector<HTMLElement>('button') ?? this.node).focus();
  }

  private readonly _canvas = document.createElement('div');
  private readonly _timeline: Timeline;
  private readonly _feed: TimelineFeed;
}

interface IDetailsProps {
  pool: string;
  name: string;
  feed: TimelineFeed;
  /** Where the timeline is drawn; it outlives what is around it. */
  timeline: HTMLElement;
  close: () => void;
}

function Details(props: IDetailsProps): JSX.Element {
  const { manager, trans } = useView();
  const { state } = manager;
  const pool = poolOf(state, props.pool);
  if (pool) {
    return (
      <div className={isStale(manager) ? 'fj-Content fj-mod-stale' : 'fj-Content'}>
        {isStale(manager) && (
          <p className="fj-Note fj-mod-warn" role="status">
            {trans.__('No connection to the Jupyter server; what is shown is old.')}
          </p>
        )}
        <PoolDetails {...props} found={pool} />
      </div>
    );
  }
  const name = visible(props.name);
  if (!state) {
    return (
      <section className="fj-Hint" data-kind={isStale(manager) ? 'lost' : 'connecting'}>
        <h3>{trans.__('Pool %1', name)}</h3>
        <p>
          {isStale(manager)
            ? trans.__('The Jupyter server does not say anything of it: %1', manager.problem)
            : trans.__('Asking the server…')}
        </p>
        <TextButton label={trans.__('Try now')} onClick={() => void manager.refresh()} />
      </section>
    );
  }
  return (
    <section className="fj-Hint" data-kind="gone">
      <h3>{trans.__('There is no pool %1 any more', name)}</h3>
      <p>
        {state.message ??
          trans.__(
            'It was stopped, or nobody used it for long. The next call of a task starts it.'
          )}
      </p>
      <TextButton label={trans.__('Close this tab')} onClick={props.close} />
    </section>
  );
}

function PoolDetails(props: IDetailsProps & { found: IPool }): JSX.Element {
  const { manager, trans, startDrag } = useView();
  const { found: pool, feed, timeline } = props;
  const name = visible(pool.name);
  const memory = manager.state ? memoryLine(manager.state, pool, trans) : '';
  const saved = savingsLine([pool], trans);
  return (
    <>
      <header
        className="fj-Pool-head fj-Details-head"
        data-pool={pool.key}
        data-state={pool.state}
        onPointerDown={event => startDrag(event.nativeEvent, taskCell(pool.name), name)}
      >
        <div className="fj-Row">
          <StateMark state={pool.state} />
          <h2 className="fj-Name">{name}</h2>
          {pool.single_use && <span className="fj-Tag">{trans.__('fresh per call')}</span>}
          {pool.retiring && <span className="fj-Tag">{trans.__('replaced')}</span>}
          <span className="fj-Grow fj-Counts">{poolLine(pool, trans)}</span>
          <PoolTimer pool={pool} />
          <MoreButton name={name} />
        </div>
        {!pool.single_use && <PoolControls pool={pool} />}
        {[memory, saved].filter(Boolean).map(line => (
          <p key={line} className="fj-Counts">
            {line}
          </p>
        ))}
      </header>
      <Notes pool={pool} />
      <Section title={trans.__('Replicas')}>
        {pool.replicas.length ? (
          <Replicas pool={pool} />
        ) : (
          <p className="fj-Quiet">{trans.__('None; the next call starts one.')}</p>
        )}
      </Section>
      <Queue pool={pool} />
      <Section title={trans.__('The last minutes')}>
        <History feed={feed} timeline={timeline} />
      </Section>
      <Changes feed={feed} />
    </>
  );
}

function Replicas({ pool }: { pool: IPool }): JSX.Element {
  const { trans } = useView();
  const columns = [
    trans.__('Replica'),
    trans.__('State'),
    trans.__('GPU'),
    trans.__('Memory'),
    trans.__('Task'),
    trans.__('Age')
  ];
  return (
    <div
      className="fj-Table"
      role="group"
      aria-label={trans.__('Replicas of %1', visible(pool.name))}
    >
      <table>
        <thead>
          <tr>
            {columns.map(column => (
              <th key={column} scope="col">
                {column}
              </th>
            ))}
            <th scope="col">
              <span className="fj-Hidden">{trans.__('Actions')}</span>
            </th>
          </tr>
        </thead>
        <tbody>
          {pool.replicas.map(replica => (
            <Row key={replica.id} pool={pool} replica={replica} />
          ))}
        </tbody>
      </table>
    </div>
  );
}

function Row({ pool, replica }: { pool: IPool; replica: IReplica }): JSX.Element {
  const { trans, manager } = useView();
  const now = useNow();
  const { state } = manager;
  const since = sinceOf(replica);
  const remarks = remarksOf(pool, replica, now, trans);
  const name = visible(replica.name);
  return (
    <tr
      className="fj-Replica"
      data-replica={replica.id}
      data-state={replica.state}
      title={visible(replica.why, 300)}
    >
      <th scope="row">{name}</th>
      <td>
        <StateMark state={replica.state} /> {stateWord(replica.state, trans)}
        {since !== null && <span className="fj-Number"> {clock(now - since)}</span>}
        {remarks.length > 0 && <div className="fj-Quiet">{remarks.join(' · ')}</div>}
      </td>
      <td>{(state && devicesOf(state, replica, trans)) || '–'}</td>
      <td>
        <Memory replica={replica} />
      </td>
      <td>
        {calls(replica).length ? (
          <Calls replica={replica} />
        ) : (
          <PreloadLine replica={replica} none="–" />
        )}
      </td>
      <td className="fj-Number">{age(now - replica.started_at)}</td>
      <td>
        <MoreButton name={name} />
      </td>
    </tr>
  );
}

function Memory({ replica }: { replica: IReplica }): JSX.Element {
  const { trans, manager } = useView();
  const { state } = manager;
  if (!state) {
    return <>–</>;
  }
  const text = memoryOf(state, replica.id, trans).join(' · ');
  const held = deviceMemory(state.usage, replica.id);
  const total = (state.snapshot?.devices ?? [])
    .filter(device => replica.devices.includes(device.uuid))
    .reduce((sum, device) => sum + device.memory_bytes, 0);
  return (
    <>
      {text || '–'}
      {held !== null && total > 0 && (
        <Meter
          label={trans.__('GPU memory of %1', visible(replica.name))}
          text={text}
          most={total}
          parts={[{ kind: 'replicas', value: held }]}
        />
      )}
    </>
  );
}

function Queue({ pool }: { pool: IPool }): JSX.Element {
  const { trans } = useView();
  const rest = pool.waiting - pool.queue.length;
  return (
    <Section title={trans.__('Queue (%1)', pool.waiting)}>
      {!pool.waiting && <p className="fj-Quiet">{trans.__('No call waits.')}</p>}
      <Waiting pool={pool} numbered />
      {rest > 0 && <p className="fj-Quiet">{trans.__('and %1 more', rest)}</p>}
    </Section>
  );
}

/** The feed's problem or changes; drawn anew when they are others. */
function useFeed<T>(feed: TimelineFeed, read: () => T): T {
  return useSyncExternalStore(onChange => {
    feed.changed.connect(onChange);
    return () => void feed.changed.disconnect(onChange);
  }, read);
}

function History({ feed, timeline }: { feed: TimelineFeed; timeline: HTMLElement }): JSX.Element {
  const { trans } = useView();
  const problem = useFeed(feed, () => feed.problem);
  const place = useRef<HTMLDivElement>(null);
  useEffect(() => place.current?.replaceChildren(timeline), [timeline]);
  return (
    <>
      {problem && (
        <p className="fj-Note fj-mod-warn">
          {trans.__('The timeline is not up to date: %1', visible(problem, 300))}
        </p>
      )}
      <div ref={place} />
    </>
  );
}

function Changes({ feed }: { feed: TimelineFeed }): JSX.Element | null {
  const { trans } = useView();
  const changes = useFeed(feed, () => feed.changes);
  const id = useId();
  if (!changes.length) {
    return null;
  }
  return (
    <Section title={trans.__('Why it scaled')}>
      <ol className="fj-Changes" aria-describedby={id}>
        {changes.map(change => (
          <li key={change.id} className="fj-Row">
            <time className="fj-Number" dateTime={new Date(change.at * 1000).toISOString()}>
              {timeOfDay(change.at, true)}
            </time>
            <span className="fj-Grow">{visible(change.text, 300)}</span>
          </li>
        ))}
      </ol>
      <span id={id} className="fj-Hidden">
        {trans.__('newest first')}
      </span>
    </Section>
  );
}
