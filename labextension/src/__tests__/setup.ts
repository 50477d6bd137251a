// Lumino and the web components of Jupyter look at both while they are imported; jsdom has neither.
import { cleanup } from '@testing-library/react';
import { afterEach } from 'vitest';

globalThis.DragEvent ??= class extends MouseEvent {} as unknown as typeof DragEvent;
window.matchMedia ??= () =>
  ({
    matches: false,
    addEventListener: () => undefined,
    removeEventListener: () => undefined
  }) as unknown as MediaQueryList;

afterEach(cleanup);
