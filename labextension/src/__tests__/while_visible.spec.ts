import { DisposableDelegate } from '@lumino/disposable';
import { StackedPanel, Widget } from '@lumino/widgets';
import { afterEach, expect, it } from 'vitest';

import { whileVisible } from '../while_visible';

let seen: number;
let visibility: DocumentVisibilityState = 'visible';
Object.defineProperty(document, 'visibilityState', { get: () => visibility });

function page(state: DocumentVisibilityState): void {
  visibility = state;
  document.dispatchEvent(new Event('visibilitychange'));
}

function watched(): Widget {
  const widget = new Widget();
  seen = 0;
  whileVisible(widget, () => {
    seen += 1;
    return new DisposableDelegate(() => void (seen -= 1));
  });
  return widget;
}

afterEach(() => page('visible'));

it('is seen from its attachment to its end', () => {
  const widget = watched();
  expect(seen).toBe(0);
  Widget.attach(widget, document.body);
  expect(seen).toBe(1);
  widget.hide();
  expect(seen).toBe(0);
  widget.show();
  expect(seen).toBe(1);
  widget.dispose();
  expect(seen).toBe(0);
  page('hidden');
  page('visible');
  expect(seen).toBe(0);
});

it('is not seen in a hidden page, nor in a hidden panel', () => {
  const panel = new StackedPanel();
  const widget = watched();
  panel.addWidget(widget);
  panel.hide();
  Widget.attach(panel, document.body);
  expect(seen).toBe(0);
  panel.show();
  expect(seen).toBe(1);
  page('hidden');
  expect(seen).toBe(0);
  panel.hide();
  page('visible');
  expect(seen).toBe(0);
  panel.show();
  expect(seen).toBe(1);
  panel.dispose();
  expect(seen).toBe(0);
});
