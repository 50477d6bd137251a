// Limits that a click has requested, and that the state does not show yet. Views show them in place of the state's
// limits, so that two clicks in a row count twice.

const SEEN_WITHIN_MS = 5_000; // the state shows accepted limits by then, unless somebody else has changed them

export class PendingLimits {
  #changed;
  #requests = new Map(); // pool -> its last request

  // `changed` is called when `shown` may have another answer for the same state.
  constructor(changed) {
    this.#changed = changed;
  }

  dispose() {
    this.#requests.clear();
  }

  // The limits to show of a pool that has these limits in the state.
  shown(pool, limits) {
    const request = this.#requests.get(pool);
    if (!request) return limits;
    const { minimum, maximum } = request.limits;
    if (request.accepted && minimum === limits.minimum && maximum === limits.maximum) this.#requests.delete(pool);
    return request.limits;
  }

  // Show these limits, and call `send`. If it rejects, so does this, and the state's limits are shown again.
  async request(pool, limits, send) {
    const before = this.#requests.get(pool)?.sent;
    const request = { limits, accepted: false };
    request.sent = this.#send(pool, request, before, send);
    this.#requests.set(pool, request);
    this.#changed();
    await request.sent;
  }

  async #send(pool, request, before, send) {
    await before?.catch(() => null); // one at a time: if two overtook each other, the wrong one would be last
    if (!this.#isLast(pool, request)) return; // only the last request counts
    try {
      await send();
    } catch (problem) {
      this.#forget(pool, request);
      throw problem;
    }
    request.accepted = true;
    setTimeout(() => this.#forget(pool, request), SEEN_WITHIN_MS);
    if (this.#isLast(pool, request)) this.#changed(); // the state may have the limits already
  }

  #isLast(pool, request) {
    return this.#requests.get(pool) === request;
  }

  #forget(pool, request) {
    if (this.#isLast(pool, request)) {
      this.#requests.delete(pool);
      this.#changed();
    }
  }
}
