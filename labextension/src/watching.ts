/** Doing something only while a widget can be seen: in front, and in a page that is. */

import type { IDisposable } from '@lumino/disposable';
import type { Message } from '@lumino/messaging';
import { MessageLoop } from '@lumino/messaging';
import type { Widget } from '@lumino/widgets';

/** Hold what `start` returns while this widget can be seen. It ends with the widget. */
export function whileSeen(widget: Widget, start: () => IDisposable): void {
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
  // The message comes before the widget has taken it: what it says of itself is of the time before.
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
