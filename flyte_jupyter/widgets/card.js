// The pool card. Its DOM is a function of `state`; text goes in by textContent alone, whatever it contains.

const MARKS = { ready: "●", busy: "▶", loading: "◐", starting: "◌", draining: "◑", stopping: "◌", failed: "✕" };
const SHOWN = 10;

function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") made.addEventListener("click", value);
    else if (value !== undefined && value !== null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// Control characters and bidi overrides would steer or turn the text: they are shown as escapes.
function visible(text) {
  return String(text).replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (c) => `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`);
}

function clock(seconds) {
  const left = Math.max(0, Math.floor(seconds));
  const two = (n) => String(n).padStart(2, "0");
  const [h, m, s] = [Math.floor(left / 3600), Math.floor((left % 3600) / 60), left % 60];
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

const many = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

// Where a Jupyter server is, its REST endpoint works also while the kernel is busy; elsewhere the comm has to do.
async function order(model, verb, body) {
  const said = document.getElementById("jupyter-config-data");
  if (said) {
    try {
      const base = JSON.parse(said.textContent).baseUrl ?? "/";
      const xsrf = document.cookie.split("; ").find((each) => each.startsWith("_xsrf="));
      const answer = await fetch(`${base}flyte-jupyter/pools/${model.get("key")}/${verb}`, {
        method: "POST",
        credentials: "same-origin",
        headers: { "Content-Type": "application/json", "X-XSRFToken": xsrf ? decodeURIComponent(xsrf.slice(6)) : "" },
        body: JSON.stringify(body),
      });
      if (answer.ok) return;
      if (answer.status !== 404 && answer.status !== 503) throw new Error((await answer.json()).message ?? answer.statusText);
    } catch (problem) {
      if (!(problem instanceof TypeError || problem instanceof SyntaxError)) throw problem;
    }
  }
  model.send({ verb, body });
}

function render({ model, el: root }) {
  const card = el("section", { class: "flyte-card", "aria-label": `Pool ${visible(model.get("name"))}` });
  const live = el("p", { class: "flyte-note", "aria-live": "polite" });
  root.append(card, live);
  let skew = 0;
  let timers = []; // [element, function of now]
  let asking = false; // whether to stop

  const now = () => Date.now() / 1000 + skew;
  const timer = (attributes, text) => {
    const made = el("span", attributes);
    timers.push([made, text]);
    made.textContent = text(now());
    return made;
  };
  const act = async (verb, body = {}) => {
    live.textContent = "";
    try {
      await order(model, verb, body);
    } catch (problem) {
      live.textContent = visible(problem.message);
    }
  };
  const button = (text, label, onclick, extra = {}) => el("button", { type: "button", "aria-label": label, title: label, onclick, ...extra }, text);

  function header(pool, at) {
    const counts = {};
    for (const replica of pool.replicas) counts[replica.state] = (counts[replica.state] ?? 0) + 1;
    const words = Object.entries(counts).map(([state, count]) => `${count} ${state}`);
    if (!words.length || pool.state === "failed" || pool.state === "waiting") words.unshift(pool.state);
    const right = el("span", { class: "flyte-timer" });
    if (pool.idle_stops_at !== null) {
      right.append(timer({}, (t) => `idle off in ${clock(at(pool.idle_stops_at) - t)}`), " ");
    } else if (pool.kept_until !== null) {
      right.append(timer({}, (t) => (at(pool.kept_until) > t ? `kept for ${clock(at(pool.kept_until) - t)}` : "")), " ");
    }
    right.append(button("keep 2 h", "Keep this pool warm for 2 hours", () => act("keep", { seconds: 7200 })));
    return el("header", {}, el("h3", {}, visible(pool.name)), el("span", {}, words.join(" · ")), right);
  }

  function replicas(pool, devices, at) {
    const gpus = new Map(devices.map((device) => [device.uuid, `${device.index} · ${visible(device.model)}`]));
    const rows = pool.replicas.map((replica) => {
      const lease = replica.leases[0];
      const since = lease ? lease.since : replica.ready_at === null ? replica.started_at : null;
      const state = el("td", {}, el("span", { class: "flyte-state", "data-mark": MARKS[replica.state] ?? "○" }, replica.state, " "));
      if (since !== null) state.append(timer({}, (t) => clock(t - at(since))));
      const task = lease ? `${visible(lease.task)} (${visible(lease.client)})${replica.leases.length > 1 ? ` and ${replica.leases.length - 1} more` : ""}` : "–";
      const remark =
        replica.stops_at !== null && replica.stops_at !== pool.idle_stops_at ? timer({}, (t) => `off in ${clock(at(replica.stops_at) - t)}`) : "";
      return el(
        "tr",
        {},
        el("th", { scope: "row" }, String(replica.index)),
        state,
        el("td", {}, replica.devices.map((uuid) => gpus.get(uuid) ?? uuid).join(", ") || "–"),
        el("td", {}, task),
        el("td", {}, timer({}, (t) => clock(t - at(replica.started_at)))),
        el("td", {}, remark),
      );
    });
    const head = ["#", "state", "GPU", "task", "age", ""].map((name) => el("th", { scope: "col" }, name));
    return el("table", {}, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows));
  }

  function queue(pool, at) {
    if (!pool.waiting) return null;
    const rows = pool.queue
      .slice(0, SHOWN)
      .map((each) => el("li", {}, `${visible(each.task)} (${visible(each.client)}), waits `, timer({}, (t) => clock(t - at(each.since)))));
    if (pool.waiting > rows.length) rows.push(el("li", {}, `and ${pool.waiting - rows.length} more`));
    return el("div", {}, `queue ${pool.waiting}`, el("ol", {}, ...rows));
  }

  function controls(pool) {
    const { min_replicas: min, max_replicas: max } = pool.scaling;
    const scale = (minimum, maximum) => act("scale", { minimum, maximum });
    const bar = el(
      "div",
      { class: "flyte-bar", role: "group", "aria-label": "Replicas" },
      button("−", `Lower the minimum to ${min - 1}`, () => scale(min - 1, max), { disabled: min < 1 ? "" : null }),
      `min ${min}`,
      button("+", `Raise the minimum to ${min + 1}`, () => scale(min + 1, Math.max(max, min + 1))),
      button("−", `Lower the maximum to ${max - 1}`, () => scale(Math.min(min, max - 1), max - 1), { disabled: max < 2 ? "" : null }),
      `max ${max}`,
      button("+", `Raise the maximum to ${max + 1}`, () => scale(min, max + 1)),
      button("Warm now", "Start the minimum of replicas", () => act("warm")),
      button("Drain", "Stop every replica after its running tasks", () => act("drain")),
    );
    if (asking) {
      bar.append(
        "Running tasks fail.",
        button("Stop now", "Stop every replica at once", () => { asking = false; draw(); act("stop", { force: true }); }, { class: "flyte-danger" }),
        button("Cancel", "Do not stop", () => { asking = false; draw(); }),
      );
    } else {
      bar.append(button("Stop…", "Stop every replica at once", () => { asking = true; draw(); card.querySelector(".flyte-danger")?.focus(); }));
    }
    return bar;
  }

  function draw() {
    const state = model.get("state");
    const pool = state.pool;
    const focused = card.contains(document.activeElement) ? document.activeElement.textContent : null;
    const place = focused === null ? -1 : [...card.querySelectorAll("button")].indexOf(document.activeElement);
    timers = [];
    const parts = [];
    if (!pool) {
      const why = state.broker ? "not started: the next call of a task starts it" : "no service runs: the next call of a task starts it";
      parts.push(el("header", {}, el("h3", {}, visible(model.get("name"))), el("span", {}, why)));
      parts.push(el("div", { class: "flyte-bar" }, button("Warm now", "Start the minimum of replicas", () => act("warm"))));
    } else {
      const at = (instant) => instant + state.epoch_offset;
      parts.push(header(pool, at));
      if (!state.broker) parts.push(el("p", { class: "flyte-note" }, "The service is gone; this is what was known last."));
      if (pool.replicas.length) parts.push(replicas(pool, state.devices ?? [], at));
      parts.push(queue(pool, at), controls(pool));
      for (const text of [...pool.notes, pool.waits_for ? `waits for ${pool.waits_for}` : null, state.spawned]) {
        if (text) parts.push(el("p", { class: "flyte-note" }, visible(text)));
      }
      if (pool.failure) {
        const last = pool.failure.cause.trim().split("\n").pop();
        parts.push(el("p", { class: "flyte-failed", role: "alert" }, `${visible(pool.failure.replica)} failed: ${visible(last)}`));
      }
      parts.push(el("p", { class: "flyte-note" }, `${many(pool.calls, "call")}, ${pool.calls_warm} of them warm · ${many(pool.starts, "start")}`));
    }
    card.replaceChildren(...parts.filter((part) => part !== null));
    if (place >= 0) card.querySelectorAll("button")[Math.min(place, card.querySelectorAll("button").length - 1)]?.focus();
  }

  function changed() {
    skew = model.get("state").now - Date.now() / 1000;
    draw();
  }
  const failed = (message) => { live.textContent = visible(message.error ?? ""); };
  model.on("change:state", changed);
  model.on("msg:custom", failed);
  const ticking = setInterval(() => {
    if (!document.hidden) for (const [each, text] of timers) each.textContent = text(now());
  }, 500);
  changed();
  return () => {
    clearInterval(ticking);
    model.off("change:state", changed);
    model.off("msg:custom", failed);
  };
}

export default { render };
