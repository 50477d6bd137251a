/** The plugins: the pools' state as a service, and the side panel with its commands. */

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ILayoutRestorer } from '@jupyterlab/application';
import { ICommandPalette, WidgetTracker } from '@jupyterlab/apputils';
import { INotebookTracker } from '@jupyterlab/notebook';
import { IRunningSessionManagers } from '@jupyterlab/running';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { ITranslator } from '@jupyterlab/translation';
import type { Menu } from '@lumino/widgets';

import { Api } from './api';
import { dragCell } from './cells';
import { addCommands } from './commands';
import { Commands } from './commands/ids';
import { DetailsTab } from './details/tab';
import { poolsIcon } from './icons';
import { PoolManager } from './manager';
import type { IViewProps } from './view_context';
import { RunningPools } from './running';
import { followSettings } from './settings';
import { PoolsPanel } from './panel/sidebar';
import { renderSavedCards } from './saved_card_renderer';
import { addTab } from './tabs';
import { IPoolManager } from './tokens';
import { Warner } from './warner';
import { whileVisible } from './while_visible';

export { IPoolManager };

/** The id of JupyterLab's panel of running kernels. */
const RUNNING_PANEL = 'jp-running-sessions';

const pools: JupyterFrontEndPlugin<IPoolManager> = {
  id: 'flyte-jupyter:pools',
  description: 'The state of the warm pools of flyte_jupyter.',
  autoStart: true,
  provides: IPoolManager,
  activate: (app: JupyterFrontEnd) => new PoolManager(new Api(app.serviceManager.serverSettings))
};

const panel: JupyterFrontEndPlugin<void> = {
  id: 'flyte-jupyter:plugin',
  description: 'The side panel of warm pools, with its commands.',
  autoStart: true,
  requires: [IPoolManager, ITranslator],
  optional: [
    ISettingRegistry,
    ILayoutRestorer,
    ICommandPalette,
    INotebookTracker,
    IRunningSessionManagers
  ],
  activate: (
    app: JupyterFrontEnd,
    manager: IPoolManager,
    translator: ITranslator,
    registry: ISettingRegistry | null,
    restorer: ILayoutRestorer | null,
    palette: ICommandPalette | null,
    tracker: INotebookTracker | null,
    sessions: IRunningSessionManagers | null
  ) => {
    const trans = translator.load('flyte_jupyter');
    const { commands, shell } = app;
    const tabs = new WidgetTracker<DetailsTab>({ namespace: 'flyte-jupyter-details' });
    const settings = followSettings(registry, panel.id, () => {
      sidebar.update();
      tabs.forEach(tab => tab.update());
    });
    const view = (): IViewProps => ({
      manager,
      trans,
      execute: (command, args) => void commands.execute(command, args),
      startDrag: dragCell,
      reloadPage: () => window.location.reload(),
      settings: settings()
    });
    const sidebar = new PoolsPanel(view);
    shell.add(sidebar, 'left', { rank: 550, type: 'Flyte pools' });
    restorer?.add(sidebar, sidebar.id);
    commands.addCommand(Commands.open, {
      label: trans.__('Flyte Pools'),
      caption: trans.__('Show the panel of warm pools'),
      icon: poolsIcon,
      describedBy: { args: { type: 'object', properties: {} } },
      execute: () => shell.activateById(sidebar.id)
    });
    palette?.addItem({ command: Commands.open, category: trans.__('Flyte') });
    const keepSeconds = (): number => settings().keepSeconds;
    const openDetails = (pool: string, name: string): void => {
      const open = tabs.find(tab => tab.pool === pool);
      if (open) {
        shell.activateById(open.id);
        return;
      }
      const tab = new DetailsTab(pool, name, view);
      addTab(shell, tab);
      void tabs.add(tab);
    };
    addCommands({ app, manager, trans, palette, tracker, keepSeconds, openDetails });
    if (restorer) {
      void restorer.restore(tabs, {
        command: Commands.details,
        args: ({ pool, name }) => ({ pool, name }),
        name: ({ pool }) => pool
      });
    }
    returnFocus(app.contextMenu.menu);
    new Warner(manager, commands, settings, trans);
    if (sessions) {
      sessions.add(new RunningPools(manager, commands, trans));
      void app.restored.then(() => {
        const list = [...shell.widgets('left')].find(widget => widget.id === RUNNING_PANEL);
        if (list) {
          whileVisible(list, () => manager.watch());
        }
      });
    }
  }
};

/** Give the focus back when a menu closes that was opened by one of our buttons, or by the keyboard on one. */
function returnFocus(menu: Menu): void {
  let from: HTMLElement | null = null;
  document.addEventListener(
    'contextmenu',
    ({ target }) => {
      const ours = target instanceof Element && target.closest('.fj-View');
      from = ours && document.activeElement instanceof HTMLElement ? document.activeElement : null;
    },
    true
  );
  menu.aboutToClose.connect(() => {
    from?.focus();
    from = null;
  });
}

const savedCards: JupyterFrontEndPlugin<void> = {
  id: 'flyte-jupyter:saved-cards',
  description: 'Shows the saved text of cards in notebooks that were opened again.',
  autoStart: true,
  optional: [INotebookTracker],
  activate: (_: JupyterFrontEnd, tracker: INotebookTracker | null) => {
    if (tracker) {
      renderSavedCards(tracker);
    }
  }
};

export default [pools, panel, savedCards];
