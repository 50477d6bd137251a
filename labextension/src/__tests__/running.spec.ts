import { nullTranslator } from '@jupyterlab/translation';
import { CommandRegistry } from '@lumino/commands';
import { expect, it } from 'vitest';

import contract from '../../../tests/contract/snapshot.json';
import { parseState } from '../parse_state';
import { RunningPools } from '../running';
import { FakeManager } from './fakes';

const trans = nullTranslator.load('flyte_jupyter');

it('says in words of the reader what is there, and what would be lost', () => {
  const manager = new FakeManager();
  const upper = Object.assign(Object.create(trans) as typeof trans, {
    __: (text: string) => text.toUpperCase()
  });
  const pools = new RunningPools(manager, new CommandRegistry(), upper);
  manager.set(parseState(contract));
  expect(pools.running().map(each => each.detail?.())).toEqual(['1 READY · 1 BUSY · 1 LOADING']);
  // JupyterLab 4.2 takes no function here.
  expect(pools.shutdownAllConfirmationText).toContain('3 warm replicas');
  pools.dispose();
});

it('has no button for what is refused, and says why', () => {
  const manager = new FakeManager();
  const pools = new RunningPools(manager, new CommandRegistry(), trans);
  let changes = 0;
  pools.runningChanged.connect(() => void (changes += 1));
  manager.set(parseState(contract));
  expect(pools.running()[0].shutdown).toBeDefined();
  manager.set(parseState({ ...contract, refused: { change: 'You may look.' } }));
  expect(pools.running()[0].shutdown).toBeUndefined();
  expect(pools.shutdownAllConfirmationText).toBe('You may look.');
  expect(changes).toBe(2);
  pools.dispose();
});
