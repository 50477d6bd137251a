/** Tabs; and one that shows a text which may be another by now: a log, a traceback, a look into a replica. */

import type { JupyterFrontEnd } from '@jupyterlab/application';
import { MainAreaWidget } from '@jupyterlab/apputils';
import type { TranslationBundle } from '@jupyterlab/translation';
import { refreshIcon, ToolbarButton } from '@jupyterlab/ui-components';
import { UUID } from '@lumino/coreutils';
import { Widget } from '@lumino/widgets';

import { poolsIcon } from './icons';
import { multiline } from './words';

/**
 * Show a tab in the main area, or below it: a page of Notebook 7 has one document and no other tab. Notebook 7.2 has
 * nothing below, only sides.
 */
export function addTab(shell: JupyterFrontEnd.IShell, tab: Widget): void {
  shell.add(tab, 'main');
  if (!tab.isAttached) {
    tab.addClass('fj-mod-below');
    shell.add(tab, 'down');
  }
  if (!tab.isAttached) {
    tab.removeClass('fj-mod-below');
    shell.add(tab, 'right');
  }
  shell.activateById(tab.id);
}

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

  /** Load the text; rejects with what goes wrong. */
  async reload(): Promise<void> {
    const asked = (this._asked += 1);
    this._show((await this._load()) || this._nothing, asked);
  }

  /** The same; what goes wrong is shown in place of the text. */
  async refresh(): Promise<void> {
    const asked = this._asked + 1;
    await this.reload().catch((error: unknown) => this._show(String(error), asked));
  }

  /** Show what was asked for last, though an answer before it may come after it. */
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
