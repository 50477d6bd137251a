import jupyter from '@jupyter/eslint-plugin';
import tseslint from 'typescript-eslint';

export default tseslint.config(
  { ignores: ['lib/**', 'node_modules/**', '**/*.d.ts', '*.mjs', '*.mts'] },
  { plugins: { jupyter } },
  jupyter.configs.recommended,
  {
    files: ['src/**/*.{ts,tsx}'],
    extends: [tseslint.configs.recommended],
    languageOptions: { parserOptions: { projectService: true } },
    rules: {
      '@typescript-eslint/no-explicit-any': 'error',
      '@typescript-eslint/no-non-null-assertion': 'error',
      '@typescript-eslint/no-floating-promises': 'error',
      // A token and the interface of what it stands for share a name, as everywhere in JupyterLab.
      '@typescript-eslint/no-redeclare': 'off',
      // All of it is needed at once, and small; tabs of text are loaded when opened.
      'jupyter/prefer-lazy-imports': 'off',
      eqeqeq: 'error'
    }
  },
  {
    files: ['src/__tests__/**'],
    rules: {
      'jupyter/no-untranslated-string': 'off',
      'jupyter/command-described-by': 'off'
    }
  }
);
