/** The place of a tab in JupyterLab and in Notebook 7. */

import type { JupyterFrontEnd } from '@jupyterlab/application';
import type { Widget } from '@lumino/widgets';

/**
 * Show a tab in the main area, or below it: a page of Notebook 7 has one document and no other tab. Notebook 7.2 has
 * no area below, only sides.
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
