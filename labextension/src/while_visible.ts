/** Runs something only while a widget is visible: in front, in a page that is in front. */

import type { IDisposable } from '@lumino/disposable';
import type { Message } from '@lumino/messaging';
import { MessageLoop } from '@lumino/messaging';
import type { Widget } from '@lumino/widgets';

/** Call `start` when this widget becomes visible, and dispose what it returned when that ends. */
export function whileVisible(widget: Widget, start: () => IDisposable): void {
  let held: IDisposable | null = null;
  let shown = widget.isVisible;
  const look = (): void => {
    if (shown && document.visibilityState === 'visible') {
      held ??= start();
    } else {
      held?.dispose();
      held = null;
    }
  };
  // The hook runs before the widget handles the message: its own properties still have their old values.
  MessageLoop.installMessageHook(widget, (_, { type }: Message) => {
    if (type === 'after-show') {
      shown = true;
    } else if (type === 'after-attach') {
      shown = !widget.isHidden && (widget.parent?.isVisible ?? true);
    } else if (type === 'after-hide' || type === 'before-detach') {
      shown = false;
    }
    look();
    return true;
  });
  document.addEventListener('visibilitychange', look);
  widget.disposed.connect(() => document.removeEventListener('visibilitychange', look));
  look();
}
