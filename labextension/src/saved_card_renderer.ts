/**
 * Renders the card of a notebook that was opened again: the kernel that had the card's widget is gone, so the text that
 * was saved beside it is shown. JupyterLab would only report that the widget's model was not found.
 */

import type { INotebookTracker, NotebookPanel } from '@jupyterlab/notebook';
import { Panel } from '@lumino/widgets';

type Renderer = ReturnType<NotebookPanel['content']['rendermime']['createRenderer']>;
type Model = Parameters<Renderer['renderModel']>[0];

const CARD = 'application/vnd.jupyter.widget-view+json';
const SAVED_TEXT = 'text/html';
/** Only our cards are saved with such a text. */
const OURS = 'class="flyte-still"';

/** Prepare every notebook before it shows its outputs. */
export function renderSavedCards(tracker: INotebookTracker): void {
  const prepare = ({ content: { rendermime } }: NotebookPanel): void => {
    const create = rendermime.createRenderer.bind(rendermime);
    rendermime.createRenderer = mimeType =>
      mimeType === CARD
        ? withSavedText(create(mimeType), () => create(SAVED_TEXT))
        : create(mimeType);
  };
  tracker.forEach(prepare);
  tracker.widgetAdded.connect((_, panel) => prepare(panel));
}

/** Let the renderer of a widget show the saved text where it has no view of the widget. */
function withSavedText(renderer: Renderer, create: () => Renderer): Renderer {
  if (!(renderer instanceof Panel)) {
    return renderer;
  }
  const render = renderer.renderModel.bind(renderer);
  let saved: Renderer | null = null;
  renderer.disposed.connect(() => saved?.dispose());
  renderer.renderModel = async model => {
    saved?.dispose();
    saved = null;
    await render(model);
    if (!renderer.widgets.length && !renderer.isDisposed && isOurs(model)) {
      saved = create();
      await saved.renderModel(model);
      renderer.node.replaceChildren(saved.node);
    }
  };
  return renderer;
}

function isOurs(model: Model): boolean {
  const html = model.data[SAVED_TEXT];
  return typeof html === 'string' && html.includes(OURS);
}
