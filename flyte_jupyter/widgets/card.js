// The pool card: its DOM is a function of the model's `state`, which the kernel sends when something has changed. What
// runs down or up is counted here.

import { button, el, patch, tickAll, ticking } from "./dom.js";
import { PendingLimits } from "./pending_limits.js";
import { Replicas } from "./replicas.js";
import { Requests } from "./requests.js";
import { Timeline } from "./timeline.js";
import { clock, lastLine, multiline, roughly, stateCounts, timeOfDay, visible } from "./words.js";

const SHOWN = 10;
const TICK_MS = 500;
const ASK_MS = 500;
const LISTEN_MS = 2000;

const many = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

function ordinal(number) {
  if (number === 1) return "next";
  const ending = number % 100 > 10 && number % 100 < 14 ? "th" : (["th", "st", "nd", "rd"][number % 10] ?? "th");
  return `${number}${ending}`;
}

// Which parts stand open: remembered by the browser, if it lets us.
function remembered(name, open) {
  try {
    if (open === undefined) return localStorage.getItem(`flyte-jupyter:${name}`) === "open";
    localStorage.setItem(`flyte-jupyter:${name}`, open ? "open" : "closed");
  } catch {
    // A front end may forbid it; then they begin closed.
  }
  return false;
}

class Card {
  #model;
  #requests;
  #main = el("div");
  #said = el("p", { class: "flyte-note flyte-said", role: "status" });
  #late = el("p", { class: "flyte-note flyte-said", role: "status" }); // why the timeline is not up to date
  #history = el("ol", { class: "flyte-history" });
  #timeline;
  #told = null; // the key of the pool that it tells of
  #parts;
  #skew = 0;
  #asking = false; // whether to stop
  #replicas;
  #pendingLimits = new PendingLimits(() => this.#draw());
  #seen = false; // on the screen, in a tab that is in front
  #watch;
  #fetching = false;
  #stale = false;
  #listening = false;
  #timer;

