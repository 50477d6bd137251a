/** Calls that run or wait, with the buttons that end them. */

import { closeIcon } from '@jupyterlab/ui-components';
import React from 'react';

import { waitWords } from '../labels';
import type { ILease, IPool, IReplica } from '../models';
import { calls } from '../queries';
import { useNow, useRefusal, useView } from '../view_context';
import { clock, visible } from '../words';
import { IconButton } from './buttons';

/** A call with its time, and the button that ends it. */
function Call(props: { call: ILease; verb: string; time: string; position?: number }): JSX.Element {
  const { execute } = useView();
  const refused = useRefusal('change');
  const { call, verb, time, position } = props;
  return (
    <li className="fj-Call fj-Row">
      {position !== undefined && <span className="fj-Number">{position}.</span>}
      <span className="fj-Grow fj-Name" title={`${visible(call.task)} · ${visible(call.client)}`}>
        {visible(call.task)} <span className="fj-Quiet">{visible(call.client)}</span>
      </span>
      <span className="fj-Number">{time}</span>
      <IconButton
        label={verb}
        icon={closeIcon}
        refused={refused}
        onClick={() => execute('flyte-jupyter:cancel', { lease: call.lease })}
      />
    </li>
  );
}

/** The calls that run on a replica. */
export function Calls({ replica }: { replica: IReplica }): JSX.Element | null {
  const { trans } = useView();
  const now = useNow();
  const running = calls(replica);
  if (!running.length) {
    return null;
  }
  return (
    <ul className="fj-Calls" aria-label={trans.__('Calls on %1', visible(replica.name))}>
      {running.map(call => (
        <Call
          key={call.lease}
          call={call}
          time={clock(now - call.since)}
          verb={trans.__('Stop call %1', visible(call.task))}
        />
      ))}
    </ul>
  );
}

/** The waiting calls of a pool that the state lists. `numbered` shows their positions. */
export function Waiting(props: { pool: IPool; numbered?: boolean }): JSX.Element | null {
  const { trans } = useView();
  const now = useNow();
  const { pool, numbered } = props;
  if (!pool.queue.length) {
    return null;
  }
  return (
    <ol className="fj-Queue" aria-label={trans.__('Waiting for %1', visible(pool.name))}>
      {pool.queue.map(request => (
        <Call
          key={request.lease}
          call={request}
          position={numbered ? request.position + 1 : undefined}
          time={waitWords(request, now, trans)}
          verb={trans.__('Withdraw call %1', visible(request.task))}
        />
      ))}
    </ol>
  );
}
