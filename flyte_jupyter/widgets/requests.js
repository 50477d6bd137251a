// Sends the orders and questions of a card. A Jupyter server answers them while the kernel is busy. Where there is none,
// or it does not know the pool, they go to the kernel by comm.

const QUESTIONS = new Set(["timeline", "log"]); // all else is an order
const PATIENCE_MS = 10_000;

export class Requests {
  #model;
  #asked = 0;
  #waiting = new Map(); // number of a request -> the promise of its answer

  constructor(model) {
    this.#model = model;
    model.on("msg:custom", this.#answered);
  }

  dispose() {
    this.#model.off("msg:custom", this.#answered);
  }

  // The answer to a verb on the pool or on one of its replicas. Throws an Error with a message for people.
  async ask(verb, body = {}, replica = null) {
    return (await this.#server(verb, body, replica)) ?? (await this.#kernel(verb, body, replica));
  }

  // The time of the kernel's clock, which the instants of the state refer to; the browser's may differ.
  async now() {
    return (await this.#kernel("clock", {}, null)).now;
  }

  async #server(verb, body, replica) {
    const config = document.getElementById("jupyter-config-data");
    if (!config) return null;
    const base = JSON.parse(config.textContent).baseUrl ?? "/";
    const path = `${base}flyte-jupyter/${replica ? `replicas/${replica}` : `pools/${this.#model.get("key")}`}/${verb}`;
    const given = Object.entries(body).filter(([, value]) => value !== null);
    try {
      const answer = QUESTIONS.has(verb)
        ? await fetch(`${path}?${new URLSearchParams(given)}`, { credentials: "same-origin" })
        : await fetch(path, {
            method: "POST",
            credentials: "same-origin",
            headers: { "Content-Type": "application/json", "X-XSRFToken": xsrf() },
            body: JSON.stringify(body),
          });
      if (answer.status === 404 || answer.status === 503) return null;
      const said = await answer.json();
      if (answer.ok) return said;
      throw new Error(said.message ?? answer.statusText);
    } catch (problem) {
      // The server is gone, or something before it answers in its place.
      if (problem instanceof TypeError || problem instanceof SyntaxError) return null;
      throw problem;
    }
  }

  #kernel(verb, body, replica) {
    const number = ++this.#asked;
    return new Promise((resolve, reject) => {
      const late = "The notebook's kernel does not answer: it is busy, or it has ended.";
      const timer = setTimeout(() => {
        this.#waiting.delete(number);
        reject(new Error(late));
      }, PATIENCE_MS);
      this.#waiting.set(number, { resolve, reject, timer });
      this.#model.send({ number, verb, body, replica });
    });
  }

  #answered = ({ number, answer, error }) => {
    const waiting = this.#waiting.get(number); // another view of the card may have asked
    if (!waiting) return;
    this.#waiting.delete(number);
    clearTimeout(waiting.timer);
    if (error === undefined) waiting.resolve(answer);
    else waiting.reject(new Error(error));
  };
}

function xsrf() {
  const found = document.cookie.split("; ").find((each) => each.startsWith("_xsrf="));
  return found ? decodeURIComponent(found.slice(6)) : "";
}
