// Draws bars and marks on the timeline's canvas, in device pixels. The height of a bar, its pattern or a mark above it
// says the same as its colour. Colours are those of the theme: see COLOURS.

export const ROW = 22;
const BAR = { top: 7, height: 13 };

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

const NAMES = ["text", "quiet", "line", "running", "loading", "failed"];
const INKS = { running: "running", attached: "running", loading: "loading", failed: "failed", lost: "failed" };
const HATCHED = new Set(["waiting", "starting", "loading", "attached"]);
const FRAMED = new Set(["starting", "loading", "attached"]);
const INSETS = { waiting: 3, attached: -2 }; // its frame can be seen around calls that lie upon it
const patterns = new Map(); // look, colour and size -> pattern

export class TimelineCanvas {
  // Made anew for each frame: the theme may have changed.
  constructor(context, element) {
    const style = getComputedStyle(element);
    this.context = context;
    this.ratio = globalThis.devicePixelRatio;
    this.colours = Object.fromEntries(NAMES.map((name) => [name, style.getPropertyValue(`--flyte-${name}`)]));
    this.font = `${this.px(parseFloat(style.fontSize))}px ${style.fontFamily}`;
  }

  px(length) {
    return Math.round(length * this.ratio);
  }

  text(words, x, top, colour = "text", most = undefined) {
    this.context.fillStyle = this.colours[colour];
    this.context.fillText(words, x, top + this.px(BAR.top + BAR.height / 2), most);
  }

  // A thin line for a replica that is warm, up to where it ended.
  idle(top, from, to, ended) {
    this.context.fillStyle = this.colours.quiet;
    this.context.fillRect(from, top + this.px(BAR.top + BAR.height / 2 - 1), to - from, this.px(2));
    if (ended) this.context.fillRect(to, top + this.px(BAR.top), this.px(1), this.px(BAR.height));
  }

  // Bars of one look, each [from, to], in order.
  bars(top, look, bars) {
    const { context } = this;
    const inset = INSETS[look] ?? 0;
    const [y, high] = [top + this.px(BAR.top + inset), this.px(BAR.height - 2 * inset)];
    context.fillStyle = this.#fill(look);
    for (const [from, to] of bars) context.fillRect(from, y, to - from, high);
    if (FRAMED.has(look)) {
      context.strokeStyle = this.colours[INKS[look] ?? "quiet"];
      context.lineWidth = this.px(1);
      for (const [from, to] of bars)
        if (to - from > 2) context.strokeRect(from + 0.5, y + 0.5, to - from - 1, high - 1);
    }
    if (look === "failed" || look === "cancelled" || look === "lost") this.#marks(top, look, bars);
  }

  // Above the end of a bar: a cross for what failed, a dash for what was cancelled, two for what was lost.
  #marks(top, look, bars) {
    const { context } = this;
    const [y, arm] = [top + this.px(BAR.top - 4), this.px(2.5)];
    context.strokeStyle = this.colours[look === "cancelled" ? "text" : "failed"];
    context.lineWidth = Math.max(1, arm / 2);
    context.beginPath();
    let last = -Infinity;
    for (const [, to] of bars) {
      if (to - last < 3 * arm) continue; // beside each other, not upon each other
      last = to;
      const x = to - arm;
      const lines = { failed: [-arm, arm], cancelled: [0], lost: [-arm / 2, arm] }[look];
      for (const line of lines) {
        context.moveTo(x - arm, y + line);
        context.lineTo(x + arm, look === "failed" ? y - line : y + line);
      }
    }
    context.stroke();
  }

  frame(top, from, to) {
    this.context.strokeStyle = this.colours.text;
    this.context.lineWidth = this.px(2);
    this.context.strokeRect(
      from - this.px(2),
      top + this.px(BAR.top - 2),
      to - from + this.px(4),
      this.px(BAR.height + 4),
    );
  }

  #fill(look) {
    const ink = this.colours[INKS[look] ?? "quiet"];
    if (!HATCHED.has(look)) return ink;
    const key = `${look} ${ink} ${this.ratio}`;
    if (!patterns.has(key)) patterns.set(key, this.context.createPattern(hatched(look, ink, this.px(6)), "repeat"));
    return patterns.get(key);
  }
}

// A tile of stripes: upright for what waits, rising while a process starts, falling while its preload runs, crossed
// while somebody has the replica open.
function hatched(look, ink, side) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = side;
  const context = tile.getContext("2d");
  context.strokeStyle = ink;
  context.lineWidth = side / (look === "loading" ? 2.5 : 5);
  const upright = [side / 2, side / 2];
  const stripes = {
    waiting: [upright],
    starting: [[0, side]],
    loading: [[side, 0]],
    attached: [
      [0, side],
      [side, 0],
    ],
  };
  // Beyond the corners, too, so that the tiles join.
  for (const shift of [-side, 0, side]) {
    for (const [from, to] of stripes[look]) {
      context.moveTo(from + shift, side);
      context.lineTo(to + shift, 0);
    }
  }
  context.stroke();
  return tile;
}
