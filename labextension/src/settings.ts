/** The settings, with what holds until they are read and where there is no registry. */

import type { ISettingRegistry } from '@jupyterlab/settingregistry';

export interface IPanelSettings {
  warnSeconds: number;
  keepSeconds: number;
  showClients: boolean;
  notify: boolean;
}

/** A function that returns the settings as they are now; `onChange` is called after each change. */
export function followSettings(
  registry: ISettingRegistry | null,
  plugin: string,
  onChange: () => void
): () => IPanelSettings {
  let now: IPanelSettings = {
    warnSeconds: 120,
    keepSeconds: 7200,
    showClients: true,
    notify: true
  };
  const read = (settings: ISettingRegistry.ISettings): void => {
    now = {
      warnSeconds: 60 * Number(settings.get('warnMinutes').composite),
      keepSeconds: 3600 * Number(settings.get('keepHours').composite),
      showClients: settings.get('showClients').composite !== false,
      notify: settings.get('notify').composite !== false
    };
    onChange();
  };
  registry
    ?.load(plugin)
    .then(settings => {
      read(settings);
      settings.changed.connect(read);
    })
    .catch((error: unknown) => {
      console.warn('flyte-jupyter: its settings cannot be read, defaults hold', error);
    });
  return () => now;
}
