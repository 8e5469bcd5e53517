// @ts-check
/** What is known about the line, for whoever doesn't make the sockets: the latest one's. */

/**
 * @typedef {import("./line.js").LineState} LineState
 * @typedef {import("./line.js").LineError} LineError
 * @typedef {import("./frames.js").Quality} Quality
 *
 * @typedef {object} LineStatus See the README.
 * @property {LineState} state
 * @property {number | null} rtt
 * @property {Quality | null} quality
 * @property {number | null} retryAt
 * @property {LineError | null} error
 */

/** Dispatches `statechange`. */
export class Status extends EventTarget {
  /** @type {(LineStatus & EventTarget & {retryNow(): boolean}) | null} */
  #latest = null;
  #wakeAbove;

  /** @param {() => boolean} wakeAbove Makes the layer above come back, if it is waiting by itself. */
  constructor(wakeAbove) {
    super();
    this.#wakeAbove = wakeAbove;
  }

  get state() {
    return this.#latest?.state ?? "closed";
  }

  get rtt() {
    return this.#latest?.rtt ?? null;
  }

  get quality() {
    return this.#latest?.quality ?? null;
  }

  get retryAt() {
    return this.#latest?.retryAt ?? null;
  }

  get error() {
    return this.#latest?.error ?? null;
  }

  /**
   * Doesn't wait any longer, except for a moment that the server has given.
   *
   * @returns {boolean} Whether an attempt starts now.
   */
  retryNow() {
    if (this.#latest !== null && this.state !== "closed") return this.#latest.retryNow();
    return this.#wakeAbove();
  }

  /**
   * From now on it is about this socket.
   *
   * @param {LineStatus & EventTarget & {retryNow(): boolean}} socket
   */
  follow(socket) {
    this.#latest = socket;
    socket.addEventListener("statechange", () => {
      if (this.#latest === socket) this.dispatchEvent(new Event("statechange"));
    });
    this.dispatchEvent(new Event("statechange"));
  }
}
