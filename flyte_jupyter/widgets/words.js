// Numbers and names as people read them. Pure: no DOM, no clock.

// Control characters and bidi overrides would steer or turn the text: they are shown as escapes.
export function visible(text, longest = 200) {
  const cut = String(text).length > longest ? `${String(text).slice(0, longest - 1)}…` : String(text);
  return cut.replace(
    /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu,
    (mark) => `\\u${mark.codePointAt(0).toString(16).padStart(4, "0")}`,
  );
}

// The same for a text of several lines, which stay lines.
export function multiline(text) {
  return text
    .split("\n")
    .map((line) => visible(line, 2000))
    .join("\n");
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
  if (left < 0.9995) return `${Math.round(left * 1000)} ms`;
  if (left < 9.95) return `${left.toFixed(1)} s`;
  const whole = Math.round(left);
  const parts = (many, unit, few, small) => (few ? `${many} ${unit} ${few} ${small}` : `${many} ${unit}`);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return parts(Math.floor(whole / 60), "min", whole % 60, "s");
  return parts(Math.floor(whole / 3600), "h", Math.floor((whole % 3600) / 60), "min");
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
