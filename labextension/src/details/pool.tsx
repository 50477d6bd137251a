/** The content of the tab about a pool that exists. */

import React from 'react';

import { MoreButton } from '../components/buttons';
import { Waiting } from '../components/calls';
import { StateMark } from '../components/indicators';
import { PoolControls } from '../components/pool_controls';
import { Notes } from '../components/pool_notes';
import { PoolTimer } from '../components/pool_timer';
import { Section } from '../components/section';
import { memoryLine, poolLine, savingsLine } from '../labels';
import type { IPool } from '../models';
import { useView } from '../view_context';
import { taskCell, visible } from '../words';
import type { TimelineFeed } from './feed';
import { Changes, History } from './history';
import { Replicas } from './replicas';

export function PoolDetails(props: {
  pool: IPool;
  feed: TimelineFeed;
  /** The element with the timeline; see `History`. */
  timeline: HTMLElement;
}): JSX.Element {
  const { manager, trans, startDrag } = useView();
  const { pool, feed, timeline } = props;
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
