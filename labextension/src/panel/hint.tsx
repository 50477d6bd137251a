/** The panel's text and one action where there is nothing, or nothing new, to show. */

import React from 'react';

import type { IViewProps } from '../view_context';
import { visible } from '../words';

interface IHint {
  kind: string;
  title: string;
  text: string;
  detail?: string;
  action: string;
  act: () => void;
}

/** The hint for this state; null where there is something new to show. */
export function situation(props: IViewProps): IHint | null {
  const { manager, trans, execute, reloadPage } = props;
  const { state, serverStatus, problem } = manager;
  const again = (): void => void manager.refresh();
  switch (serverStatus) {
    case 'absent':
      return {
        kind: 'absent',
        title: trans.__('The Jupyter server has no flyte_jupyter'),
        text: trans.__(
          'Its server extension is not enabled. Install flyte-jupyter into the environment that runs Jupyter, restart Jupyter, then try again. Task cells work without this panel.'
        ),
        action: trans.__('Try again'),
        act: again
      };
    case 'refused':
      return {
        kind: 'refused',
        title: trans.__('The server does not let you in'),
        text: trans.__(
          'You may have been signed out, or you may not see the pools of this server.'
        ),
        detail: problem,
        action: trans.__('Reload the page'),
        act: reloadPage
      };
    case 'lost':
      return {
        kind: 'lost',
        title: trans.__('No connection to the Jupyter server'),
        text: state?.snapshot
          ? trans.__(
              'What is shown below is old. Your pools go on running; the panel reconnects by itself.'
            )
          : trans.__('The panel tries again by itself.'),
        detail: problem,
        action: trans.__('Try now'),
        act: again
      };
  }
  if (!state) {
    return {
      kind: 'connecting',
      title: trans.__('Asking the server…'),
      text: trans.__('The state of your pools appears here.'),
      action: trans.__('Ask again'),
      act: again
    };
  }
  switch (state.state) {
    case 'no-broker':
      return {
        kind: 'no-broker',
        title: trans.__('No broker runs'),
        text: trans.__('It starts by itself with the first task that a notebook calls.'),
        action: trans.__('Insert an example'),
        act: () => execute('flyte-jupyter:create-example')
      };
    case 'version-mismatch':
      return {
        kind: 'version-mismatch',
        title: trans.__('Two versions of flyte_jupyter'),
        text: trans.__(
          'The Jupyter server has %1, the broker %2. Task cells work; for the panel, install the same version in both environments and restart Jupyter.',
          state.versions.server,
          state.versions.broker ?? '?'
        ),
        detail: state.message ?? undefined,
        action: trans.__('Check again'),
        act: again
      };
    case 'unavailable':
      return {
        kind: 'unavailable',
        title: trans.__('The broker does not answer'),
        text: state.message ?? '',
        action: trans.__('Try again'),
        act: again
      };
  }
  if (state.snapshot && !state.snapshot.pools.length) {
    return {
      kind: 'no-pool',
      title: trans.__('No pools yet'),
      text: trans.__(
        'A pool keeps kernels warm: what a task loads stays loaded. It appears here with the first call of a task.'
      ),
      action: trans.__('Insert an example'),
      act: () => execute('flyte-jupyter:create-example')
    };
  }
  return null;
}

export function Hint({ kind, title, text, detail, action, act }: IHint): JSX.Element {
  return (
    <section className="fj-Hint" data-kind={kind}>
      <h3>{title}</h3>
      {text && <p>{text}</p>}
      {detail && <p className="fj-Detail">{visible(detail, 400)}</p>}
      <button type="button" className="jp-mod-styled jp-mod-accept fj-Hint-action" onClick={act}>
        {action}
      </button>
    </section>
  );
}
