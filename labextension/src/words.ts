/** Numbers and names as people read them, shared with the card; and source code for cells. */

export {
  age,
  clock,
  duration,
  lastLine,
  MARKS,
  modelName,
  multiline,
  newestLine,
  roughly,
  size,
  stateCounts,
  timeOfDay,
  visible
} from '../../flyte_jupyter/widgets/words.js';

/** Source code for a cell that runs as a task of this pool. */
export function taskCell(name: string): string {
  return `%%flyte_task ${argument(name)}\n`;
}

/** Source code with which another notebook finds this pool, and shows it. */
export function connectionCell(name: string): string {
  return `%load_ext flyte_jupyter\n%flyte_pool show ${argument(name)}\n`;
}

/** A pool's name as a magic takes it. */
function argument(name: string): string {
  return /^[\w.-]+$/.test(name) ? name : JSON.stringify(name);
}

/** Source code that shows what this is about. */
export function exampleCell(): string {
  return `import flyte_jupyter as flyte

env = flyte.TaskEnvironment("example", reusable=flyte.ReusePolicy(replicas=(1, 2), idle_ttl=1800))


@env.task
def hello(name: str) -> str:
    return f"Hello {name}, from a warm kernel"


hello("you")
`;
}
