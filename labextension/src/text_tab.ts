/** A tab that shows a text and can load it again: a log, a traceback, a look into a replica. */

import type { JupyterFrontEnd } from '@jupyterlab/application';
import { MainAreaWidget } from '@jupyterlab/apputils';
import type { TranslationBundle } from '@jupyterlab/translation';
import { refreshIcon, ToolbarButton } from '@jupyterlab/ui-components';
import { UUID } from '@lumino/coreutils';
import { Widget } from '@lumino/widgets';

import { poolsIcon } from './icons';
import { addTab } from './tabs';
import { multiline } from './words';

export class TextTab extends MainAreaWidget<Widget> {
  /**
   * @param label - The tab's title.
   * @param load - Gets the whole text.
   */
  constructor(label: string, load: () => Promise<string>, trans: TranslationBundle) {
    const content = new Widget({ node: document.createElement('pre') });
    super({ content });
    this._load = load;
    this._nothing = trans.__('Nothing was printed.');
    this.id = `fj-text-${UUID.uuid4()}`;
    this.title.label = label;
    this.title.icon = poolsIcon;
    this.title.closable = true;
    content.addClass('fj-Text');
    content.node.tabIndex = 0; // scrolls by keyboard
    content.node.setAttribute('aria-label', label);
    content.node.setAttribute('role', 'document');
    this.toolbar.addItem(
      'refresh',
      new ToolbarButton({
        icon: refreshIcon,
        tooltip: trans.__('Load again'),
        onClick: () => void this.refresh()
      })
    );
  }

  /** Load the text. Rejects if that fails. */
  async reload(): Promise<void> {
    const asked = (this._asked += 1);
    this._show((await this._load()) || this._nothing, asked);
  }

  /** Load the text; show an error in its place. */
  async refresh(): Promise<void> {
    const asked = this._asked + 1;
    await this.reload().catch((error: unknown) => this._show(String(error), asked));
  }

  /** Show an answer, unless a later one has been asked for. Answers may overtake each other. */
  private _show(text: string, asked: number): void {
    if (!this.isDisposed && asked === this._asked) {
      this.content.node.textContent = multiline(text);
      this.content.node.scrollTop = this.content.node.scrollHeight;
    }
  }

  private readonly _load: () => Promise<string>;
  private readonly _nothing: string;
  private _asked = 0;
}

/** Show a tab once its text is there; without one there is no tab. */
export async function showText(shell: JupyterFrontEnd.IShell, tab: TextTab): Promise<void> {
  try {
    await tab.reload();
  } catch (error) {
    tab.dispose();
    throw error;
  }
  addTab(shell, tab);
}
