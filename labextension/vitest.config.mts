import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    environment: 'jsdom',
    include: ['src/__tests__/**/*.spec.{ts,tsx}'],
    setupFiles: ['src/__tests__/setup.ts'],
    // Modules of JupyterLab are written for bundlers: imports without a file's ending, CSS, SVG.
    server: { deps: { inline: [/@jupyterlab\//, /@jupyter\//, /@lumino\//, /@rjsf\//] } }
  }
});
