/** A manager of which a test says what it knows. */

import type { ISignal } from '@lumino/signaling';
import { Signal } from '@lumino/signaling';
import { vi } from 'vitest';

import type { TimelineAnswer } from '../../../flyte_jupyter/widgets/timeline.js';
import type { IPeek, IState } from '../models';
import type { IRecent } from '../recent';
import type { IPoolManager, ServerStatus } from '../tokens';

export class FakeManager implements IPoolManager {
  state: IState | null = null;
  serverStatus: ServerStatus = 'connecting';
  problem = '';
  recent: IRecent[] = [];
  readonly isDisposed = false;
  /** What was asked of timelines, and what is answered. */
  marks: (string | null)[] = [];
  answer: () => Promise<TimelineAnswer> = () => Promise.reject(new Error('no timeline here'));

  get changed(): ISignal<this, void> {
    return this._changed;
  }

  set(state: IState | null, serverStatus: ServerStatus = 'live'): void {
    this.state = state;
    this.serverStatus = serverStatus;
    this._changed.emit();
  }

  timeline(_: string, since: string | null): Promise<TimelineAnswer> {
    this.marks.push(since);
    return this.answer();
  }

  now = (): number => Date.now() / 1000;
  watch = (): { isDisposed: boolean; dispose: () => void } => ({
    isDisposed: false,
    dispose: () => undefined
  });
  refresh = vi.fn(() => Promise.resolve());
  act = (): Promise<void> => Promise.resolve();
  log = vi.fn<(replica: string, lines: number) => Promise<string>>(() => Promise.resolve(''));
  failure = (): Promise<string> => Promise.resolve('');
  peek = (): Promise<IPeek> => Promise.resolve({ lines: [] });
  dispose = (): void => undefined;

  private readonly _changed = new Signal<this, void>(this);
}
