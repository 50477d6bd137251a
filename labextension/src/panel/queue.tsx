/** The panel's list of the calls that wait for any pool. */

import React from 'react';

import { Waiting } from '../components/calls';
import { Section } from '../components/section';
import type { IPool } from '../models';
import { useView } from '../view_context';

export function Queue({ pools }: { pools: IPool[] }): JSX.Element | null {
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
