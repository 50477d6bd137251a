// Numbers, states and names as people read them, in the card and in the side panel. Pure: no DOM, no clock.

// A shape for each state of a replica or pool; its word stands beside it, so neither colour nor shape alone says it.
export const MARKS = {
  busy: "►",
  ready: "●",
  attached: "◆",
  loading: "◔",
  starting: "◌",
  waiting: "◇",
  draining: "◍",
  stopping: "◍",
  stopped: "○",
  failed: "✕",
};

const ORDER = ["ready", "busy", "attached", "loading", "starting", "draining", "stopping"];

// How many replicas are in each state: [["ready", 2], ["busy", 1]].
export function stateCounts(replicas) {
  const counts = new Map(ORDER.map((state) => [state, 0]));
  for (const { state } of replicas) counts.set(state, (counts.get(state) ?? 0) + 1);
  return [...counts].filter(([, count]) => count);
}

// Control characters and marks that turn text around would steer a label: they are shown as escapes. Markup needs
// nothing here, since text goes in as text.
export function visible(text, longest = 200) {
  const whole = String(text);
  const cut = whole.length > longest ? `${whole.slice(0, longest - 1).replace(/\p{Cs}$/u, "")}…` : whole;
  return cut.replace(
    /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu,
    (mark) => `\\u${mark.codePointAt(0).toString(16).padStart(4, "0")}`,
  );
}

// The same for a whole text, which keeps its lines and tabs; what goes back to the beginning of a line begins another.
export function multiline(text) {
  const line = (each) =>
    each
      .split("\t")
      .map((part) => visible(part, Infinity))
      .join("\t");
  return text
    .split(/\r\n|\r|\n/)
    .map(line)
    .join("\n");
}

// The last line of an error's text: what Python puts there is what happened.
export function lastLine(text) {
  return text.trim().split("\n").pop().trim();
}

// The last line of a log, also where lines are written over each other, as by progress bars.
export function newestLine(text) {
  return lastLine(text.trim().replaceAll("\r", "\n"));
}

// A card as people call it: "NVIDIA GeForce RTX 4090" is "RTX 4090".
export function modelName(model) {
  return visible(model.replace(/^(NVIDIA )?(GeForce )?/, ""));
}

// A time that runs, as a clock shows it: 7 is "0:07", 7200 is "2:00:00".
export function clock(seconds) {
  const left = Math.max(0, Math.floor(seconds));
  const two = (number) => String(number).padStart(2, "0");
  const [hours, minutes] = [Math.floor(left / 3600), Math.floor((left % 3600) / 60)];
  return hours ? `${hours}:${two(minutes)}:${two(left % 60)}` : `${minutes}:${two(left % 60)}`;
}

// A time that stands still: 0.012 is "12 ms", 3.21 is "3.2 s", 125 is "2 min 5 s", 5400 is "1 h 30 min".
export function duration(seconds) {
  const left = Math.max(0, seconds);
  if (left < 0.001) return "less than 1 ms";
  if (left < 0.4995) return `${Math.round(left * 1000)} ms`;
  if (left < 9.95 && !Number.isInteger(left)) return `${left.toFixed(1)} s`;
  const whole = Math.round(left);
  const parts = (many, unit, few, small) => (few ? `${many} ${unit} ${few} ${small}` : `${many} ${unit}`);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return parts(Math.floor(whole / 60), "min", whole % 60, "s");
  return parts(Math.floor(whole / 3600), "h", Math.floor((whole % 3600) / 60), "min");
}

// How old something is, which changes once a minute: 0.4 is "0 s", 42 is "42 s", 2472 is "41 min".
export function age(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  return whole ? duration(whole < 60 ? whole : whole - (whole % 60)) : "0 s";
}

// An estimate, as magics and command line write it: 0.3 is "1 s", 42 is "42 s", 130 is "2 min", 9000 is "2.5 h".
export function roughly(seconds) {
  if (seconds < 99.5) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 99.5 * 60 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

// Bytes: 50,000,000 is "48 MiB".
export function size(bytes) {
  return bytes >= 2 ** 30 ? `${(bytes / 2 ** 30).toFixed(1)} GiB` : `${Math.round(bytes / 2 ** 20)} MiB`;
}

const MINUTES = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit" });
const SECONDS = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });

// The time of day, in the reader's zone: 1767225600 is "01:00" in Paris.
export function timeOfDay(unix, seconds = false) {
  return (seconds ? SECONDS : MINUTES).format(unix * 1000);
}
