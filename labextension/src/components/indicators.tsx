/** The mark of a state, and a meter. */

import React from 'react';

import type { PoolState, ReplicaState } from '../models';
import { MARKS } from '../words';

/** The shape of a state, beside its word. */
export function StateMark({ state }: { state: PoolState | ReplicaState }): JSX.Element {
  return (
    <span className="fj-Mark" data-state={state} aria-hidden="true">
      {MARKS[state] ?? '?'}
    </span>
  );
}

/** How full something is, in parts of one whole. The text gives the same for screen readers. */
export function Meter(props: {
  label: string;
  text: string;
  most: number;
  parts: { kind: string; value: number }[];
}): JSX.Element {
  const { label, text, most, parts } = props;
  const share = (value: number): number => Math.min(100, (100 * value) / most);
  const whole = parts.reduce((sum, { value }) => sum + value, 0);
  return (
    <div
      className="fj-Meter"
      role="meter"
      aria-label={label}
      aria-valuemin={0}
      aria-valuemax={100}
      aria-valuenow={Math.round(share(whole))}
      aria-valuetext={text}
    >
      {parts.map(({ kind, value }) => (
        <span key={kind} data-kind={kind} style={{ width: `${share(value)}%` }} />
      ))}
    </div>
  );
}
