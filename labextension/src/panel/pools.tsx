/** The panel's list of pools and their replicas. */

import { caretDownIcon, caretRightIcon, codeIcon } from '@jupyterlab/ui-components';
import React, { useId, useState } from 'react';

import { IconButton, MoreButton } from '../components/buttons';
import { Calls } from '../components/calls';
import { StateMark } from '../components/indicators';
import { PoolControls } from '../components/pool_controls';
import { Notes } from '../components/pool_notes';
import { PoolTimer } from '../components/pool_timer';
import { PreloadLine } from '../components/preload_line';
import { Section } from '../components/section';
import {
  devicesOf,
  memoryLine,
  memoryOf,
  poolLine,
  remarksOf,
  savingsLine,
  sinceOf,
  stateWord
} from '../labels';
import type { IPool, IReplica } from '../models';
import { useNow, useView } from '../view_context';
import { age, clock, taskCell, visible } from '../words';

export function Pools({ pools }: { pools: IPool[] }): JSX.Element | null {
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

/** Up and Down move the focus to the same button of the next pool, Home and End to that of the first and last. */
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
        {/* A folded list is not rendered: its rows would request logs that nobody sees. */}
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
