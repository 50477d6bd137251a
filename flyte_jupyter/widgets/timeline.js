// What each replica of a pool did in the last minutes, on a canvas. No framework: the card and the side panel use it
// alike. Whatever a task or a notebook is called goes in by textContent and fillText alone.
//
// One device pixel is a fixed piece of time, and bars begin and end on whole pixels: so the picture has to be drawn
// again only when it has moved by a pixel, and what is short and many becomes one bar.

import { duration, timeOfDay, visible } from "./words.js";

const ROW = 22;
const BAR = { top: 7, height: 13 };
const AXIS = 20;
const QUEUE = "queue";
const REACHES = [60, 120, 300]; // a pool that is younger than the window fills the picture, too
const GOOD = new Set([null, "succeeded"]);
// Drawn in this order: what went wrong must not lie below what went well.
const LOOKS = ["waiting", "starting", "loading", "running", "cancelled", "lost", "failed"];
const WORDS = {
  starting: "starting",
  loading: "loading",
  running: "running",
  waiting: "waiting",
  waited: "waited",
  idle: "warm, idle",
  cancelled: "cancelled",
  lost: "lost",
  failed: "failed",
  succeeded: "succeeded",
};

// Those of JupyterLab's theme, those of VS Code, or those that suit the reader's system.
const palette = (text, quiet, line, back, running, loading, failed) => `
  --flyte-text: var(--jp-ui-font-color1, var(--vscode-foreground, ${text}));
  --flyte-quiet: var(--jp-ui-font-color2, var(--vscode-descriptionForeground, ${quiet}));
  --flyte-line: var(--jp-border-color2, var(--vscode-panel-border, ${line}));
  --flyte-back: var(--jp-layout-color1, var(--vscode-editor-background, ${back}));
  --flyte-running: var(--jp-brand-color1, var(--vscode-charts-blue, ${running}));
  --flyte-loading: var(--jp-warn-color1, var(--vscode-charts-orange, ${loading}));
  --flyte-failed: var(--jp-error-color1, var(--vscode-errorForeground, ${failed}));`;

export const COLOURS = `
.flyte-colours { ${palette("#212121", "#5f5f5f", "#bdbdbd", "#fff", "#1976d2", "#c25700", "#b71c1c")} }
@media (prefers-color-scheme: dark) {
  .flyte-colours { ${palette("#e6e6e6", "#b0b0b0", "#5c5c5c", "#1b1b1b", "#64b5f6", "#ffb74d", "#ff8a80")} }
}
@media (forced-colors: active) {
  .flyte-colours {
    --flyte-text: CanvasText; --flyte-quiet: CanvasText; --flyte-line: GrayText; --flyte-back: Canvas;
    --flyte-running: Highlight; --flyte-loading: CanvasText; --flyte-failed: LinkText;
  }
}`;

const STYLE = `${COLOURS}
.flyte-timeline { color: var(--flyte-text); position: relative; }
.flyte-timeline canvas { display: block; }
.flyte-timeline canvas:focus-visible { outline: 2px solid var(--flyte-running); outline-offset: 1px; }
.flyte-timeline .flyte-tip {
  background: var(--flyte-back); border: 1px solid var(--flyte-text); border-radius: 3px; max-width: 60%;
  overflow-wrap: anywhere; padding: 3px 8px; pointer-events: none; position: absolute; z-index: 1;
}
.flyte-timeline .flyte-tip:empty { display: none; }
.flyte-timeline .flyte-tip :first-child { font-weight: 600; }
.flyte-timeline table { border-collapse: collapse; }
.flyte-timeline th, .flyte-timeline td { font-weight: 400; padding: 1px 12px 1px 0; text-align: left; }
`;

const english = (key, ...args) => key.replace(/%(\d)/g, (_, place) => args[place - 1]);

export class Timeline {
  #text;
  #root = document.createElement("div");
  #canvas = document.createElement("canvas");
  #tip = document.createElement("div");
  #list = document.createElement("tbody");
  #watch;
  #seen = true; // until the observer says otherwise
  #timer = 0;
  #frame = 0;

  #mark = null;
  #window = 600;
  #reach = 600; // seconds that are shown
  #earliest = 0; // what there is to see
  #skew = 0; // of the broker's clock to this one's
  #epoch = 0;
  #lanes = [];
  #spans = new Map();
  #changes = new Map();
  #rows = []; // {label, lanes, spans in order of time, looks: look -> spans}
  #picked = null; // {row, span, more: how many others lie there}
  #told = "";
  #plot = { left: 0, right: 1, scale: 1, ratio: 1, now: 0 }; // device pixels, and pixels per second
  #patterns = new Map();

