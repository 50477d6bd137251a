// What each replica of a pool did in the last minutes, on a canvas. No framework: the card and the side panel use it
// alike. Whatever a task or a notebook is called goes in by textContent and fillText alone.
//
// One device pixel is a fixed piece of time, and bars begin and end on whole pixels: so the picture has to be drawn
// again only when it has moved by a pixel, and what is short and many becomes one bar.

import { COLOURS, ROW, TimelineCanvas } from "./timeline_canvas.js";
import { duration, timeOfDay, visible } from "./words.js";

const AXIS = 20;
const FORGET_S = 10; // how often it is looked for what is too old, while nothing new comes
const QUEUE = "queue";
const REACHES = [60, 120, 300]; // a pool that is younger than the window fills the picture, too
const GOOD = new Set([null, "succeeded"]);
// Drawn in this order: what went wrong must not lie below what went well, nor a call below who looks on.
const LOOKS = ["attached", "waiting", "starting", "loading", "running", "cancelled", "lost", "failed"];
const WORDS = {
  starting: "starting",
  loading: "loading",
  running: "running",
  waiting: "waiting",
  waited: "waited",
  attached: "attached",
  idle: "warm, idle",
  cancelled: "cancelled",
  lost: "lost",
  failed: "failed",
  succeeded: "succeeded",
};

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
  #arranged = 0; // when
  #rows = []; // {label, lanes, spans in order of time, looks: look -> spans}
  #picked = null; // {row, span, more: how many others lie there}
  #told = "";
  #plot = { left: 0, right: 1, scale: 1, ratio: 1, now: 0 }; // device pixels, and pixels per second

  constructor(host, options = {}) {
    this.#text = options.text ?? english;
    this.#build(host);
    this.#watch =
      globalThis.IntersectionObserver &&
      new IntersectionObserver((entries) => this.#look(entries.at(-1).isIntersecting));
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
    this.#seen = false; // an answer that is still on its way does not wake it
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
    if (this.#instant() > this.#arranged + FORGET_S) this.#arrange();
    this.#draw();
    const still = globalThis.matchMedia?.("(prefers-reduced-motion: reduce)").matches;
    this.#timer = setTimeout(this.#now, still ? 5000 : Math.max(100, 1000 / this.#plot.scale));
  }

  // --- what there is

  #arrange() {
    this.#arranged = this.#instant();
    const oldest = this.#arranged - this.#window;
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
    const drawing = new TimelineCanvas(this.#canvas.getContext("2d"), this.#root);
    const { context, ratio } = drawing;
    context.font = drawing.font; // measures; a new size of the canvas forgets it
    const names = this.#rows.map((row) => context.measureText(row.label).width);
    const left = Math.min(Math.ceil(Math.max(0, ...names)) + drawing.px(8), drawing.px(width / 3));
    const right = drawing.px(width) - 1;
    const now = this.#instant();
    this.#reach = REACHES.find((seconds) => seconds >= now - this.#earliest && seconds < this.#window) ?? this.#window;
    this.#plot = { left, right, scale: (right - left) / this.#reach, ratio, now };
    const legend = this.#legend(drawing, drawing.px(width));
    const bottom = Math.max(1, this.#rows.length) * ROW;
    this.#resize(width, bottom + AXIS + (legend.length ? legend.at(-1).line + 1 : 0) * ROW);

    context.font = drawing.font;
    context.textBaseline = "middle";
    this.#axis(drawing, drawing.px(bottom));
    this.#rows.forEach((row, place) => this.#row(drawing, drawing.px(place * ROW), row));
    for (const { look, line, x } of legend) {
      const top = drawing.px(bottom + AXIS + ROW * line);
      if (look === "idle") drawing.idle(top, x, x + drawing.px(22), false);
      else drawing.bars(top, look, [[x, x + drawing.px(22)]]);
      drawing.text(this.#text(WORDS[look]), x + drawing.px(28), top);
    }
    if (!this.#rows.length) drawing.text(this.#text("Nothing ran in this time."), left, 0);
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
  #legend(drawing, width) {
    const there = LOOKS.filter((look) => this.#rows.some((row) => row.looks.has(look)));
    if (this.#rows.some((row) => row.lanes.length)) there.push("idle");
    let [x, line] = [0, 0];
    return there.map((look) => {
      const long = drawing.px(44) + Math.ceil(drawing.context.measureText(this.#text(WORDS[look])).width);
      if (x && x + long > width) [x, line] = [0, line + 1];
      const place = { look, line, x };
      x += long;
      return place;
    });
  }

  #axis(drawing, bottom) {
    const { left, right, scale, ratio, now } = this.#plot;
    const { context } = drawing;
    const step = [10, 30, 60, 120, 300].find((seconds) => seconds * scale >= 70 * ratio) ?? 600;
    const first = Math.ceil((now - this.#reach + this.#epoch) / step) * step - this.#epoch;
    context.textAlign = "center";
    for (let instant = first; instant <= now; instant += step) {
      const x = this.#at(instant);
      context.fillStyle = drawing.colours.line;
      context.fillRect(x, 0, 1, bottom + drawing.px(3));
      const text = timeOfDay(instant + this.#epoch, step < 60);
      const half = context.measureText(text).width / 2;
      if (x - half > left && x + half < right) drawing.text(text, x, bottom - drawing.px(1), "quiet");
    }
    context.textAlign = "left";
  }

  #row(drawing, top, row) {
    const { left, now } = this.#plot;
    const oldest = now - this.#reach;
    drawing.text(row.label, 0, top, "text", left - drawing.px(6));
    for (const { ready_at: ready, ended_at: ended } of row.lanes) {
      if (ready !== null && (ended === null || ended > oldest)) {
        drawing.idle(top, this.#at(ready), this.#at(ended), ended !== null);
      }
    }
    for (const look of LOOKS) {
      const spans = row.looks.get(look);
      if (spans) drawing.bars(top, look, this.#bars(spans, oldest));
    }
    if (this.#picked?.row === row) {
      const { began, ended } = this.#picked.span;
      drawing.frame(top, this.#at(began), this.#at(ended));
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
}
