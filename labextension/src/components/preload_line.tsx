/** The last line that the preload of a replica printed. */

import { Poll } from '@lumino/polling';
import React, { useEffect, useState } from 'react';

import type { IReplica } from '../models';
import { useRefusal, useView, useVisible } from '../view_context';
import { newestLine, visible } from '../words';

const ASK_MS = 3_000;
const MAX_ASK_MS = 30_000;

/** The last line of a running preload, or `none`. Asks for the log only while the line is visible. */
export function PreloadLine(props: { replica: IReplica; none?: string }): JSX.Element {
  const { manager, trans } = useView();
  const { id, state } = props.replica;
  const refused = useRefusal('logs');
  const asks = useVisible() && state === 'loading' && !refused;
  const [line, setLine] = useState('');
  useEffect(() => {
    if (!asks) {
      return;
    }
    const poll = new Poll({
      name: 'flyte-jupyter:preload',
      factory: async () => {
        const newest = newestLine(await manager.log(id, 5)); // if that fails, the line stays as it is
        if (!poll.isDisposed) {
          setLine(newest);
        }
      },
      frequency: { interval: ASK_MS, backoff: true, max: MAX_ASK_MS },
      standby: 'never' // it is visible
    });
    return () => poll.dispose();
  }, [manager, id, asks]);
  return line && state === 'loading' ? (
    <div className="fj-Said" title={trans.__('What its preload says')}>
      “{visible(line, 120)}”
    </div>
  ) : (
    <>{props.none}</>
  );
}
