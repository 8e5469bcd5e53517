// @ts-check
/** Commands that wait for their replies. No DOM, no socket. */

import { Code, GatewayError } from "./errors.js";

/**
 * @typedef {object} Waiter
 * @property {(result: any) => void} resolve
 * @property {(error: GatewayError) => void} reject
 *
 * @typedef {Waiter & {timeoutMs: number, timer: ReturnType<typeof setTimeout> | undefined}} Waiting
 */

const TIMEOUT_MS = 10_000;

export class Commands {
  #nextId = 1;
  #paused = false;
  /** By id. @type {Map<number, Waiting>} */
  #waiting = new Map();

  /** How many have no reply yet. */
  get size() {
    return this.#waiting.size;
  }

  /**
   * Numbers a command and expects its reply.
   *
   * @param {string} method
   * @param {object} params
   * @param {Waiter} waiter
   * @param {number} [timeoutMs]
   * @returns {string} The command as it goes on the wire.
   */
  prepare(method, params, { resolve, reject }, timeoutMs = TIMEOUT_MS) {
    const id = this.#nextId++;
    const waiting = { resolve, reject, timeoutMs, timer: undefined };
    this.#waiting.set(id, waiting);
    if (!this.#paused) this.#time(id, waiting);
    return JSON.stringify({ id, [method]: params });
  }

  /** @param {any} reply One that nobody waits for any more is ignored. */
  answer({ id, error, ...results }) {
    const waiting = this.#take(id);
    if (error) waiting?.reject(new GatewayError(error.code, error.message, error.temporary === true));
    else waiting?.resolve(Object.values(results)[0] ?? {});
  }

  /**
   * None of them will be answered any more.
   *
   * @param {GatewayError} error
   */
  fail(error) {
    this.#paused = false;
    for (const id of [...this.#waiting.keys()]) this.#take(id)?.reject(error);
  }

  /** There is no line to the server: the time that this takes isn't the server's. */
  pause() {
    this.#paused = true;
    for (const { timer } of this.#waiting.values()) clearTimeout(timer);
  }

  /** The line is back, and what wasn't answered has all its time again. */
  resume() {
    if (!this.#paused) return;
    this.#paused = false;
    for (const [id, waiting] of this.#waiting) this.#time(id, waiting);
  }

  /**
   * @param {number} id
   * @param {Waiting} waiting
   */
  #time(id, waiting) {
    waiting.timer = setTimeout(() => {
      this.#take(id)?.reject(new GatewayError(Code.TIMEOUT, "the server didn't answer in time", true));
    }, waiting.timeoutMs);
  }

  /** @param {number} id */
  #take(id) {
    const waiting = this.#waiting.get(id);
    clearTimeout(waiting?.timer);
    this.#waiting.delete(id);
    return waiting;
  }
}
