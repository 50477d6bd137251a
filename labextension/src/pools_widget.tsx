/** The base of the side panel and of the tabs about a pool. */

import { ReactWidget } from '@jupyterlab/ui-components';
import { DisposableDelegate, DisposableSet } from '@lumino/disposable';
import React from 'react';

import type { IViewProps } from './view_context';
import { Frame } from './view_context';
import { whileVisible } from './while_visible';

/** A widget that watches the pools and draws its content only while it is visible. */
export abstract class PoolsWidget extends ReactWidget {
  /** @param view - Read anew at each `update()`. */
  constructor(view: () => IViewProps) {
    super();
    this._view = view;
    this.addClass('fj-View');
    this.node.setAttribute('role', 'region');
    whileVisible(this, () => this.watch());
  }

  /** Start what runs while it is visible; the set ends it. */
  protected watch(): DisposableSet {
    const show = (isVisible: boolean): void => {
      this._isShown = isVisible;
      this.update();
    };
    show(true);
    return DisposableSet.from([
      this._view().manager.watch(),
      new DisposableDelegate(() => show(false))
    ]);
  }

  protected abstract content(): React.ReactNode;

  protected render(): JSX.Element {
    return (
      <Frame view={this._view()} visible={this._isShown}>
        {() => this.content()}
      </Frame>
    );
  }

  private readonly _view: () => IViewProps;
  private _isShown = false;
}
