/** Notes on a pool. */

import React from 'react';

import type { IPool } from '../models';
import { useNow, useRefusal, useView } from '../view_context';
import { clock, lastLine, visible } from '../words';
import { LinkButton } from './buttons';

/** Why a pool failed, waits, or is smaller or slower than requested. */
export function Notes({ pool }: { pool: IPool }): JSX.Element {
  const { trans, manager } = useView();
  const spawned = manager.state?.spawned[pool.key];
  return (
    <>
      {pool.failure && <Failure pool={pool} />}
      {pool.waits_for && (
        <p className="fj-Note fj-mod-warn">
          {pool.devices.count
            ? trans.__('waits for a GPU; held now: %1', visible(pool.waits_for, 300))
            : trans.__('waits for %1', visible(pool.waits_for, 300))}
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
    </>
  );
}

function Failure({ pool }: { pool: IPool }): JSX.Element | null {
  const { trans, execute } = useView();
  const now = useNow();
  const [noChange, noLogs] = [useRefusal('change'), useRefusal('logs')];
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
          : trans.__('Next attempt in %1.', clock(failure.retry_at - now))}
      </p>
      <LinkButton
        label={trans.__('Show')}
        refused={noLogs}
        onClick={() => execute('flyte-jupyter:show-failure', { pool: key })}
      />
      <LinkButton
        label={trans.__('Retry')}
        refused={noChange}
        onClick={() => execute('flyte-jupyter:warm', { pool: key })}
      />
    </div>
  );
}
