/** The tab with a look into a replica, and a field for expressions that the replica evaluates. */

import type { TranslationBundle } from '@jupyterlab/translation';
import { UUID } from '@lumino/coreutils';
import { Widget } from '@lumino/widgets';

import type { IReplica } from './models';
import { TextTab } from './text_tab';
import type { IPoolManager } from './tokens';
import { visible } from './words';

export class PeekTab extends TextTab {
  constructor(manager: IPoolManager, { id, name }: IReplica, trans: TranslationBundle) {
    const field = new Expressions(trans);
    const load = async (): Promise<string> =>
      (await manager.peek(id, field.expressions)).lines.join('\n');
    super(trans.__('Peek into %1', visible(name)), load, trans);
    this.addClass('fj-PeekTab');
    this.contentHeader.addWidget(field);
    field.node.addEventListener('submit', event => {
      event.preventDefault();
      void this.refresh();
    });
  }
}

/** A form with one expression in each line. */
class Expressions extends Widget {
  constructor(trans: TranslationBundle) {
    const form = document.createElement('form');
    super({ node: form });
    this.addClass('fj-Expressions');
    const label = document.createElement('label');
    label.textContent = trans.__('Show also (expressions, one per line)');
    label.htmlFor = this._text.id = `fj-expressions-${UUID.uuid4()}`;
    this._text.className = 'jp-mod-styled';
    this._text.rows = 2;
    this._text.spellcheck = false;
    this._text.addEventListener('keydown', event => {
      if (event.key === 'Enter' && (event.shiftKey || event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    const show = document.createElement('button');
    show.className = 'jp-mod-styled';
    show.textContent = trans.__('Show');
    show.title = trans.__(
      'Look again, and evaluate them with the names of the code that runs (%1)',
      'Shift+Enter'
    );
    form.append(label, this._text, show);
  }

  get expressions(): string[] {
    return this._text.value.split('\n').filter(line => line.trim());
  }

  private readonly _text = document.createElement('textarea');
}