  constructor(host, options = {}) {
    this.#text = options.text ?? english;
    this.#build(host);
    this.#watch =
      globalThis.IntersectionObserver && new IntersectionObserver(([entry]) => this.#look(entry.isIntersecting));
    this.#watch?.observe(this.#root);
    document.addEventListener("visibilitychange", this.#now);
  }

  get mark() {
    return this.#mark;
  }

  get changes() {
    return [...this.#changes.values()].map((change) => ({ ...change, at: change.at + this.#epoch }));
  }

  take(answer) {
    this.#mark = answer.mark;
    this.#window = answer.window_s;
    this.#epoch = answer.epoch_offset;
    this.#skew = answer.now - answer.epoch_offset - Date.now() / 1000;
    this.#lanes = answer.lanes;
    if (answer.whole) {
      this.#spans.clear();
      this.#changes.clear();
    }
    for (const span of answer.spans) this.#spans.set(span.id, span);
    for (const change of answer.changes) this.#changes.set(change.id, change);
    this.#arrange();
    this.#now();
  }

  dispose() {
    this.#watch?.disconnect();
    document.removeEventListener("visibilitychange", this.#now);
    this.#rest();
    this.#root.remove();
  }

  // --- ticking

  #instant() {
    return Date.now() / 1000 + this.#skew;
  }

  #look(seen) {
    this.#seen = seen;
    this.#now();
  }

  #rest() {
    clearTimeout(this.#timer);
    cancelAnimationFrame(this.#frame);
  }

  // Draw with the next frame, or stand still while nobody can see it.
  #now = () => {
    this.#rest();
    if (this.#seen && !document.hidden) this.#frame = requestAnimationFrame(() => this.#tick());
  };

  #tick() {
    this.#draw();
    const still = globalThis.matchMedia?.("(prefers-reduced-motion: reduce)").matches;
    this.#timer = setTimeout(this.#now, still ? 5000 : Math.max(100, 1000 / this.#plot.scale));
  }

  // --- what there is

  #arrange() {
    const oldest = this.#instant() - this.#window;
    for (const [id, span] of this.#spans) if (span.ended !== null && span.ended < oldest) this.#spans.delete(id);
    const rows = new Map();
    const places = new Map();
    for (const lane of [...this.#lanes].sort((one, other) => one.index - other.index)) {
      if (lane.ended_at !== null && lane.ended_at < oldest) continue;
      // A successor of the same number goes on in the same row.
      if (!rows.has(lane.index))
        rows.set(lane.index, { label: visible(lane.name), lanes: [], spans: [], looks: new Map() });
      rows.get(lane.index).lanes.push(lane);
      places.set(lane.replica, rows.get(lane.index));
    }
    const queue = { label: this.#text(QUEUE), lanes: [], spans: [], looks: new Map() };
    for (const span of this.#spans.values())
      (span.kind === "waiting" ? queue : places.get(span.replica))?.spans.push(span);
    this.#rows = [...rows.values(), ...(queue.spans.length ? [queue] : [])];
    for (const row of this.#rows) {
      row.spans.sort((one, other) => one.began - other.began);
      for (const span of row.spans) {
        const look = GOOD.has(span.outcome) ? span.kind : span.outcome;
        if (!row.looks.has(look)) row.looks.set(look, []);
        row.looks.get(look).push(span);
      }
    }
    this.#earliest = Math.min(
      ...this.#rows.flatMap((row) => row.lanes.map((lane) => lane.started_at)),
      this.#instant(),
    );
    if (this.#picked) this.#picked = this.#find(this.#picked.span.id);
    this.#describe();
  }

  #find(id) {
    const span = this.#spans.get(id);
    const row = span && this.#rows.find((each) => each.spans.includes(span));
    return row ? { row, span } : null;
  }

  #describe() {
    const calls = [...this.#spans.values()].filter((span) => span.kind === "running");
    const count = (spans) => String(spans.reduce((sum, span) => sum + span.calls, 0));
    const words = [
      this.#text("Timeline of the last %1", duration(this.#window)),
      this.#text("replicas: %1", String(this.#rows.filter((row) => row.lanes.length).length)),
      this.#text("calls: %1", count(calls)),
      this.#text("not succeeded: %1", count(calls.filter((span) => !GOOD.has(span.outcome)))),
    ];
    this.#canvas.setAttribute("aria-label", words.join(", "));
    const newest = calls.sort((one, other) => other.began - one.began).slice(0, 10);
    this.#list.replaceChildren(
      ...newest.map((span) => {
        const row = document.createElement("tr");
        row.append(...this.#lines(span).map((line) => this.#element("td", line)));
        return row;
      }),
    );
  }

  // What a tooltip says of a span: name, notebook, duration and outcome.
  #lines(span) {
    const long = duration((span.ended ?? this.#instant()) - span.began);
    const doing = span.kind === "waiting" && span.ended !== null ? "waited" : span.kind;
    const state = span.kind === "running" ? (span.outcome ?? doing) : doing;
    const bad = span.kind === "running" || GOOD.has(span.outcome) ? "" : `, ${this.#text(WORDS[span.outcome])}`;
    const lane = this.#lanes.find((each) => each.replica === span.replica);
    return [
      visible(span.task),
      visible(span.client),
      `${this.#text(WORDS[state])} ${long}${bad}`,
      span.calls > 1 ? this.#text("%1 calls", String(span.calls)) : "",
      lane ? visible(lane.name) : "",
    ].filter((line) => line);
  }

  // --- pointer and keys

  #build(host) {
    this.#root.className = "flyte-timeline flyte-colours";
    const style = this.#element("style", STYLE);
    const canvas = this.#canvas;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application"); // or a screen reader keeps the arrow keys for itself
    canvas.setAttribute("aria-roledescription", this.#text("timeline"));
    canvas.addEventListener("pointermove", (event) => this.#pick(this.#hit(event.offsetX, event.offsetY)));
    canvas.addEventListener("pointerleave", () => this.#pick(null));
    canvas.addEventListener("blur", () => this.#pick(null));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    this.#tip.className = "flyte-tip";
    this.#tip.setAttribute("role", "status");
    const details = document.createElement("details");
    const table = document.createElement("table");
    table.append(this.#list);
    details.append(this.#element("summary", this.#text("The last calls as a list")), table);
    this.#root.append(style, canvas, this.#tip, details);
    host.append(this.#root);
  }

  #element(tag, text) {
    const made = document.createElement(tag);
    made.textContent = text;
    return made;
  }

  #hit(x, y) {
    const row = this.#rows[Math.floor(y / ROW)];
    const { left, ratio } = this.#plot;
    if (!row || x * ratio < left) return null;
    // What lies under the pointer or two pixels beside it: a short call is hard to meet.
    const [low, high] = [(x - 2) * ratio, (x + 2) * ratio];
    const under = row.spans.filter((span) => this.#at(span.began) <= high && this.#at(span.ended) >= low);
    const span = under.at(-1);
    return span ? { row, span, more: under.length - 1 } : null;
  }

  #key(event) {
    const { row, span } = this.#picked ?? {};
    const at = row ? row.spans.indexOf(span) : -1;
    const beside = (step) => {
      const rows = this.#rows.filter((each) => each.spans.length);
      const next = row ? rows[rows.indexOf(row) + step] : rows.at(0);
      if (!next) return this.#picked;
      const near = span && next.spans.findLast((each) => each.began <= span.began);
      return { row: next, span: near ?? next.spans[span ? 0 : next.spans.length - 1] };
    };
    const within = (place) =>
      row ? { row, span: row.spans[Math.min(Math.max(place, 0), row.spans.length - 1)] } : beside(0);
    const moves = {
      ArrowLeft: () => within(at - 1),
      ArrowRight: () => within(at + 1),
      Home: () => within(0),
      End: () => within(Infinity),
      ArrowUp: () => beside(-1),
      ArrowDown: () => beside(1),
      Escape: () => null,
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    event.stopPropagation(); // a notebook moves to another cell with them
    this.#pick(moves[event.key]());
  }

  #pick(found) {
    if (!found && !this.#picked) return;
    this.#picked = found;
    this.#now();
  }

  #tell() {
    const { row, span, more } = this.#picked ?? {};
    const lines = span ? this.#lines(span) : [];
    if (more) lines.push(this.#text("and %1 more here", String(more)));
    if (lines.join("\n") !== this.#told) this.#tip.replaceChildren(...lines.map((line) => this.#element("div", line)));
    this.#told = lines.join("\n");
    if (!span) return;
    const space = this.#root.clientWidth - this.#tip.offsetWidth;
    this.#tip.style.left = `${Math.max(0, Math.min(this.#at(span.began) / this.#plot.ratio, space))}px`;
    this.#tip.style.top = `${(this.#rows.indexOf(row) + 1) * ROW + 2}px`;
  }

  // --- drawing

  // Where an instant lies, in device pixels; null is now.
  #at(instant) {
    const { left, right, scale, now } = this.#plot;
    return Math.max(left, right - Math.floor(now * scale) + Math.floor((instant ?? now) * scale));
  }

  #draw() {
    const width = this.#root.clientWidth;
    if (!width) return;
    const context = this.#canvas.getContext("2d");
    const ratio = globalThis.devicePixelRatio;
    const px = (length) => Math.round(length * ratio);
    const style = getComputedStyle(this.#root);
    const colour = (name) => style.getPropertyValue(`--flyte-${name}`);
    const font = `${px(parseFloat(style.fontSize))}px ${style.fontFamily}`;
    context.font = font; // measures; a new size of the canvas forgets it

    const names = this.#rows.map((row) => context.measureText(row.label).width);
    const left = Math.min(Math.ceil(Math.max(0, ...names)) + px(8), px(width / 3));
    const right = px(width) - 1;
    const now = this.#instant();
    this.#reach = REACHES.find((seconds) => seconds >= now - this.#earliest && seconds < this.#window) ?? this.#window;
    this.#plot = { left, right, scale: (right - left) / this.#reach, ratio, now };
    const legend = this.#legend(context, px, px(width));
    const bottom = Math.max(1, this.#rows.length) * ROW;
    this.#resize(width, bottom + AXIS + (legend.length ? legend.at(-1).line + 1 : 0) * ROW);

    context.font = font;
    context.textBaseline = "middle";
    this.#axis(context, px, bottom, colour);
    this.#rows.forEach((row, place) => this.#row(context, px, px(place * ROW), row, colour));
    context.textAlign = "left";
    for (const { look, line, x } of legend) {
      const y = px(bottom + AXIS + ROW * line);
      this.#bar(context, px, y, look, x, x + px(22), colour);
      this.#outcome(context, px, y, look, x + px(22), colour);
      context.fillStyle = colour("text");
      context.fillText(this.#text(WORDS[look]), x + px(28), y + px(BAR.top + BAR.height / 2));
    }
    if (!this.#rows.length) context.fillText(this.#text("Nothing ran in this time."), left, px(ROW / 2));
    this.#tell();
  }

  #resize(width, height) {
    const [wide, high] = [Math.round(width * this.#plot.ratio), Math.round(height * this.#plot.ratio)];
    const canvas = this.#canvas;
    if (canvas.width !== wide || canvas.height !== high) {
      Object.assign(canvas, { width: wide, height: high });
      Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
    }
    canvas.getContext("2d").clearRect(0, 0, wide, high);
  }

  // What the looks mean, of those that are there; as many lines as they need.
  #legend(context, px, width) {
    const there = LOOKS.filter((look) => this.#rows.some((row) => row.looks.has(look)));
    if (this.#rows.some((row) => row.lanes.length)) there.push("idle");
    let [x, line] = [0, 0];
    return there.map((look) => {
      const long = px(44) + context.measureText(this.#text(WORDS[look])).width;
      if (x && x + long > width) [x, line] = [0, line + 1];
      const place = { look, line, x };
      x += Math.ceil(long);
      return place;
    });
  }

  #axis(context, px, bottom, colour) {
    const { left, right, scale, ratio, now } = this.#plot;
    const step = [10, 30, 60, 120, 300].find((seconds) => seconds * scale >= 70 * ratio) ?? 600;
    const first = Math.ceil((now - this.#reach + this.#epoch) / step) * step - this.#epoch;
    context.textAlign = "center";
    for (let instant = first; instant <= now; instant += step) {
      const x = this.#at(instant);
      context.fillStyle = colour("line");
      context.fillRect(x, 0, 1, px(bottom + 3));
      context.fillStyle = colour("quiet");
      const text = timeOfDay(instant + this.#epoch, step < 60);
      const half = context.measureText(text).width / 2;
      if (x - half > left && x + half < right) context.fillText(text, x, px(bottom + 4 + (AXIS - 4) / 2));
    }
    context.textAlign = "left";
    context.fillStyle = colour("text");
  }

  #row(context, px, top, row, colour) {
    const { left, now } = this.#plot;
    const oldest = now - this.#reach;
    context.fillStyle = colour("text");
    context.fillText(row.label, 0, top + px(BAR.top + BAR.height / 2), left - px(6));
    for (const { ready_at: ready, ended_at: ended } of row.lanes) {
      if (ready !== null) this.#bar(context, px, top, "idle", this.#at(ready), this.#at(ended), colour);
      context.fillStyle = colour("text");
      if (ended !== null && ended > oldest) context.fillRect(this.#at(ended), top + px(BAR.top), px(1), px(BAR.height));
    }
    for (const look of LOOKS) {
      let marked = -Infinity;
      for (const [from, to] of this.#bars(row.looks.get(look) ?? [], oldest)) {
        this.#bar(context, px, top, look, from, to, colour);
        // Marks beside each other, not upon each other.
        if (to - marked < px(8)) continue;
        this.#outcome(context, px, top, look, to, colour);
        marked = to;
      }
    }
    const picked = this.#picked;
    if (picked?.row === row) {
      const from = this.#at(picked.span.began);
      context.strokeStyle = colour("text");
      context.lineWidth = px(2);
      const high = [top + px(BAR.top - 2), this.#at(picked.span.ended) - from + px(4), px(BAR.height + 4)];
      context.strokeRect(from - px(2), ...high);
    }
  }

  // The bars of spans that look alike: short ones in a row become one, between long ones is a gap.
  #bars(spans, oldest) {
    const bars = [];
    for (const span of spans) {
      if (span.ended !== null && span.ended < oldest) continue;
      const began = this.#at(span.began);
      const ended = Math.max(began + 1, this.#at(span.ended));
      const last = bars.at(-1);
      if (!last || began > last[1]) bars.push([began, ended]);
      else if (began === last[1] && ended - began >= 4) bars.push([began + 1, ended]);
      else last[1] = Math.max(last[1], ended);
    }
    return bars;
  }

  // One bar. What it means is in its height, its pattern or a mark as well as in its colour.
  #bar(context, px, top, look, from, to, colour) {
    const wide = to - from;
    if (look === "idle") {
      context.fillStyle = colour("quiet");
      context.fillRect(from, top + px(BAR.top + BAR.height / 2 - 1), wide, px(2));
      return;
    }
    const [y, high] =
      look === "waiting" ? [top + px(BAR.top + 3), px(BAR.height - 6)] : [top + px(BAR.top), px(BAR.height)];
    context.fillStyle = this.#fill(context, look, px, colour);
    context.fillRect(from, y, wide, high);
    if (look === "starting" || look === "loading") {
      context.strokeStyle = colour(look === "loading" ? "loading" : "quiet");
      context.lineWidth = px(1);
      if (wide > px(2)) context.strokeRect(from + 0.5, y + 0.5, wide - 1, high - 1);
    }
  }

  // Above the end of its bar: a cross for what failed, a dash for what was cancelled, a square for what was lost.
  #outcome(context, px, top, look, end, colour) {
    const [x, y, arm] = [end - px(2), top + px(BAR.top - 4), px(2.5)];
    context.strokeStyle = context.fillStyle = colour(look === "cancelled" ? "text" : "failed");
    context.lineWidth = Math.max(1, arm / 2);
    context.beginPath();
    if (look === "failed") {
      context.moveTo(x - arm, y - arm);
      context.lineTo(x + arm, y + arm);
      context.moveTo(x - arm, y + arm);
      context.lineTo(x + arm, y - arm);
    } else if (look === "cancelled") {
      context.moveTo(x - arm, y);
      context.lineTo(x + arm, y);
    } else if (look === "lost") {
      context.fillRect(x - arm, y - arm, 2 * arm, 2 * arm);
    }
    context.stroke();
  }

  #fill(context, look, px, colour) {
    const ink = colour({ running: "running", loading: "loading", failed: "failed", lost: "failed" }[look] ?? "quiet");
    if (look !== "starting" && look !== "loading" && look !== "waiting") return ink;
    const key = `${look} ${ink} ${this.#plot.ratio}`;
    if (!this.#patterns.has(key)) this.#patterns.set(key, context.createPattern(hatched(look, ink, px(6)), "repeat"));
    return this.#patterns.get(key);
  }
}

// A tile of stripes: upright for what waits, rising while a process starts, falling while its preload runs.
function hatched(look, ink, side) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = side;
  const context = tile.getContext("2d");
  context.strokeStyle = ink;
  context.lineWidth = side / (look === "loading" ? 2.5 : 5);
  // Beyond the corners, too, so that the tiles join.
  for (const shift of [-side, 0, side]) {
    const [from, to] = { waiting: [side / 2, side / 2], starting: [0, side], loading: [side, 0] }[look];
    context.moveTo(from + shift, side);
    context.lineTo(to + shift, 0);
  }
  context.stroke();
  return tile;
}
