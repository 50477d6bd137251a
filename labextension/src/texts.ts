/** A tab that shows a text which may have grown since: a log, a traceback. */

import { MainAreaWidget } from '@jupyterlab/apputils';
import type { TranslationBundle } from '@jupyterlab/translation';
import { refreshIcon, ToolbarButton } from '@jupyterlab/ui-components';
import { UUID } from '@lumino/coreutils';
import { Widget } from '@lumino/widgets';

import { poolsIcon } from './icons';

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
        onClick: () => {
          void this.reload();
        }
      })
    );
  }

  async reload(): Promise<void> {
    const text = await this._load();
    if (!this.isDisposed) {
      this.content.node.textContent = text || this._nothing;
      this.content.node.scrollTop = this.content.node.scrollHeight;
    }
  }

  private readonly _load: () => Promise<string>;
  private readonly _nothing: string;
}
