/** The ids of all commands; menus and key bindings in `schema/plugin.json` use them, too. */

export const Commands = {
  open: 'flyte-jupyter:open',
  refresh: 'flyte-jupyter:refresh',
  example: 'flyte-jupyter:create-example',
  insert: 'flyte-jupyter:insert-task-cell',
  connect: 'flyte-jupyter:insert-connection-code',
  details: 'flyte-jupyter:details',
  scale: 'flyte-jupyter:scale',
  warm: 'flyte-jupyter:warm',
  keep: 'flyte-jupyter:keep',
  keepFor: 'flyte-jupyter:keep-for',
  restart: 'flyte-jupyter:restart',
  stop: 'flyte-jupyter:stop',
  stopAll: 'flyte-jupyter:stop-all',
  restartReplica: 'flyte-jupyter:restart-replica',
  interrupt: 'flyte-jupyter:interrupt',
  interruptPool: 'flyte-jupyter:interrupt-pool',
  cancel: 'flyte-jupyter:cancel',
  console: 'flyte-jupyter:open-console',
  notebook: 'flyte-jupyter:open-notebook',
  peek: 'flyte-jupyter:peek',
  logs: 'flyte-jupyter:logs',
  failure: 'flyte-jupyter:show-failure',
  copyId: 'flyte-jupyter:copy-id'
} as const;
