/** The context of all views: their properties, the server's time, and whether they are visible. */

import type { TranslationBundle } from '@jupyterlab/translation';
import type { ReadonlyPartialJSONObject } from '@lumino/coreutils';
import React, { useContext, useEffect, useState } from 'react';

import { refusal } from './labels';
import type { Act } from './models';
import type { IPanelSettings } from './settings';
import type { IPoolManager } from './tokens';

export interface IViewProps {
  manager: IPoolManager;
  trans: TranslationBundle;
  /** Runs a command; all verbs are commands. */
  execute: (command: string, args?: ReadonlyPartialJSONObject) => void;
  startDrag: (press: PointerEvent, source: string, label: string) => void;
  reloadPage: () => void;
  settings: IPanelSettings;
}

const View = React.createContext<IViewProps | null>(null);

export function useView(): IViewProps {
  const view = useContext(View);
  if (!view) {
    throw new Error('rendered outside of a view');
  }
  return view;
}

/** The server's time. One timer in `Frame` updates it once a second for all countdowns. */
const Now = React.createContext(0);

export function useNow(): number {
  return useContext(Now);
}

const Visible = React.createContext(false);

/** Whether the view is visible: in front, in a page that is in front. */
export function useVisible(): boolean {
  return useContext(Visible);
}

/** Gives its children the view's properties and the time. Draws them again with each state while they are visible. */
export function Frame(props: {
  view: IViewProps;
  visible: boolean;
  children: () => React.ReactNode;
}): JSX.Element {
  const { view, visible } = props;
  const { manager } = view;
  const [now, setNow] = useState(() => manager.now());
  const [, redraw] = useState(0);
  useEffect(() => {
    if (!visible) {
      return;
    }
    const onChange = (): void => {
      setNow(manager.now());
      redraw(count => count + 1);
    };
    onChange();
    manager.changed.connect(onChange);
    const timer = window.setInterval(() => setNow(manager.now()), 1000);
    return () => {
      manager.changed.disconnect(onChange);
      window.clearInterval(timer);
    };
  }, [manager, visible]);
  return (
    <View.Provider value={view}>
      <Visible.Provider value={visible}>
        <Now.Provider value={now}>{props.children()}</Now.Provider>
      </Visible.Provider>
    </View.Provider>
  );
}

/** Whether the state is old, because the server no longer sends it. */
export function isStale({ serverStatus }: IPoolManager): boolean {
  return serverStatus === 'lost' || serverStatus === 'absent' || serverStatus === 'refused';
}

/** The server's reason to refuse this user an act; empty if it is allowed. */
export function useRefusal(act: Act): string {
  return refusal(useView().manager.state, act);
}
