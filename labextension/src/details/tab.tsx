/** The tab about one pool, in the main area. */

import type { DisposableSet } from '@lumino/disposable';
import type { Message } from '@lumino/messaging';
import React from 'react';

import { Timeline } from '../../../flyte_jupyter/widgets/timeline.js';
import { TextButton } from '../components/buttons';
import { poolsIcon } from '../icons';
import { poolOf } from '../queries';
import { PoolsWidget } from '../pools_widget';
import type { IViewProps } from '../view_context';
import { isStale, useView } from '../view_context';
import { visible } from '../words';
import { TimelineFeed } from './feed';
import { PoolDetails } from './pool';

export class DetailsTab extends PoolsWidget {
  /**
   * @param pool - The pool's key. The pool may be unknown yet, or gone.
   * @param name - Its name while it is unknown.
   * @param view - Read anew at each `update()`.
   */
  constructor(pool: string, name: string, view: () => IViewProps) {
    super(view);
    this.pool = pool;
    this.name = name;
    const { trans, manager } = view();
    this.id = `fj-details-${pool}`;
    this.title.label = visible(name);
    this.title.caption = trans.__('Pool %1', visible(name));
    this.title.icon = poolsIcon;
    this.title.closable = true;
    this.addClass('fj-Details');
    this.node.tabIndex = -1;
    this.node.setAttribute('aria-label', trans.__('Details of pool %1', visible(name)));
    this._canvas.className = 'fj-Timeline';
    this._timeline = new Timeline(this._canvas, { text: trans.__.bind(trans) });
    this._feed = new TimelineFeed(manager, pool, this._timeline);
  }

  readonly pool: string;
  readonly name: string;

  dispose(): void {
    if (this.isDisposed) {
      return;
    }
    super.dispose();
    this._feed.dispose();
    this._timeline.dispose();
  }

  protected watch(): DisposableSet {
    const held = super.watch();
    held.add(this._feed.run());
    return held;
  }

  protected content(): JSX.Element {
    return (
      <Details
        pool={this.pool}
        name={this.name}
        feed={this._feed}
        timeline={this._canvas}
        close={() => this.close()}
      />
    );
  }

  protected onCloseRequest(message: Message): void {
    super.onCloseRequest(message);
    this.dispose();
  }

  protected onActivateRequest(message: Message): void {
    super.onActivateRequest(message);
    (this.node.querySelector<HTMLElement>('button') ?? this.node).focus();
  }

  private readonly _canvas = document.createElement('div');
  private readonly _timeline: Timeline;
  private readonly _feed: TimelineFeed;
}

interface IDetailsProps {
  pool: string;
  name: string;
  feed: TimelineFeed;
  /** The element with the timeline. It stays the same when the elements around it are made anew. */
  timeline: HTMLElement;
  close: () => void;
}

function Details(props: IDetailsProps): JSX.Element {
  const { manager, trans } = useView();
  const { state } = manager;
  const pool = poolOf(state, props.pool);
  if (pool) {
    return (
      <div className={isStale(manager) ? 'fj-Content fj-mod-stale' : 'fj-Content'}>
        {isStale(manager) && (
          <p className="fj-Note fj-mod-warn" role="status">
            {trans.__('No connection to the Jupyter server; what is shown is old.')}
          </p>
        )}
        <PoolDetails pool={pool} feed={props.feed} timeline={props.timeline} />
      </div>
    );
  }
  const name = visible(props.name);
  if (!state) {
    return (
      <section className="fj-Hint" data-kind={isStale(manager) ? 'lost' : 'connecting'}>
        <h3>{trans.__('Pool %1', name)}</h3>
        <p>
          {isStale(manager)
            ? trans.__('The Jupyter server does not say anything of it: %1', manager.problem)
            : trans.__('Asking the server…')}
        </p>
        <TextButton label={trans.__('Try now')} onClick={() => void manager.refresh()} />
      </section>
    );
  }
  return (
    <section className="fj-Hint" data-kind="gone">
      <h3>{trans.__('There is no pool %1 any more', name)}</h3>
      <p>
        {state.message ??
          trans.__(
            'It was stopped, or nobody used it for long. The next call of a task starts it.'
          )}
      </p>
      <TextButton label={trans.__('Close this tab')} onClick={props.close} />
    </section>
  );
}
