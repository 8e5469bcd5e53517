// @ts-check
/** Time, as the socket sees it. */

/**
 * @typedef {object} Clock
 * @property {() => number} now Milliseconds since some moment. Never goes back, and counts on while
 *   the device sleeps.
 * @property {() => number} epoch Milliseconds since 1970, for people.
 * @property {(callback: () => void, delay: number) => unknown} setTimeout
 * @property {(timer: any) => void} clearTimeout
 */

/** `performance.now()` and the wall clock run apart by so much only when one has jumped. */
const JUMP = 2_000;

/**
 * The device's. `performance.now()` stands still during sleep on some of them, `Date.now()` goes back
 * when somebody sets it: this takes the former, and a leap forward of the latter as a sleep.
 *
 * @implements {Clock}
 */
export class SystemClock {
  #steady = performance.now();
  #wall = Date.now();
  #slept = 0;

  now() {
    const steady = performance.now();
    const wall = Date.now();
    const ahead = wall - this.#wall - (steady - this.#steady);
    if (ahead > JUMP) this.#slept += ahead;
    this.#steady = steady;
    this.#wall = wall;
    return steady + this.#slept;
  }

  epoch() {
    return Date.now();
  }

  /**
   * @param {() => void} callback
   * @param {number} delay
   * @returns {unknown}
   */
  setTimeout(callback, delay) {
    return setTimeout(callback, delay);
  }

  /** @param {any} timer */
  clearTimeout(timer) {
    clearTimeout(timer);
  }
}
