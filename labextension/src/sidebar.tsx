/** The side panel as a widget: it watches the pools only while it can be seen. */

import { ReactWidget } from '@jupyterlab/ui-components';
import type { IDisposable } from '@lumino/disposable';
import type { Message } from '@lumino/messaging';
import React from 'react';

import { poolsIcon } from './icons';
import { PanelView } from './view';
import type { IPanelProps } from './view';

export class PoolsPanel extends ReactWidget {
  /** @param props - Read anew at each `update()`. */
  constructor(props: () => IPanelProps) {
    super();
    this._props = props;
    const { trans } = props();
    this.id = 'flyte-jupyter-pools';
    this.title.icon = poolsIcon;
    this.title.caption = trans.__('Flyte pools');
    this.addClass('fj-Panel');
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', trans.__('Flyte pools'));
    document.addEventListener('visibilitychange', this._look);
  }

  dispose(): void {
    document.removeEventListener('visibilitychange', this._look);
    this._watching?.dispose();
    super.dispose();
  }

  protected render(): JSX.Element {
    return <PanelView {...this._props()} />;
  }

  protected onAfterShow(message: Message): void {
    super.onAfterShow(message);
    this._look();
  }

  protected onAfterHide(message: Message): void {
    super.onAfterHide(message);
    this._look();
  }

  protected onAfterAttach(message: Message): void {
    super.onAfterAttach(message);
    this._look();
  }

  protected onBeforeDetach(message: Message): void {
    this._unwatch();
    super.onBeforeDetach(message);
  }

  /** The first button, for whoever opens the panel by keyboard. */
  protected onActivateRequest(message: Message): void {
    super.onActivateRequest(message);
    this.node.querySelector<HTMLElement>('button')?.focus();
  }

  private readonly _look = (): void => {
    if (this.isAttached && this.isVisible && document.visibilityState === 'visible') {
      this._watching ??= this._props().manager.watch();
    } else {
      this._unwatch();
    }
  };

  private _unwatch(): void {
    this._watching?.dispose();
    this._watching = null;
  }

  private readonly _props: () => IPanelProps;
  private _watching: IDisposable | null = null;
}
