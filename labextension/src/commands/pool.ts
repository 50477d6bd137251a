/** The commands on a pool, and the one that stops all pools. */

import { Dialog, showDialog } from '@jupyterlab/apputils';
import { codeIcon, stopIcon } from '@jupyterlab/ui-components';

import { insertCell } from '../cells';
import { askHours, askLimits, confirmStop } from '../dialogs';
import { poolsIcon } from '../icons';
import { showText, TextTab } from '../text_tab';
import { connectionCell, duration, taskCell, visible } from '../words';
import type { CommandBuilder } from './builder';
import { Commands } from './ids';

/** Commands that show a pool, or code for it. */
export function addPoolViews(builder: CommandBuilder): void {
  const { app, manager, trans, tracker, openDetails } = builder.services;
  builder.addForPool(Commands.insert, {
    label: trans.__('Insert Task Cell'),
    caption: trans.__('Insert a cell that runs in this pool, below the active one'),
    icon: codeIcon,
    run: async pool => {
      await insertCell(app, tracker, taskCell(pool.name), trans);
    }
  });
  builder.addForPool(Commands.connect, {
    label: trans.__('Insert Connection Code'),
    caption: trans.__('Insert a cell with which this notebook finds and shows the pool'),
    icon: codeIcon,
    run: async pool => {
      await insertCell(app, tracker, connectionCell(pool.name), trans);
    }
  });
  builder.add(Commands.details, {
    label: args => (args.ask ? trans.__('Pool Details') : trans.__('Details')),
    caption: trans.__('Show all about this pool in a tab'),
    icon: poolsIcon,
    args: ['pool', 'name', 'ask'],
    isEnabled: args => !!args.ask || builder.named(args, 'pool') !== null,
    execute: async args => {
      const pool = await builder.choosePool(args);
      // A tab of the last session comes back before anything is known of its pool.
      const key = pool?.key ?? builder.named(args, 'pool');
      if (key !== null) {
        openDetails(key, pool?.name ?? (typeof args.name === 'string' ? args.name : key));
      }
    }
  });
  builder.add(Commands.failure, {
    label: trans.__('Show Failure'),
    needs: 'logs',
    caption: trans.__('The whole traceback of the last failed start'),
    inPalette: false,
    args: ['pool'],
    isEnabled: args => !!builder.pool(args)?.failure,
    execute: async args => {
      const pool = builder.pool(args);
      if (pool) {
        const label = trans.__('Failure of %1', visible(pool.name));
        const load = (): Promise<string> => manager.failure(pool.key);
        await builder.attempt('logs', () => showText(app.shell, new TextTab(label, load, trans)));
      }
    }
  });
}

/** Commands that change a pool. */
export function addPoolVerbs(builder: CommandBuilder): void {
  const { manager, trans, keepSeconds } = builder.services;
  builder.addForPool(Commands.scale, {
    label: trans.__('Scale…'),
    needs: 'change',
    caption: trans.__('Set the minimum and the maximum number of replicas'),
    args: ['minimum', 'maximum'],
    run: async (pool, args) => {
      const limits =
        typeof args.minimum === 'number' && typeof args.maximum === 'number'
          ? { minimum: args.minimum, maximum: args.maximum }
          : await askLimits(pool, trans);
      if (limits) {
        await manager.act({ on: 'pools', id: pool.key, verb: 'scale', body: limits });
      }
    }
  });
  builder.addForPool(Commands.warm, {
    label: trans.__('Warm Now'),
    needs: 'change',
    caption: trans.__('Start the minimum of replicas, at least one, now'),
    run: pool =>
      manager.act({
        on: 'pools',
        id: pool.key,
        verb: 'warm',
        body: { replicas: Math.max(1, pool.scaling.min_replicas) }
      })
  });
  builder.addForPool(Commands.keep, {
    label: args =>
      builder.pool(args)?.kept_until
        ? trans.__('Stop Keeping')
        : trans.__('Keep for %1', duration(keepSeconds())),
    needs: 'change',
    caption: trans.__('Keep idle replicas running for that time'),
    args: ['seconds'],
    run: (pool, { seconds }) => {
      const usual = pool.kept_until ? 0 : keepSeconds();
      const body = { seconds: typeof seconds === 'number' ? seconds : usual };
      return manager.act({ on: 'pools', id: pool.key, verb: 'keep', body });
    }
  });
  builder.addForPool(Commands.keepFor, {
    label: trans.__('Keep…'),
    needs: 'change',
    caption: trans.__('Keep idle replicas running for a given time'),
    run: async pool => {
      const hours = await askHours(pool, keepSeconds() / 3600, trans);
      if (hours !== null) {
        const body = { seconds: hours * 3600 };
        await manager.act({ on: 'pools', id: pool.key, verb: 'keep', body });
      }
    }
  });
  builder.addForPool(Commands.restart, {
    label: trans.__('Restart One by One…'),
    needs: 'change',
    caption: trans.__('Replace all replicas; the old ones answer until the new ones are ready'),
    needsReplicas: true,
    run: async pool => {
      const { button } = await showDialog({
        title: trans.__('Restart pool %1?', visible(pool.name)),
        body: trans.__(
          'Its replicas are replaced one by one and load everything again. The old ones answer until then.'
        ),
        buttons: [Dialog.cancelButton(), Dialog.okButton({ label: trans.__('Restart') })],
        defaultButton: 0
      });
      if (button.accept) {
        await manager.act({ on: 'pools', id: pool.key, verb: 'restart' });
      }
    }
  });
  builder.addForPool(Commands.interruptPool, {
    label: trans.__('Interrupt All Calls'),
    needs: 'change',
    caption: trans.__('Stop the calls that run on all replicas; what is loaded stays'),
    needsReplicas: true,
    run: pool => manager.act({ on: 'pools', id: pool.key, verb: 'interrupt' })
  });
  builder.addForPool(Commands.stop, {
    label: trans.__('Stop…'),
    needs: 'change',
    caption: trans.__('Stop every replica after its running calls, or at once'),
    icon: stopIcon,
    needsReplicas: true,
    run: async pool => {
      const force = await confirmStop([pool], trans);
      if (force !== null) {
        await manager.act({ on: 'pools', id: pool.key, verb: 'stop', body: { force } });
      }
    }
  });
  builder.add(Commands.stopAll, {
    label: trans.__('Stop All Pools…'),
    needs: 'change',
    caption: trans.__('Stop all replicas of all pools'),
    args: ['confirmed'],
    execute: async args => {
      const all = (await builder.allPools()).filter(pool => pool.replicas.length > 0);
      if (!all.length) {
        return;
      }
      await builder.attempt('change', async () => {
        const force = args.confirmed === true ? false : await confirmStop(all, trans);
        if (force !== null) {
          await Promise.all(
            all.map(({ key }) =>
              manager.act({ on: 'pools', id: key, verb: 'stop', body: { force } })
            )
          );
        }
      });
    }
  });
}
