/** The timeline of a pool, and why it scaled. */

import React, { useEffect, useId, useRef, useSyncExternalStore } from 'react';

import { Section } from '../components/section';
import { useView } from '../view_context';
import { timeOfDay, visible } from '../words';
import { TimelineFeed } from './feed';

/** A value of the feed. The component is drawn again when it differs. */
function useFeed<T>(feed: TimelineFeed, read: () => T): T {
  return useSyncExternalStore(onChange => {
    feed.changed.connect(onChange);
    return () => void feed.changed.disconnect(onChange);
  }, read);
}

export function History({
  feed,
  timeline
}: {
  feed: TimelineFeed;
  timeline: HTMLElement;
}): JSX.Element {
  const { trans } = useView();
  const problem = useFeed(feed, () => feed.problem);
  const place = useRef<HTMLDivElement>(null);
  useEffect(() => place.current?.replaceChildren(timeline), [timeline]);
  return (
    <>
      {problem && (
        <p className="fj-Note fj-mod-warn">
          {trans.__('The timeline is not up to date: %1', visible(problem, 300))}
        </p>
      )}
      <div ref={place} />
    </>
  );
}

export function Changes({ feed }: { feed: TimelineFeed }): JSX.Element | null {
  const { trans } = useView();
  const changes = useFeed(feed, () => feed.changes);
  const id = useId();
  if (!changes.length) {
    return null;
  }
  return (
    <Section title={trans.__('Why it scaled')}>
      <ol className="fj-Changes" aria-describedby={id}>
        {changes.map(change => (
          <li key={change.id} className="fj-Row">
            <time className="fj-Number" dateTime={new Date(change.at * 1000).toISOString()}>
              {timeOfDay(change.at, true)}
            </time>
            <span className="fj-Grow">{visible(change.text, 300)}</span>
          </li>
        ))}
      </ol>
      <span id={id} className="fj-Hidden">
        {trans.__('newest first')}
      </span>
    </Section>
  );
}
