/**
 * Shows a pool's card as the text that was saved with it, where the card itself cannot be: in a notebook that was opened
 * again. JupyterLab would say that a widget's model was not found.
 */

import type { INotebookTracker, NotebookPanel } from '@jupyterlab/notebook';
import { Panel } from '@lumino/widgets';

type Renderer = ReturnType<NotebookPanel['content']['rendermime']['createRenderer']>;
type Model = Parameters<Renderer['renderModel']>[0];

const CARD = 'application/vnd.jupyter.widget-view+json';
const STILL = 'text/html';
const OURS = 'class="flyte-still"';

/** Follow every notebook, from before its outputs are shown. */
export function showStills(tracker: INotebookTracker): void {
  const prepare = ({ content: { rendermime } }: NotebookPanel): void => {
    const create = rendermime.createRenderer.bind(rendermime);
    rendermime.createRenderer = mimeType =>
      mimeType === CARD ? withStill(create(mimeType), () => create(STILL)) : create(mimeType);
  };
  tracker.forEach(prepare);
  tracker.widgetAdded.connect((_, panel) => prepare(panel));
}

/** The renderer of a widget; without a view of it, the text is shown. */
function withStill(renderer: Renderer, create: () => Renderer): Renderer {
  if (!(renderer instanceof Panel)) {
    return renderer;
  }
  const render = renderer.renderModel.bind(renderer);
  let still: Renderer | null = null;
  renderer.disposed.connect(() => still?.dispose());
  renderer.renderModel = async model => {
    still?.dispose();
    still = null;
    await render(model);
    if (!renderer.widgets.length && !renderer.isDisposed && isOurs(model)) {
      still = create();
      await still.renderModel(model);
      renderer.node.replaceChildren(still.node);
    }
  };
  return renderer;
}

function isOurs(model: Model): boolean {
  const html = model.data[STILL];
  return typeof html === 'string' && html.includes(OURS);
}
