/** Consoles and notebooks on a warm kernel: the kernel `flyte-attach` is a guest in the replica that is named. */

import type { JupyterFrontEnd } from '@jupyterlab/application';
import { PathExt } from '@jupyterlab/coreutils';
import type { INotebookTracker } from '@jupyterlab/notebook';
import type { TranslationBundle } from '@jupyterlab/translation';
import { UUID } from '@lumino/coreutils';

const KERNEL = 'flyte-attach';

/**
 * Open a console on a replica ("gpu[1]") or on any of a pool ("gpu").
 *
 * @throws Error - If it cannot be done; its message says what to do.
 */
export async function openConsole(
  app: JupyterFrontEnd,
  target: string,
  trans: TranslationBundle
): Promise<void> {
  await findKernel(app, trans);
  if (!app.commands.hasCommand('console:create')) {
    throw new Error(trans.__('This application has no consoles. Open a notebook on it instead.'));
  }
  await app.commands.execute('console:create', {
    // The kernel finds the replica by the session's name.
    path: `${KERNEL}/${target}/${UUID.uuid4().slice(0, 8)}`,
    name: target,
    kernelPreference: { name: KERNEL, canStart: true, shouldStart: true }
  });
}

/** Open a new notebook on a replica, beside the one in use; see `openConsole`. */
export async function openNotebook(
  app: JupyterFrontEnd,
  tracker: INotebookTracker | null,
  target: string,
  trans: TranslationBundle
): Promise<void> {
  const kernelspec = await findKernel(app, trans);
  const { contents } = app.serviceManager;
  const beside = tracker?.currentWidget?.context.path ?? '';
  const { path } = await contents.newUntitled({ path: PathExt.dirname(beside), type: 'notebook' });
  // Written before its kernel starts, which reads it there.
  await contents.save(path, {
    type: 'notebook',
    format: 'json',
    content: {
      cells: [],
      metadata: { kernelspec, flyte_jupyter: { attach: target } },
      nbformat: 4,
      nbformat_minor: 5
    }
  });
  await app.commands.execute('docmanager:open', {
    path,
    factory: 'Notebook',
    kernel: { name: KERNEL }
  });
}

/** What a notebook says of the kernel. */
async function findKernel(
  app: JupyterFrontEnd,
  trans: TranslationBundle
): Promise<{ name: string; display_name: string }> {
  const { kernelspecs } = app.serviceManager;
  const known = (): string | undefined => kernelspecs.specs?.kernelspecs[KERNEL]?.display_name;
  if (known() === undefined) {
    // It may have been installed since; and what keeps the list from us, JupyterLab tells itself.
    await kernelspecs.refreshSpecs().catch(() => undefined);
  }
  const display_name = known();
  if (display_name === undefined) {
    throw new Error(
      trans.__(
        'The kernel %1 is not installed where Jupyter runs. Install flyte-jupyter there, then try again.',
        KERNEL
      )
    );
  }
  return { name: KERNEL, display_name };
}
