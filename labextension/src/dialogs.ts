/** The dialogs before a pool or replica is changed. */

import { Dialog, InputDialog, showDialog } from '@jupyterlab/apputils';
import type { TranslationBundle } from '@jupyterlab/translation';
import { Widget } from '@lumino/widgets';

import type { Limits } from '../../flyte_jupyter/widgets/pending_limits.js';
import type { IPool } from './models';
import { running } from './queries';
import { visible } from './words';

/** The check box that ends running calls, too. */
export function forceBox(count: number, trans: TranslationBundle): Dialog.ICheckbox {
  return {
    label: trans._n(
      'End %1 running call now; it fails',
      'End %1 running calls now; they fail',
      count
    ),
    caption: trans.__('Otherwise running calls may end first'),
    checked: false,
    className: ''
  };
}

/** Ask before pools stop. Returns whether running calls end too, or null for "no". */
export async function confirmStop(
  pools: readonly IPool[],
  trans: TranslationBundle
): Promise<boolean | null> {
  const replicas = pools.reduce((sum, pool) => sum + pool.replicas.length, 0);
  const calls = pools.reduce((sum, pool) => sum + running(pool), 0);
  const { button, isChecked } = await showDialog({
    title:
      pools.length === 1
        ? trans.__('Stop pool %1?', visible(pools[0].name))
        : trans._n('Stop %1 pool?', 'Stop all %1 pools?', pools.length),
    body: stopText(replicas, trans),
    checkbox: calls ? forceBox(calls, trans) : null,
    buttons: [Dialog.cancelButton(), Dialog.warnButton({ label: trans.__('Stop') })],
    defaultButton: 0
  });
  return button.accept ? isChecked === true : null;
}

/** The consequence of stopping so many replicas. */
export function stopText(replicas: number, trans: TranslationBundle): string {
  return trans._n(
    '%1 warm replica stops and loses what it has loaded. The next call starts the pool again.',
    '%1 warm replicas stop and lose what they have loaded. The next call starts the pool again.',
    replicas
  );
}

class LimitsForm extends Widget implements Dialog.IBodyWidget<Limits> {
  constructor(pool: IPool, trans: TranslationBundle) {
    super();
    this.addClass('fj-Limits');
    const { min_replicas, max_replicas } = pool.scaling;
    this._minimum = this._field(trans.__('At least'), min_replicas, 0);
    this._maximum = this._field(trans.__('At most'), max_replicas, 1);
  }

  getValue(): Limits {
    const minimum = Math.max(0, Math.round(this._minimum.valueAsNumber || 0));
    const maximum = Math.max(1, Math.round(this._maximum.valueAsNumber || 1));
    return { minimum, maximum: Math.max(minimum, maximum) };
  }

  private _field(text: string, value: number, least: number): HTMLInputElement {
    const label = document.createElement('label');
    label.textContent = text;
    const input = document.createElement('input');
    input.type = 'number';
    input.className = 'jp-mod-styled';
    input.min = String(least);
    input.value = String(value);
    label.append(input);
    this.node.append(label);
    return input;
  }

  private readonly _minimum: HTMLInputElement;
  private readonly _maximum: HTMLInputElement;
}

/** Ask between how many replicas a pool may have; null for "no change". */
export async function askLimits(pool: IPool, trans: TranslationBundle): Promise<Limits | null> {
  const { button, value } = await showDialog({
    title: trans.__('Replicas of pool %1', visible(pool.name)),
    body: new LimitsForm(pool, trans),
    buttons: [Dialog.cancelButton(), Dialog.okButton({ label: trans.__('Scale') })],
    focusNodeSelector: 'input'
  });
  return button.accept ? value : null;
}

/** Ask for how many hours a pool is to be kept; null for "no change". */
export async function askHours(
  pool: IPool,
  hours: number,
  trans: TranslationBundle
): Promise<number | null> {
  const { button, value } = await InputDialog.getNumber({
    title: trans.__('Keep pool %1', visible(pool.name)),
    label: trans.__('For so many hours no replica stops for being idle; 0 ends it'),
    value: hours,
    okLabel: trans.__('Keep')
  });
  return button.accept && value !== null && value >= 0 ? value : null;
}