  constructor(model, root) {
    this.#model = model;
    this.#requests = new Requests(model);
    this.#replicas = new Replicas(
      this.#requests,
      (verb, id) => this.#act(verb, {}, id),
      () => this.#now(),
      () => this.#draw(),
    );
    const drawing = el("div");
    this.#timeline = new Timeline(drawing);
    this.#parts = [this.#part("timeline", "Timeline", drawing), this.#part("history", "Why it scaled", this.#history)];
    const label = `Pool ${visible(model.get("name"))}`;
    root.append(
      el(
        "section",
        { class: "flyte-card flyte-colours", "aria-label": label },
        this.#main,
        this.#said,
        ...this.#parts,
        this.#late,
      ),
    );
    model.on("change:state", this.#changed);
    document.addEventListener("visibilitychange", this.#ask);
    this.#watch = new IntersectionObserver((entries) => {
      this.#seen = entries.at(-1).isIntersecting;
      this.#ask();
    });
    this.#watch.observe(root);
    this.#timer = setInterval(() => !document.hidden && tickAll(this.#main, this.#now()), TICK_MS);
    // A view may be made long after its state was sent, so that says only how far the kernel's clock is ahead at least.
    this.#skew = Math.max(0, this.#ahead());
    this.#draw();
    this.#requests.now().then(
      (now) => (this.#skew = now - Date.now() / 1000),
      () => null, // a kernel that is gone or busy
    );
  }

  dispose() {
    clearInterval(this.#timer);
    this.#seen = false;
    this.#watch.disconnect();
    document.removeEventListener("visibilitychange", this.#ask);
    this.#model.off("change:state", this.#changed);
    this.#timeline.dispose();
    this.#pendingLimits.dispose();
    this.#requests.dispose();
  }

  #now() {
    return Date.now() / 1000 + this.#skew;
  }

  #ahead() {
    return this.#model.get("state").now - Date.now() / 1000;
  }

  #changed = () => {
    this.#skew = this.#ahead();
    this.#draw();
    this.#ask();
  };

  // For what no state tells, as long as somebody can see it.
  #ask = () => {
    this.#fetch();
    this.#listen();
  };

  #say(text) {
    this.#said.textContent = visible(text, 1000);
  }

  async #act(verb, body, replica) {
    this.#say("");
    const order = () => this.#requests.ask(verb, body, replica);
    try {
      await (verb === "scale" ? this.#pendingLimits.request(this.#model.get("key"), body, order) : order());
    } catch (problem) {
      this.#say(problem.message);
    }
  }

  // --- timeline and history

  #part(name, title, content) {
    const part = el("details", {}, el("summary", {}, title), content);
    part.open = remembered(name);
    part.addEventListener("toggle", () => {
      remembered(name, part.open);
      this.#fetch();
    });
    return part;
  }

  // What is new since the last answer: asked for when something has changed, never because time has passed.
  #fetch = async () => {
    if (document.hidden || !this.#seen || !this.#model.get("state").pool || !this.#parts.some((part) => part.open))
      return;
    this.#stale = true;
    if (this.#fetching) return;
    this.#fetching = true;
    try {
      while (this.#stale) {
        this.#stale = false;
        const key = this.#model.get("key"); // of a pool that was declared anew in its place it is another
        const since = key === this.#told ? this.#timeline.mark : null;
        this.#timeline.take(await this.#requests.ask("timeline", { since }));
        this.#told = key;
        const changes = [...this.#timeline.changes].reverse();
        const lines = changes.map(({ at, text }) => el("li", {}, `${timeOfDay(at)} ${visible(text)}`));
        patch(this.#history, lines.length ? lines : [el("li", {}, "Nothing has changed yet.")]);
        this.#late.textContent = "";
        await new Promise((done) => setTimeout(done, ASK_MS));
      }
    } catch (problem) {
      this.#late.textContent = `The timeline is not up to date: ${visible(problem.message, 1000)}`;
    }
    this.#fetching = false;
  };

  // --- what preloads say

  #loading() {
    const { broker, pool } = this.#model.get("state");
    if (document.hidden || !this.#seen || !broker) return [];
    return (pool?.replicas ?? []).filter(({ state }) => state === "loading").map(({ id }) => id);
  }

  #listen = async () => {
    if (this.#listening) return;
    this.#listening = true;
    for (let loading = this.#loading(); loading.length; loading = this.#loading()) {
      // One may not read logs, or it has just gone: its state says enough.
      await this.#replicas.hear(loading).catch(() => null);
      await new Promise((done) => setTimeout(done, LISTEN_MS));
    }
    this.#listening = false;
  };

  // --- what is drawn anew with each state

  #draw() {
    const state = this.#model.get("state");
    patch(
      this.#main,
      (state.pool ? this.#pool(state, state.pool) : this.#nothing(state)).filter((part) => part),
    );
    for (const part of this.#parts) part.hidden = !state.pool;
  }

  #nothing(state) {
    const why = state.broker ? "not started" : "no broker runs";
    return [
      el(
        "header",
        {},
        el("h3", {}, visible(this.#model.get("name"))),
        el("span", {}, `${why}: the next call of a task starts it`),
      ),
      el(
        "div",
        { class: "flyte-bar" },
        button("warm", "Warm now", "Start the minimum of replicas, at least one", () => this.#act("warm")),
      ),
    ];
  }

  #pool(state, pool) {
    const at = (instant) => instant + state.epoch_offset;
    const texts = [...pool.notes, pool.waits_for && `waits for ${pool.waits_for}`, state.spawned];
    return [
      this.#header(pool, at),
      state.broker ? null : el("p", { class: "flyte-note" }, "The broker is gone; this is what was known last."),
      pool.replicas.length ? this.#replicas.table(state, pool, at) : null,
      this.#queue(pool, at),
      this.#controls(pool),
      ...texts.map((text) => text && el("p", { class: "flyte-note" }, visible(text, 1000))),
      pool.failure && this.#failure(pool.failure),
      el("p", { class: "flyte-note" }, this.#sum(pool)),
    ];
  }

  #header(pool, at) {
    const words = stateCounts(pool.replicas).map(([state, count]) => `${count} ${state}`);
    if (!words.length || pool.state === "failed" || pool.state === "waiting") words.unshift(pool.state);
    words.push(`max ${this.#limits(pool).maximum}`);
    const left = (end) => clock(at(end) - this.#now());
    const until =
      pool.idle_stops_at !== null
        ? ticking(() => `idle off in ${left(pool.idle_stops_at)}`, this.#now(), { role: "timer" })
        : pool.kept_until !== null
          ? ticking(() => `kept for ${left(pool.kept_until)}`, this.#now(), { role: "timer" })
          : null;
    const keep =
      pool.kept_until === null
        ? button("keep", "Keep 2 h", "Keep idle replicas running for 2 hours", () =>
            this.#act("keep", { seconds: 7200 }),
          )
        : button("keep", "Stop keeping", "Let idle replicas stop again", () => this.#act("keep", { seconds: 0 }));
    const right = el("span", { class: "flyte-timer" }, until, " ", keep);
    return el(
      "header",
      { "data-key": "header" },
      el("h3", {}, visible(pool.name)),
      el("span", {}, words.join(" · ")),
      right,
    );
  }

  #queue(pool, at) {
    if (!pool.waiting) return null;
    const mine = pool.queue.find((each) => each.client === this.#model.get("client"));
    const expected = ({ expected_at: instant }, words) =>
      instant === null ? null : ticking(() => this.#expected(at(instant), words), this.#now());
    const rows = pool.queue.slice(0, SHOWN).map((each) =>
      el(
        "li",
        {},
        `${visible(each.task)} (${visible(each.client)}), waits `,
        ticking(() => clock(this.#now() - at(each.since)), this.#now()),
        expected(each, "starts in about"),
      ),
    );
    if (pool.waiting > rows.length) rows.push(el("li", {}, `and ${pool.waiting - rows.length} more`));
    const place = mine ? ` · this notebook is ${ordinal(mine.position + 1)}` : "";
    return el(
      "div",
      { "data-key": "queue", class: "flyte-queue" },
      `queue ${pool.waiting}${place}`,
      mine ? expected(mine, "about") : null,
      el("ol", {}, rows),
    );
  }

  // How long until then; what should have been already takes longer.
  #expected(instant, words) {
    const left = instant - this.#now();
    return left > 0 ? `, ${words} ${roughly(left)}` : ", longer than usual";
  }

  #limits({ scaling }) {
    return this.#pendingLimits.shown(this.#model.get("key"), {
      minimum: scaling.min_replicas,
      maximum: scaling.max_replicas,
    });
  }

  #controls(pool) {
    const { minimum: min, maximum: max } = this.#limits(pool);
    const scale = (minimum, maximum) => this.#act("scale", { minimum, maximum });
    const ask = (asking) => {
      this.#asking = asking;
      this.#draw();
      this.#main.querySelector(`[data-key=${asking ? "sure" : "now"}]`)?.focus();
    };
    const stop = () => {
      ask(false);
      this.#act("stop", { force: true });
    };
    const step = (key, text, label, to, disabled) => button(key, text, label, () => scale(...to), { disabled });
    return el(
      "div",
      { "data-key": "controls", class: "flyte-bar", role: "group", "aria-label": "Pool" },
      step("min-", "−", `Lower the minimum to ${min - 1}`, [min - 1, max], min < 1),
      el("span", {}, `min ${min}`),
      step("min+", "+", `Raise the minimum to ${min + 1}`, [min + 1, Math.max(max, min + 1)], false),
      step("max-", "−", `Lower the maximum to ${max - 1}`, [Math.min(min, max - 1), max - 1], max < 2),
      el("span", {}, `max ${max}`),
      step("max+", "+", `Raise the maximum to ${max + 1}`, [min, max + 1], false),
      button("warm", "Warm now", "Start the minimum of replicas, at least one", () => this.#act("warm")),
      button("stop", "Stop", "Stop every replica after its running calls", () => this.#act("stop")),
      this.#asking
        ? [
            el("span", {}, "Running calls fail."),
            button("sure", "Stop now", "Stop every replica at once", stop, { class: "flyte-danger" }),
            button("cancel", "Cancel", "Do not stop", () => ask(false)),
          ]
        : button("now", "Stop now…", "Stop every replica at once", () => ask(true)),
    );
  }

  #failure(failure) {
    return el(
      "details",
      { "data-key": "failure", class: "flyte-failed" },
      el("summary", {}, `${visible(failure.replica)} failed: ${visible(lastLine(failure.cause))}`),
      el("pre", { tabindex: 0, "aria-label": "Traceback" }, multiline(failure.cause)),
    );
  }

  #sum(pool) {
    const avoided = pool.cold_starts_avoided;
    const seconds = avoided * (pool.cold_start_s ?? 0);
    const saved = seconds ? ` (about ${roughly(seconds)} saved)` : "";
    return `${many(pool.calls, "call")} · ${many(pool.starts, "start")} · cold starts avoided: ${avoided}${saved}`;
  }
}

export default {
  render({ model, el: root }) {
    const card = new Card(model, root);
    return () => card.dispose();
  },
};
