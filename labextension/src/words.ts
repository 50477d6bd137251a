/**
 * Numbers and names as people read them. Pure: no JupyterLab, no clock; `now` is Unix time in seconds.
 */

import type { IDevice, IPool, IReplica, ReplicaState } from './models';

/** Control characters and marks that turn text around, which a name may hold and a label must not. */
const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;

/**
 * Show what would steer a label as an escape, and cut what is too long.
 *
 * Markup needs nothing here: React and DOM text nodes show it as it is.
 */
export function visible(text: string, longest = 80): string {
  const cut = text.length > longest ? `${text.slice(0, longest - 1)}…` : text;
  return cut.replace(HIDDEN, mark => {
    const code = mark.codePointAt(0) ?? 0;
    return `\\u${code.toString(16).padStart(4, '0')}`;
  });
}

/** The same for a whole text of many lines; what goes back to the beginning of a line begins another. */
export function visibleLines(text: string): string {
  return text
    .split(/\r\n|\r|\n/)
    .map(line =>
      line
        .split('\t')
        .map(part => visible(part, Infinity))
        .join('\t')
    )
    .join('\n');
}

/** A time that runs, as a clock shows it: 7 is "0:07", 1780.2 is "29:40", 7200 is "2:00:00". */
export function countdown(seconds: number): string {
  const left = Math.max(0, Math.floor(seconds));
  const two = (value: number): string => String(value).padStart(2, '0');
  const hours = Math.floor(left / 3600);
  const minutes = Math.floor((left % 3600) / 60);
  return hours ? `${hours}:${two(minutes)}:${two(left % 60)}` : `${minutes}:${two(left % 60)}`;
}

/** A time that stands still, roughly: 0.084 is "84 ms", 12 is "12 s", 1800 is "30 min", 5400 is "1 h 30 min". */
export function duration(seconds: number): string {
  const left = Math.max(0, Math.floor(seconds));
  if (seconds > 0 && seconds < 0.5) {
    return `${Math.max(1, Math.round(seconds * 1000))} ms`;
  }
  if (left < 60) {
    return seconds < 10 && seconds % 1 ? `${Math.max(0, seconds).toFixed(1)} s` : `${left} s`;
  }
  if (left < 3600) {
    return `${Math.floor(left / 60)} min`;
  }
  const minutes = Math.floor((left % 3600) / 60);
  return minutes ? `${Math.floor(left / 3600)} h ${minutes} min` : `${Math.floor(left / 3600)} h`;
}

/** Bytes, as people say them. */
export function size(bytes: number): string {
  return bytes >= 2 ** 30
    ? `${(bytes / 2 ** 30).toFixed(1)} GiB`
    : `${Math.round(bytes / 2 ** 20)} MiB`;
}

/** A card as people call it: "NVIDIA GeForce RTX 4090" is "RTX 4090". */
export function deviceName(device: IDevice): string {
  const model = device.model.replace(/^NVIDIA /, '').replace(/^GeForce /, '');
  return visible(device.partition === null ? model : `${model} ${device.partition}`);
}

/** How many replicas are in each state, in the order in which a life goes. */
export function stateCounts(replicas: readonly IReplica[]): [ReplicaState, number][] {
  const order: ReplicaState[] = [
    'busy',
    'attached',
    'ready',
    'loading',
    'starting',
    'draining',
    'stopping'
  ];
  return order
    .map((state): [ReplicaState, number] => [
      state,
      replicas.filter(replica => replica.state === state).length
    ])
    .filter(([, count]) => count > 0);
}

/** The instant at which something in this pool ends by itself next; null while nothing does. */
export function nextEnd(pool: IPool): number | null {
  const ends = [pool.idle_stops_at, ...pool.replicas.map(replica => replica.stops_at)];
  const known = ends.filter((end): end is number => end !== null);
  return known.length ? Math.min(...known) : null;
}

/** The time of day, as this place writes it. */
export function timeOfDay(instant: number): string {
  return new Date(instant * 1000).toLocaleTimeString([], {
    hour: '2-digit',
    minute: '2-digit',
    second: '2-digit'
  });
}

/** The last line of an error's text: what Python puts there is what happened. */
export function lastLine(text: string): string {
  const lines = text.split('\n').filter(line => line.trim());
  return lines.length ? lines[lines.length - 1].trim() : '';
}

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
