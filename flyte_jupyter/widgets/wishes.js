// Limits that somebody has asked for stand in place of those of the state until it has them: so that two clicks in a
// row count twice.

const SEEN_WITHIN_MS = 5_000; // what was ordered shows by then, unless somebody else has ordered something else

export class Wishes {
  #changed;
  #wishes = new Map(); // pool -> the last wish for it

  // `changed` is called when `over` may answer something else, but for another state.
  constructor(changed) {
    this.#changed = changed;
  }

  dispose() {
    this.#wishes.clear();
  }

  // The limits to show of a pool that has these.
  over(pool, limits) {
    const wish = this.#wishes.get(pool);
    if (!wish) return limits;
    const { minimum, maximum } = wish.limits;
    if (wish.taken && minimum === limits.minimum && maximum === limits.maximum) this.#wishes.delete(pool);
    return wish.limits;
  }

  // Show these limits, and order them. Rejects as the order does, and those of the state are shown again.
  async want(pool, limits, order) {
    const before = this.#wishes.get(pool)?.ordered;
    const wish = { limits, taken: false };
    wish.ordered = this.#order(pool, wish, before, order);
    this.#wishes.set(pool, wish);
    this.#changed();
    await wish.ordered;
  }

  async #order(pool, wish, before, order) {
    await before?.catch(() => null); // two that overtake each other would end in the wrong one
    if (!this.#isLast(pool, wish)) return; // what the last one wants is all that counts
    try {
      await order();
    } catch (problem) {
      this.#forget(pool, wish);
      throw problem;
    }
    wish.taken = true;
    setTimeout(() => this.#forget(pool, wish), SEEN_WITHIN_MS);
    if (this.#isLast(pool, wish)) this.#changed(); // the state may have it already
  }

  #isLast(pool, wish) {
    return this.#wishes.get(pool) === wish;
  }

  #forget(pool, wish) {
    if (this.#isLast(pool, wish)) {
      this.#wishes.delete(pool);
      this.#changed();
    }
  }
}
