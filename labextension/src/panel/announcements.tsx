/** Changes for screen readers: polite and rare, never a countdown. */

import type { TranslationBundle } from '@jupyterlab/translation';
import React, { useEffect, useRef, useState, useSyncExternalStore } from 'react';

import { stateWord } from '../labels';
import type { PoolState } from '../models';
import { useView } from '../view_context';
import { visible } from '../words';
import type { INews } from './announcer';
import { Announcer, compare, newsOf } from './announcer';

export function Announcements(): JSX.Element {
  const { manager, settings, trans } = useView();
  const [text, setText] = useState('');
  const said = useRef<Map<string, INews> | null>(null);
  const announcer = useRef<Announcer | null>(null);
  const tag = useSyncExternalStore(
    onChange => {
      manager.changed.connect(onChange);
      return () => void manager.changed.disconnect(onChange);
    },
    () => manager.state?.tag ?? ''
  );
  useEffect(() => {
    const made = (announcer.current = new Announcer(setText));
    return () => made.dispose();
  }, []);
  useEffect(() => {
    const { state } = manager;
    if (!state) {
      return;
    }
    if (!said.current) {
      said.current = newsOf(state, manager.now(), settings.warnSeconds); // the first state is no news
      return;
    }
    announcer.current?.request(() => {
      const news = manager.state
        ? newsOf(manager.state, manager.now(), settings.warnSeconds)
        : new Map();
      const changes = compare(said.current ?? new Map(), news);
      said.current = news;
      return changes.map(change => sentence(change.before, change.after, trans)).join(' ');
    });
  }, [tag, manager, settings.warnSeconds, trans]);
  return (
    <div className="fj-Hidden" aria-live="polite" data-testid="fj-live">
      {text}
    </div>
  );
}

function sentence(before: INews | null, after: INews | null, trans: TranslationBundle): string {
  if (!after) {
    return before ? trans.__('Pool %1 is gone.', visible(before.name)) : '';
  }
  const words = [
    trans.__('Pool %1: %2.', visible(after.name), stateWord(after.state as PoolState, trans))
  ];
  if (after.waiting !== (before?.waiting ?? 0)) {
    words.push(trans._n('%1 call waits.', '%1 calls wait.', after.waiting));
  }
  if (after.warned && !before?.warned) {
    words.push(trans.__('It stops soon.'));
  }
  return words.join(' ');
}
