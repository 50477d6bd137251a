import { expect, it } from 'vitest';

import {
  connectionCell,
  countdown,
  duration,
  lastLine,
  size,
  taskCell,
  visible,
  visibleLines
} from '../words';

it.each([
  [7, '0:07'],
  [1780.2, '29:40'],
  [7200, '2:00:00'],
  [-3, '0:00']
])('%d s to go is %s', (seconds, text) => expect(countdown(seconds)).toBe(text));

it.each([
  [0.00002, '1 ms'],
  [0.084, '84 ms'],
  [0.84, '0.8 s'],
  [12, '12 s'],
  [1800, '30 min'],
  [5400, '1 h 30 min'],
  [7200, '2 h']
])('%d s is %s', (seconds, text) => expect(duration(seconds)).toBe(text));

it('sizes are in binary units', () => {
  expect([size(50_000_000), size(24 * 2 ** 30)]).toEqual(['48 MiB', '24.0 GiB']);
});

it('what would steer a label is shown as an escape', () => {
  expect(visible('a\x1b[2Jb\u202ec')).toBe('a\\u001b[2Jb\\u202ec');
  expect(visible('<img src=x>')).toBe('<img src=x>');
  expect(visible('x'.repeat(100))).toHaveLength(80);
});

it('a text keeps its lines and tabs, and nothing else that steers', () => {
  expect(visibleLines('a\tb\r\nc\rd\n\x1b[31me\u202e')).toBe('a\tb\nc\nd\n\\u001b[31me\\u202e');
});

it('an odd name is quoted in a cell', () => {
  expect(taskCell('gpu')).toBe('%%flyte_task gpu\n');
  expect(taskCell('my pool\n!rm')).toBe('%%flyte_task "my pool\\n!rm"\n');
  expect(connectionCell('a\n!rm')).toBe('%load_ext flyte_jupyter\n%flyte_pool show "a\\n!rm"\n');
});

it('the last line of a traceback says what happened', () => {
  expect(lastLine('Traceback\n  File x\nValueError: no\n\n')).toBe('ValueError: no');
});
