/** Cells for pools: inserted by a button, or dragged into a notebook. */

import type { JupyterFrontEnd } from '@jupyterlab/application';
import { Clipboard, Notification } from '@jupyterlab/apputils';
import type { INotebookTracker, NotebookPanel } from '@jupyterlab/notebook';
import type { TranslationBundle } from '@jupyterlab/translation';
import { MimeData } from '@lumino/coreutils';
import { Drag } from '@lumino/dragdrop';

/** How JupyterLab's notebook calls cells that are dragged. */
const CELLS_MIME = 'application/vnd.jupyter.cells';
/** How far the pointer goes before a press is a drag. */
const DRAG_THRESHOLD = 5;
const NEW_NOTEBOOK_MS = 15_000;

/** Insert code as a new cell of the current notebook, or of a new one; else copy it. */
export async function insertCell(
  app: JupyterFrontEnd,
  tracker: INotebookTracker | null,
  source: string,
  trans: TranslationBundle
): Promise<void> {
  const { commands } = app;
  const before = tracker?.currentWidget ?? null;
  const created = before === null && (await createNotebook(app, tracker));
  const panel = tracker?.currentWidget ?? null;
  if (!tracker || !panel || !commands.hasCommand('notebook:insert-cell-below')) {
    Clipboard.copyToSystem(source);
    Notification.info(trans.__('No notebook is open, so the cell was copied. Paste it into one.'), {
      autoClose: 6000
    });
    return;
  }
  app.shell.activateById(panel.id);
  const active = tracker.activeCell?.model;
  // An empty code cell is what a new notebook ends with: use it.
  if (!active || active.type !== 'code' || active.sharedModel.getSource().trim() || !created) {
    await commands.execute('notebook:insert-cell-below');
  }
  tracker.activeCell?.model.sharedModel.setSource(source);
  await commands.execute('notebook:enter-edit-mode');
}

async function createNotebook(
  app: JupyterFrontEnd,
  tracker: INotebookTracker | null
): Promise<boolean> {
  if (!tracker || !app.commands.hasCommand('notebook:create-new')) {
    return false;
  }
  await app.serviceManager.kernelspecs.ready;
  const kernelName = app.serviceManager.kernelspecs.specs?.default ?? '';
  const made = (await app.commands.execute('notebook:create-new', { cwd: '', kernelName })) as
    NotebookPanel | undefined;
  // Notebook 7 opens it in another browser tab.
  const ready = made?.context?.ready;
  if (!ready) {
    return false;
  }
  await Promise.race([ready, new Promise(done => window.setTimeout(done, NEW_NOTEBOOK_MS))]);
  return tracker.currentWidget !== null;
}

/** Start dragging a code cell once the pointer has moved far enough from where it was pressed. */
export function dragCell(press: PointerEvent, source: string, label: string): void {
  if (press.button !== 0 || (press.target as Element).closest('button, input, a')) {
    return;
  }
  const stop = (): void => {
    document.removeEventListener('pointermove', move, true);
    document.removeEventListener('pointerup', stop, true);
    document.removeEventListener('pointercancel', stop, true);
  };
  const move = (event: PointerEvent): void => {
    if (Math.hypot(event.clientX - press.clientX, event.clientY - press.clientY) < DRAG_THRESHOLD) {
      return;
    }
    stop();
    const mimeData = new MimeData();
    mimeData.setData('text/plain', source);
    mimeData.setData(CELLS_MIME, [
      { cell_type: 'code', source, metadata: {}, outputs: [], execution_count: null }
    ]);
    const dragImage = document.createElement('div');
    dragImage.className = 'fj-Drag';
    dragImage.textContent = label;
    const drag = new Drag({
      mimeData,
      dragImage,
      supportedActions: 'copy',
      proposedAction: 'copy'
    });
    void drag.start(event.clientX, event.clientY).then(() => drag.dispose());
  };
  document.addEventListener('pointermove', move, true);
  document.addEventListener('pointerup', stop, true);
  document.addEventListener('pointercancel', stop, true);
}
