/** The panel's list of what ended last. */

import React from 'react';

import { Section } from '../components/section';
import { outcomeWord } from '../labels';
import type { IRecent } from '../recent';
import { useView } from '../view_context';
import { duration, visible } from '../words';

export function Recent({ recent }: { recent: readonly IRecent[] }): JSX.Element | null {
  const { trans } = useView();
  if (!recent.length) {
    return null;
  }
  return (
    <Section title={trans.__('Recent')}>
      <ul className="fj-Recent">
        {recent.map(each => (
          <Ended key={`${each.kind}-${each.id}`} ended={each} />
        ))}
      </ul>
    </Section>
  );
}

function Ended({ ended }: { ended: IRecent }): JSX.Element {
  const { trans } = useView();
  const { kind, what, where, outcome, seconds } = ended;
  const good = outcome === 'succeeded';
  const mark = kind === 'stopped' ? '○' : good ? '✓' : '✕';
  const text =
    kind === 'call'
      ? visible(what)
      : kind === 'failure'
        ? trans.__('%1 did not start', visible(what))
        : trans.__('%1 stopped', visible(what));
  return (
    <li data-kind={kind} data-outcome={outcome ?? undefined}>
      <div className="fj-Row">
        <span
          className="fj-Mark"
          data-state={mark === '✕' ? 'failed' : undefined}
          aria-hidden="true"
        >
          {mark}
        </span>
        <span className="fj-Grow fj-Name" title={`${text} · ${visible(where, 300)}`}>
          {text} <span className="fj-Quiet">{kind === 'call' && visible(where, 120)}</span>
        </span>
        {kind === 'call' && (
          <span className={good ? 'fj-Hidden' : 'fj-Quiet'}>{outcomeWord(outcome, trans)}</span>
        )}
        {seconds !== null && <span className="fj-Number">{duration(seconds)}</span>}
      </div>
    </li>
  );
}
