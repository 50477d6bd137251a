/** The countdown to the end of a pool. */

import React from 'react';

import type { IPool } from '../models';
import { poolEnd } from '../queries';
import { useNow, useView } from '../view_context';
import { clock } from '../words';

export function PoolTimer({ pool }: { pool: IPool }): JSX.Element | null {
  const { trans, settings } = useView();
  const now = useNow();
  const end = poolEnd(pool);
  if (!end) {
    return pool.kept_until ? (
      <span className="fj-Timer" role="timer" title={trans.__('kept warm for so long')}>
        <Clock />
        <span className="fj-Hidden">{trans.__('kept for')} </span>
        {clock(pool.kept_until - now)}
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
      title={`${what} ${clock(left)}`}
    >
      {soon ? <span aria-hidden="true">!</span> : <Clock />}
      <span className="fj-Hidden">{what} </span>
      {clock(left)}
    </span>
  );
}

/** An image, since fonts seldom have the character. */
function Clock(): JSX.Element {
  return (
    <svg viewBox="0 0 16 16" aria-hidden="true">
      <circle cx="8" cy="8" r="6.5" />
      <path d="M8 4v4l3 2" />
    </svg>
  );
}
