/** The side panel as a widget. */

import type { Message } from '@lumino/messaging';
import React from 'react';

import { poolsIcon } from '../icons';
import { PoolsWidget } from '../pools_widget';
import type { IViewProps } from '../view_context';
import { Panel } from './panel';

export class PoolsPanel extends PoolsWidget {
  constructor(view: () => IViewProps) {
    super(view);
    const { trans } = view();
    this.id = 'flyte-jupyter-pools';
    this.title.icon = poolsIcon;
    this.title.caption = trans.__('Flyte pools');
    this.addClass('fj-Panel');
    this.node.setAttribute('aria-label', trans.__('Flyte pools'));
  }

  protected content(): JSX.Element {
    return <Panel />;
  }

  /** Focus the first button, for users of the keyboard. */
  protected onActivateRequest(message: Message): void {
    super.onActivateRequest(message);
    this.node.querySelector<HTMLElement>('button')?.focus();
  }
}
