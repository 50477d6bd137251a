/** The panel's list of notebooks and scripts that are connected. */

import React from 'react';

import { Section } from '../components/section';
import type { IState } from '../models';
import { useView } from '../view_context';
import { visible } from '../words';

export function Clients({ state }: { state: IState | null }): JSX.Element | null {
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
