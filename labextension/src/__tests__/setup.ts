// Lumino and the web components of Jupyter look at both while they are imported; jsdom has neither.
import { cleanup } from '@testing-library/react';
import { afterEach } from 'vitest';

globalThis.DragEvent ??= class extends MouseEvent {} as unknown as typeof DragEvent;
window.matchMedia ??= () =>
  ({
    matches: false,
    addListener: () => undefined, // of a web component's toolbar
    removeListener: () => undefined,
    addEventListener: () => undefined,
    removeEventListener: () => undefined
  }) as unknown as MediaQueryList;

afterEach(cleanup);
