import { expect, it } from 'vitest';

import {
  age,
  clock,
  connectionCell,
  duration,
  lastLine,
  modelName,
  multiline,
  roughly,
  size,
  stateCounts,
  taskCell,
  visible
} from '../words';

it.each([
  [7, '0:07'],
  [1780.2, '29:40'],
  [7200, '2:00:00'],
  [-3, '0:00']
])('%d s to go is %s', (seconds, text) => expect(clock(seconds)).toBe(text));

it.each([
  [0.00002, 'less than 1 ms'],
  [0.084, '84 ms'],
  [3.21, '3.2 s'],
  [5, '5 s'],
  [9.97, '10 s'],
  [12, '12 s'],
  [105, '1 min 45 s'],
  [1800, '30 min'],
  [5400, '1 h 30 min'],
  [7200, '2 h']
])('%d s is %s', (seconds, text) => expect(duration(seconds)).toBe(text));

it.each([
  [-1, '0 s'],
  [0.4, '0 s'],
  [5.7, '5 s'],
  [2472, '41 min'],
  [9001, '2 h 30 min']
])('what is %d s old is %s old', (seconds, text) => expect(age(seconds)).toBe(text));

// As `flyte_jupyter/client/text.py` has it.
it.each([
  [0.3, '1 s'],
  [42, '42 s'],
  [130, '2 min'],
  [9000, '2.5 h']
])('%d s is about %s', (seconds, text) => expect(roughly(seconds)).toBe(text));

it('replicas are counted by state, in the order of a life; a state of a newer broker comes last', () => {
  const states = ['loading', 'napping', 'busy', 'ready', 'busy'];
  expect(stateCounts(states.map(state => ({ state })))).toEqual([
    ['ready', 1],
    ['busy', 2],
    ['loading', 1],
    ['napping', 1]
  ]);
});

it('a card is called as people call it', () => {
  expect(modelName('NVIDIA GeForce RTX 4090')).toBe('RTX 4090');
});

it('sizes are in binary units', () => {
  expect([size(50_000_000), size(24 * 2 ** 30)]).toEqual(['48 MiB', '24.0 GiB']);
});

it('what would steer a label is shown as an escape', () => {
  expect(visible('a\x1b[2Jb\u202ec')).toBe('a\\u001b[2Jb\\u202ec');
  expect(visible('<img src=x>')).toBe('<img src=x>');
  expect(visible('x'.repeat(300))).toHaveLength(200);
  expect(visible('x\u{1f680}yz', 3)).toBe('x…');
});

it('a text keeps its lines and tabs, and nothing else that steers', () => {
  expect(multiline('a\tb\r\nc\rd\n\x1b[31me\u202e')).toBe('a\tb\nc\nd\n\\u001b[31me\\u202e');
});

it('an odd name is quoted in a cell', () => {
  expect(taskCell('gpu')).toBe('%%flyte_task gpu\n');
  expect(taskCell('my pool\n!rm')).toBe('%%flyte_task "my pool\\n!rm"\n');
  expect(connectionCell('a\n!rm')).toBe('%load_ext flyte_jupyter\n%flyte_pool show "a\\n!rm"\n');
});

it('the last line of a traceback says what happened', () => {
  expect(lastLine('Traceback\n  File x\nValueError: no\n\n')).toBe('ValueError: no');
});
