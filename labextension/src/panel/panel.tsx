/** The content of the side panel: a function of the manager's state. It keeps only which rows are open. */

import React from 'react';

import { isStale, useView } from '../view_context';
import { Announcements } from './announcements';
import { Clients } from './clients';
import { Devices } from './devices';
import { Header } from './header';
import { Hint, situation } from './hint';
import { Pools } from './pools';
import { Queue } from './queue';
import { Recent } from './recent';

export function Panel(): JSX.Element {
  const view = useView();
  const { state, recent } = view.manager;
  const snapshot = state?.snapshot ?? null;
  const hint = situation(view);
  return (
    <>
      <Header />
      <div className="fj-Scroll">
        {hint && <Hint {...hint} />}
        {snapshot && (
          <div className={isStale(view.manager) ? 'fj-Content fj-mod-stale' : 'fj-Content'}>
            <Devices />
            <Pools pools={snapshot.pools} />
            <Queue pools={snapshot.pools} />
            <Recent recent={recent} />
            {view.settings.showClients && <Clients state={state} />}
          </div>
        )}
      </div>
      <Announcements />
    </>
  );
}
