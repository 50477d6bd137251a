/** The table of a pool's replicas. */

import React from 'react';

import { MoreButton } from '../components/buttons';
import { Calls } from '../components/calls';
import { Meter, StateMark } from '../components/indicators';
import { PreloadLine } from '../components/preload_line';
import { devicesOf, memoryOf, remarksOf, sinceOf, stateWord } from '../labels';
import type { IPool, IReplica } from '../models';
import { calls, deviceMemory } from '../queries';
import { useNow, useView } from '../view_context';
import { age, clock, visible } from '../words';

export function Replicas({ pool }: { pool: IPool }): JSX.Element {
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
