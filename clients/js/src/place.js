// @ts-check
/** What sockets to one URL leave to the next: a memory, and an open real socket. */

import { emptyMemory } from "./line.js";

/** The server closes a socket on which nothing was said for 10 s. */
const PARKED = 8_000;
/** URLs that are remembered. A page has one or two, unless it writes something new into each. */
const PLACES_MAX = 16;

/** Nobody listens to this socket any more. An `error` without a listener would be thrown by `ws`. @param {WebSocket} socket */
export function silence(socket) {
  socket.onopen = socket.onmessage = socket.onclose = null;
  socket.onerror = () => {};
}

/** One URL. */
export class Place {
  memory = emptyMemory();
  /** @type {WebSocket | null} */
  #parked = null;
  /** @type {unknown} */
  #timer = undefined;
  #clock;

  /** @param {import("./clock.js").Clock} clock */
  constructor(clock) {
    this.#clock = clock;
  }

  /** Whether `take` has one. */
  get hasParked() {
    return this.#parked?.readyState === 1;
  }

  /**
   * Keeps an open socket for a while.
   *
   * @param {WebSocket} socket
   */
  park(socket) {
    this.take()?.close(1000);
    silence(socket);
    this.#parked = socket;
    this.#timer = this.#clock.setTimeout(() => this.take()?.close(1000), PARKED);
  }

  /** @returns {WebSocket | null} */
  take() {
    const socket = this.#parked;
    this.#parked = null;
    this.#clock.clearTimeout(this.#timer);
    return socket;
  }
}

/** All URLs of one class of sockets. */
export class Places {
  /** @type {Map<string, Place>} */
  #places = new Map();

  /**
   * @param {string} url
   * @param {import("./clock.js").Clock} clock
   */
  at(url, clock) {
    const place = this.#places.get(url) ?? new Place(clock);
    // The last of the map is the latest used.
    this.#places.delete(url);
    this.#places.set(url, place);
    const [oldest] = this.#places.keys();
    if (this.#places.size > PLACES_MAX && oldest !== undefined) this.#places.delete(oldest);
    return place;
  }
}
