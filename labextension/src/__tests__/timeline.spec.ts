import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';

import type { TimelineAnswer, TimelineSpan } from '../../../flyte_jupyter/widgets/timeline.js';
import { Timeline } from '../../../flyte_jupyter/widgets/timeline.js';

const EVIL = '<img src=x onerror=alert(1)>\u001b[31m\u202e';
const NOW = 5000;

let written: string[];
let host: HTMLElement;
let timeline: Timeline;

/** jsdom has no canvas: this one takes whatever is drawn, and keeps what is written. */
function canvas(): CanvasRenderingContext2D {
  const known: Record<string, unknown> = {
    fillText: (text: string) => written.push(text),
    measureText: (text: string) => ({ width: 6 * text.length }),
    createPattern: () => 'pattern'
  };
  return new Proxy(known, {
    get: (target, name: string) => target[name] ?? (() => undefined)
  }) as unknown as CanvasRenderingContext2D;
}

function span(
  id: number,
  kind: TimelineSpan['kind'],
  changes: Partial<TimelineSpan>
): TimelineSpan {
  return {
    ...{ id, kind, replica: 'r0', task: 'train', client: 'train.ipynb', calls: 1 },
    ...{ began: NOW - 100, ended: null, outcome: null },
    ...changes
  };
}

function answer(...spans: TimelineSpan[]): TimelineAnswer {
  const life = { started_at: NOW - 300, ready_at: NOW - 290, ended_at: null, why: '' };
  return {
    ...{ now: Date.now() / 1000, epoch_offset: Date.now() / 1000 - NOW, mark: 'm', whole: true },
    ...{
      window_s: 600,
      changes: [],
      lanes: [{ replica: 'r0', name: 'gpu[0]', index: 0, ...life }]
    },
    spans
  };
}

function press(key: string): void {
  host.querySelector('canvas')?.dispatchEvent(new KeyboardEvent('keydown', { key }));
  vi.advanceTimersByTime(20); // the next frame
}

function tip(): (string | null)[] {
  return [...(host.querySelector('.flyte-tip')?.children ?? [])].map(line => line.textContent);
}

beforeEach(() => {
  vi.useFakeTimers();
  written = [];
  vi.spyOn(HTMLCanvasElement.prototype, 'getContext').mockImplementation(canvas as never);
  vi.spyOn(HTMLElement.prototype, 'clientWidth', 'get').mockReturnValue(600);
  host = document.body.appendChild(document.createElement('div'));
  timeline = new Timeline(host);
});

afterEach(() => {
  timeline.dispose();
  host.remove();
  vi.restoreAllMocks();
  vi.useRealTimers();
});

describe('the timeline', () => {
  it('names in its legend what there is, and nothing else', () => {
    timeline.take(answer(span(1, 'running', {}), span(2, 'attached', {})));
    vi.advanceTimersByTime(20);
    for (const word of ['attached', 'running', 'warm, idle']) {
      expect(written).toContain(word);
    }
    expect(written).not.toContain('waiting');
    expect(written).not.toContain('failed');
  });

  it('says of an attachment who holds the replica with what, and for how long, as text', () => {
    timeline.take(answer(span(1, 'attached', { task: 'attached console', client: EVIL })));
    press('ArrowDown');
    const shown = '<img src=x onerror=alert(1)>\\u001b[31m\\u202e';
    expect(tip()).toEqual(['attached console', shown, 'attached 1 min 40 s', 'gpu[0]']);
    expect(host.querySelector('img')).toBeNull();
  });

  it('says of one that is over how long it was, and that it was lost where that is so', () => {
    const over = { began: NOW - 100, ended: NOW - 60 };
    timeline.take(answer(span(1, 'attached', { ...over, outcome: 'succeeded' })));
    press('ArrowDown');
    expect(tip()[2]).toBe('attached 40 s');
    timeline.take(answer(span(1, 'attached', { ...over, outcome: 'lost' })));
    press('Home');
    expect(tip()[2]).toBe('attached 40 s, lost');
  });

  it('counts attachments not as calls', () => {
    timeline.take(answer(span(1, 'running', { calls: 3 }), span(2, 'attached', {})));
    expect(host.querySelector('canvas')?.getAttribute('aria-label')).toContain('calls: 3');
  });
});
