/** The side panel as a widget: it watches the pools only while it can be seen. */

import { ReactWidget } from '@jupyterlab/ui-components';
import type { Message } from '@lumino/messaging';
import React from 'react';

import { poolsIcon } from './icons';
import type { IViewProps } from './parts';
import { PanelView } from './view';
import { whileSeen } from './watching';

export class PoolsPanel extends ReactWidget {
  /** @param props - Read anew at each `update()`. */
  constructor(props: () => IViewProps) {
    super();
    this._props = props;
    const { trans, manager } = props();
    this.id = 'flyte-jupyter-pools';
    this.title.icon = poolsIcon;
    this.title.caption = trans.__('Flyte pools');
    this.addClass('fj-View');
    this.addClass('fj-Panel');
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', trans.__('Flyte pools'));
    whileSeen(this, () => manager.watch());
  }

  protected render(): JSX.Element {
    return <PanelView {...this._props()} />;
  }

  /** The first button, for whoever opens the panel by keyboard. */
  protected onActivateRequest(message: Message): void {
    super.onActivateRequest(message);
    this.node.querySelector<HTMLElement>('button')?.focus();
  }

  private readonly _props: () => IViewProps;
}
