import { defineConfig } from 'vitest/config';

export default defineConfig({
  // One copy for us and for Lumino's own modules, each of which would find another of its builds.
  resolve: {
    alias: [{ find: /^@lumino\/(\w+)$/, replacement: '@lumino/$1/dist/index.es6.js' }]
  },
  test: {
    environment: 'jsdom',
    include: ['src/__tests__/**/*.spec.{ts,tsx}'],
    setupFiles: ['src/__tests__/setup.ts'],
    // Modules of JupyterLab are written for bundlers: imports without a file's ending, CSS, SVG.
    server: { deps: { inline: [/@jupyterlab\//, /@jupyter\//, /@lumino\//, /@rjsf\//] } }
  }
});
