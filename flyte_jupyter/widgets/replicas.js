// The replicas of a card: a row for each, which opens for what one can do with it and ask of it.

import { button, el, ticking } from "./dom.js";
import { MARKS, age, clock, modelName, multiline, newestLine, size, visible } from "./words.js";

export class Replicas {
  #requests;
  #order; // carries out a verb for a replica
  #now;
  #redraw;
  #rows = new Map(); // replica -> what its opened row says
  #heard = new Map(); // replica -> what its preload said last

  constructor(requests, order, now, redraw) {
    this.#requests = requests;
    this.#order = order;
    this.#now = now;
    this.#redraw = redraw;
  }

  // Ask what the preloads of these say just now. Throws an Error if that is not to be had.
  async hear(ids) {
    const ask = async (id) => [id, newestLine((await this.#requests.ask("log", { tail: 5 }, id)).text)];
    this.#heard = new Map(await Promise.all(ids.map(ask)));
    this.#redraw();
  }

  table(state, pool, at) {
    const devices = new Map(state.devices.map((device) => [device.uuid, device]));
    const rows = pool.replicas.flatMap((replica) => this.#replica(replica, pool, devices, state.usage, at));
    for (const id of this.#rows.keys()) if (!pool.replicas.some((replica) => replica.id === id)) this.#rows.delete(id);
    const head = ["#", "state", "GPU", "memory", "task", "age", "", ""];
    return el(
      "div",
      { "data-key": "replicas", class: "flyte-wide" },
      el(
        "table",
        { "aria-label": "Replicas" },
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            head.map((name) => (name ? el("th", { scope: "col" }, name) : el("td"))),
          ),
        ),
        el("tbody", {}, rows),
      ),
    );
  }

  #replica(replica, pool, devices, usage, at) {
    const running = replica.leases.filter((lease) => lease.running);
    const since = running.length ? running[0].since : replica.ready_at === null ? replica.started_at : null;
    const more = running.length > 1 ? ` and ${running.length - 1} more` : "";
    const said = replica.state === "loading" && this.#heard.get(replica.id);
    const task = running.length
      ? `${visible(running[0].task)} (${visible(running[0].client)})${more}`
      : said
        ? `“${visible(said, 120)}”`
        : "-";
    const models = replica.devices.map((uuid) => {
      const device = devices.get(uuid);
      return device ? `${device.index} · ${modelName(device.model)}` : visible(uuid, 12);
    });
    const remarks = [
      replica.stops_at !== null && replica.stops_at !== pool.idle_stops_at
        ? ticking(() => `off in ${clock(at(replica.stops_at) - this.#now())}`, this.#now())
        : null,
      replica.generation_current ? null : " will be replaced",
    ];
    const opened = this.#rows.has(replica.id);
    const toggle = () => {
      if (!this.#rows.delete(replica.id)) this.#rows.set(replica.id, "");
      this.#redraw();
    };
    const row = el(
      "tr",
      { "data-key": replica.id },
      el("th", { scope: "row" }, String(replica.index)),
      el(
        "td",
        { class: "flyte-number" },
        el("span", { class: "flyte-state", "data-mark": MARKS[replica.state] ?? "?" }, replica.state, " "),
        since === null ? null : ticking(() => clock(this.#now() - at(since)), this.#now()),
      ),
      el("td", {}, models.join(", ") || "-"),
      el("td", {}, this.#memory(replica, devices, usage)),
      el("td", { class: "flyte-task" }, task),
      el(
        "td",
        { class: "flyte-number" },
        ticking(() => age(this.#now() - at(replica.started_at)), this.#now()),
      ),
      el("td", {}, remarks),
      el(
        "td",
        {},
        button("more", "⋯", `Actions for ${visible(replica.name)}`, toggle, { "aria-expanded": String(opened) }),
      ),
    );
    return opened ? [row, this.#actions(replica, running.length > 0)] : [row];
  }

  // Its share of each GPU where that is known, then the memory of its process.
  #memory(replica, devices, usage) {
    const held = replica.devices.flatMap((uuid) => {
      const owners =
        usage.devices[uuid]?.owners.filter((owner) => owner.replica === replica.id && owner.bytes !== null) ?? [];
      const bytes = owners.reduce((sum, owner) => sum + owner.bytes, 0);
      const total = devices.get(uuid)?.memory_bytes;
      return owners.length ? [`${size(bytes)}${total ? ` of ${size(total)}` : ""}`] : [];
    });
    const own = usage.replicas[replica.id];
    return (
      [...held, ...(own ? [held.length ? `RAM ${size(own.memory_bytes)}` : size(own.memory_bytes)] : [])].join(" · ") ||
      "-"
    );
  }

  #actions(replica, busy) {
    const show = async (question, text) => {
      this.#tell(replica.id, "…");
      try {
        this.#tell(replica.id, text(await question()) || "Nothing.");
      } catch (problem) {
        this.#tell(replica.id, problem.message);
      }
    };
    const peek = () => this.#requests.ask("peek", {}, replica.id);
    const log = () => this.#requests.ask("log", { tail: 50 }, replica.id);
    const said = this.#rows.get(replica.id);
    const bar = el(
      "div",
      { class: "flyte-bar" },
      button("interrupt", "Interrupt", "Stop the tasks that run on it", () => this.#order("interrupt", replica.id), {
        disabled: !busy,
      }),
      button("restart", "Restart", "Replace it after its running tasks", () => this.#order("restart", replica.id)),
      button("peek", "Peek", "Show what it executes now", () => show(peek, ({ lines }) => lines.join("\n"))),
      button("log", "Log", "Show what it printed last", () => show(log, ({ text }) => text.trimEnd())),
    );
    return el(
      "tr",
      { "data-key": `${replica.id} more` },
      el(
        "td",
        { colspan: 8 },
        bar,
        said ? el("pre", { tabindex: 0, "aria-label": visible(replica.name) }, multiline(said)) : null,
      ),
    );
  }

  #tell(replica, text) {
    if (!this.#rows.has(replica)) return; // closed meanwhile
    this.#rows.set(replica, text);
    this.#redraw();
  }
}
