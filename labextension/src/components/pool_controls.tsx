/** The limits of a pool with their buttons, and its most frequent verbs. */

import React from 'react';

import type { IPool } from '../models';
import { poolOf, stepped } from '../queries';
import { useRefusal, useView } from '../view_context';
import { duration, visible } from '../words';
import { Button, TextButton } from './buttons';

export function PoolControls({ pool }: { pool: IPool }): JSX.Element {
  const { trans, execute, settings, manager } = useView();
  const refused = useRefusal('change');
  const { key, scaling } = pool;
  const step = (limit: 'minimum' | 'maximum', by: 1 | -1): void => {
    // The drawn limits may be older than the last step.
    const { scaling: now } = poolOf(manager.state, key) ?? pool;
    execute('flyte-jupyter:scale', { pool: key, ...stepped(now, limit, by) });
  };
  return (
    <div
      className="fj-Controls"
      role="group"
      aria-label={trans.__('Replicas of %1', visible(pool.name))}
    >
      <Stepper
        label={trans.__('min')}
        value={scaling.min_replicas}
        least={0}
        less={trans.__('Lower the minimum')}
        more={trans.__('Raise the minimum')}
        refused={refused}
        onStep={by => step('minimum', by)}
      />
      <Stepper
        label={trans.__('max')}
        value={scaling.max_replicas}
        least={1}
        less={trans.__('Lower the maximum')}
        more={trans.__('Raise the maximum')}
        refused={refused}
        onStep={by => step('maximum', by)}
      />
      <span className="fj-Verbs">
        {pool.replicas.length === 0 && (
          <TextButton
            label={trans.__('Warm now')}
            refused={refused}
            onClick={() => execute('flyte-jupyter:warm', { pool: key })}
          />
        )}
        {pool.replicas.length > 0 && (
          <>
            <TextButton
              label={
                pool.kept_until
                  ? trans.__('Stop keeping')
                  : trans.__('Keep %1', duration(settings.keepSeconds))
              }
              refused={refused}
              onClick={() => execute('flyte-jupyter:keep', { pool: key })}
            />
            <TextButton
              label={trans.__('Stop…')}
              refused={refused}
              onClick={() => execute('flyte-jupyter:stop', { pool: key })}
            />
          </>
        )}
      </span>
    </div>
  );
}

function Stepper(props: {
  label: string;
  value: number;
  least: number;
  less: string;
  more: string;
  refused: string;
  onStep: (by: 1 | -1) => void;
}): JSX.Element {
  const { label, value, least, less, more, refused, onStep } = props;
  return (
    <span className="fj-Stepper">
      <Button
        aria-label={less}
        title={less}
        disabled={value <= least}
        refused={refused}
        onClick={() => onStep(-1)}
      >
        −
      </Button>
      <span>
        {label} <output>{value}</output>
      </span>
      <Button aria-label={more} title={more} refused={refused} onClick={() => onStep(1)}>
        +
      </Button>
    </span>
  );
}
