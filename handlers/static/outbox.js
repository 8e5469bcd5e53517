// @ts-check
/**
 * What was written but isn't known to be stored. No DOM, no socket.
 *
 * One message is on its way at a time, so that they arrive in the order in which they were written.
 * Each carries its key as idempotency key through every attempt: a repeat after a lost reply can't
 * double it. Attempts end in one of three ways: accepted; refused for good (`onRefused`, and the
 * next one goes); or nothing is known, then it stays first in the queue, to be tried again after a
 * pause or when `flush()` says that the way is open again.
 */

import { GatewayError } from "./errors.js";

/** Pauses between attempts while the server answers "not now"; after the last it counts as refused. */
const PAUSES_MS = [500, 1_000, 2_000, 4_000, 8_000];

/** @typedef {{key: string, text: string, refusals: number}} Entry */

export class Outbox {
  /** @type {Entry[]} */
  #queue = [];
  #sending = false;
  #open = false;
  #closed = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #pause = undefined;
  #publish;
  #onAccepted;
  #onRefused;

  /**
   * @param {object} options
   * @param {(key: string, text: string) => Promise<{offset?: number}>} options.publish
   * @param {(key: string, offset: number) => void} options.onAccepted
   * @param {(key: string, error: GatewayError) => void} options.onRefused
   */
  constructor({ publish, onAccepted, onRefused }) {
    this.#publish = publish;
    this.#onAccepted = onAccepted;
    this.#onRefused = onRefused;
  }

  get size() {
    return this.#queue.length;
  }

  /**
   * @param {string} key
   * @param {string} text
   */
  add(key, text) {
    this.#queue.push({ key, text, refusals: 0 });
    this.#next();
  }

  /** The way is open (again): subscribed, and everything missed has been asked for. */
  flush() {
    this.#open = true;
    clearTimeout(this.#pause);
    this.#pause = undefined;
    this.#next();
  }

  /** The way is closed; what is written meanwhile waits. */
  hold() {
    this.#open = false;
  }

  /**
   * It was found in the room: whatever its attempt says, it is stored.
   *
   * @param {string} key
   */
  settle(key) {
    this.#queue = this.#queue.filter((entry) => entry.key !== key);
  }

  /** Gives up everything. */
  close() {
    this.#closed = true;
    this.#queue = [];
    clearTimeout(this.#pause);
  }

  async #next() {
    const entry = this.#queue[0];
    if (!entry || !this.#open || this.#sending || this.#pause !== undefined) return;
    this.#sending = true;
    try {
      const { offset = 0 } = await this.#publish(entry.key, entry.text);
      this.settle(entry.key);
      if (!this.#closed) this.#onAccepted(entry.key, offset);
    } catch (error) {
      if (!(error instanceof GatewayError)) throw error;
      if (this.#queue[0] === entry) this.#failed(entry, error);
    } finally {
      this.#sending = false;
    }
    this.#next();
  }

  /**
   * @param {Entry} entry
   * @param {GatewayError} error
   */
  #failed(entry, error) {
    const pause = PAUSES_MS[entry.refusals];
    if (!error.temporary || pause === undefined) {
      this.settle(entry.key);
      this.#onRefused(entry.key, error);
      return;
    }
    // With the connection lost, flush() comes when it is back, and the attempt didn't count.
    if (!this.#open) return;
    entry.refusals += 1;
    this.#pause = setTimeout(() => {
      this.#pause = undefined;
      this.#next();
    }, pause);
  }
}
