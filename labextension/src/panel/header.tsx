/** The panel's heading: title, buttons, and a line about the broker. */

import type { TranslationBundle } from '@jupyterlab/translation';
import { addIcon, refreshIcon } from '@jupyterlab/ui-components';
import React from 'react';

import { IconButton } from '../components/buttons';
import { savingsLine } from '../labels';
import type { IPoolManager } from '../tokens';
import { useRefusal, useView } from '../view_context';

export function Header(): JSX.Element {
  const { manager, trans, execute } = useView();
  const refused = useRefusal('change');
  const { state } = manager;
  const pools = (state?.snapshot?.pools ?? []).filter(pool => pool.cold_starts_avoided > 0);
  const saved = pools.length > 1 ? savingsLine(pools, trans) : ''; // the row of a single pool shows it
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
        className="fj-Broker"
        title={state?.broker_pid ? trans.__('pid %1', state.broker_pid) : ''}
      >
        {brokerLine(manager, trans)}
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

function brokerLine(manager: IPoolManager, trans: TranslationBundle): string {
  const { state, serverStatus } = manager;
  switch (serverStatus) {
    case 'absent':
      return trans.__('broker: not reached');
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
      ? trans.__('broker: not running')
      : trans.__('broker: no answer');
  }
  const { pools, clients } = state.snapshot;
  const notebooks = clients.filter(client => client.kind === 'notebook').length;
  const words = [
    serverStatus === 'connecting' ? trans.__('reconnecting…') : trans.__('broker: running'),
    trans._n('%1 pool', '%1 pools', pools.length),
    trans._n('%1 notebook', '%1 notebooks', notebooks)
  ];
  return words.join(' · ');
}
