import { nullTranslator } from '@jupyterlab/translation';
import { expect, it } from 'vitest';

import { TextTab } from '../text_tab';

const trans = nullTranslator.load('flyte_jupyter');

it('shows what was asked for last, in whatever order the answers come', async () => {
  const answers: ((text: string) => void)[] = [];
  const tab = new TextTab('Peek', () => new Promise(answer => answers.push(answer)), trans);
  const asked = [tab.refresh(), tab.refresh()];
  answers[1]('second \x1b[31m<b>');
  answers[0]('first');
  await Promise.all(asked);
  expect(tab.content.node.textContent).toBe('second \\u001b[31m<b>');
  tab.dispose();
});

it('says what goes wrong in place of the text', async () => {
  const tab = new TextTab('Log', () => Promise.reject(new Error('gone')), trans);
  await expect(tab.reload()).rejects.toThrow('gone');
  await tab.refresh();
  expect(tab.content.node.textContent).toBe('Error: gone');
  tab.dispose();
});
