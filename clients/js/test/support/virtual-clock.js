// @ts-check
/** Time that a test moves. */

/** @implements {Clock} @typedef {import("../../src/clock.js").Clock} Clock */
export class VirtualClock {
  #now = 1_000;
  #timers = 0;
  /** @type {Map<number, {at: number, callback: () => void}>} */
  #pending = new Map();

  now() {
    return this.#now;
  }

  epoch() {
    return this.#now + 1_700_000_000_000;
  }

  /**
   * @param {() => void} callback
   * @param {number} delay
   */
  setTimeout(callback, delay) {
    this.#timers += 1;
    this.#pending.set(this.#timers, { at: this.#now + delay, callback });
    return this.#timers;
  }

  /** @param {number} timer */
  clearTimeout(timer) {
    this.#pending.delete(timer);
  }

  /** How many timers run. */
  get pending() {
    return this.#pending.size;
  }

  /**
   * Lets time pass, and what is due happen in its order.
   *
   * @param {number} duration
   */
  async advance(duration) {
    const until = this.#now + duration;
    for (;;) {
      await settled();
      const [next] = [...this.#pending].sort(([, a], [, b]) => a.at - b.at);
      if (next === undefined || next[1].at > until) break;
      this.#pending.delete(next[0]);
      this.#now = Math.max(this.#now, next[1].at);
      next[1].callback();
    }
    this.#now = until;
  }

  /**
   * Lets time pass without anybody noticing: the device sleeps. What was due happens now.
   *
   * @param {number} duration
   */
  async sleep(duration) {
    this.#now += duration;
    await this.advance(0);
  }
}

/** What was left to microtasks has happened. */
export function settled() {
  return new Promise((resolve) => setImmediate(resolve));
}
