// @ts-check
/** `useGateway`: a React hook for the state of a connection, as chat interfaces show it. */

import { useSyncExternalStore } from "react";
import { ResumableWebSocket } from "./resumable-websocket.js";

/**
 * @typedef {import("./frames.js").Quality} Quality
 * @typedef {import("./line.js").LineError} LineError
 * @typedef {import("./status.js").Status} Status
 *
 * @typedef {object} Emitter
 * @property {(event: any, listener: (context: any) => void) => unknown} on
 * @property {(event: any, listener: (context: any) => void) => unknown} removeListener
 *
 * @typedef {Emitter & {state: string, subscribe(): void, unsubscribe(): void}} SubscriptionLike
 *
 * @typedef {object} Client What is needed of the SDK's client.
 * @property {string} state
 * @property {(channel: string) => any} getSubscription
 * @property {(channel: string, options?: any) => any} newSubscription
 * @property {(subscription: any) => void} removeSubscription
 *
 * @typedef {"disconnected" | "connecting" | "connected" | "waiting" | "resuming"} GatewayState
 *
 * @typedef {object} Connection
 * @property {GatewayState} state
 * @property {Quality | null} quality
 * @property {number | null} rtt Milliseconds.
 * @property {number | null} retryAt When the next attempt starts, in milliseconds since 1970.
 * @property {LineError | null} error Of the last failure; null once connected again.
 *
 * @typedef {Record<string, (context: any) => void>} Handlers By the SDK's names of a subscription's events.
 *
 * @typedef {object} GatewayActions
 * @property {() => boolean} retryNow
 * @property {(channel: string, handlers: Handlers, options?: object) => () => void} subscribe
 */

/** @type {Readonly<Connection>} */
const DISCONNECTED = Object.freeze({
  state: "disconnected", quality: null, rtt: null, retryAt: null, error: null,
});

const CLIENT_EVENTS = ["connecting", "connected", "disconnected", "error"];

/** One client over one class of sockets, whoever looks at it. */
class Store {
  /** @type {Readonly<Connection>} */
  #connection = DISCONNECTED;
  /** @type {Set<() => void>} */
  #listeners = new Set();
  /** @type {LineError | null} */
  #error = null;
  /** How many use a channel. @type {Map<string, number>} */
  #users = new Map();
  #client;
  #status;

  /**
   * @param {Client & Emitter} client
   * @param {Status} status
   */
  constructor(client, status) {
    this.#client = client;
    this.#status = status;
    this.#look();
  }

  /** The same object until something has changed, as React wants it. */
  snapshot = () => this.#connection;

  /** @param {() => void} listener */
  listen = (listener) => {
    if (this.#listeners.size === 0) this.#watch();
    this.#listeners.add(listener);
    return () => {
      this.#listeners.delete(listener);
      if (this.#listeners.size === 0) this.#unwatch();
    };
  };

  retryNow = () => this.#status.retryNow();

  /**
   * @param {string} channel
   * @param {Handlers} handlers
   * @param {object} [options] For the first user of a channel: the SDK's for a new subscription.
   */
  subscribe = (channel, handlers, options) => {
    /** @type {SubscriptionLike} */
    const subscription = this.#client.getSubscription(channel) ?? this.#client.newSubscription(channel, options);
    for (const [event, handler] of Object.entries(handlers)) subscription.on(event, handler);
    this.#users.set(channel, (this.#users.get(channel) ?? 0) + 1);
    if (subscription.state === "unsubscribed") subscription.subscribe();
    let ended = false;
    return () => {
      if (ended) return;
      ended = true;
      for (const [event, handler] of Object.entries(handlers)) subscription.removeListener(event, handler);
      this.#users.set(channel, (this.#users.get(channel) ?? 1) - 1);
      // An effect that runs again does so at once; nothing of that is to reach the server.
      queueMicrotask(() => this.#release(channel, subscription));
    };
  };

  /**
   * @param {string} channel
   * @param {SubscriptionLike} subscription
   */
  #release(channel, subscription) {
    if (this.#users.get(channel) !== 0) return;
    this.#users.delete(channel);
    subscription.unsubscribe();
    this.#client.removeSubscription(subscription);
  }

  #watch() {
    for (const event of CLIENT_EVENTS) this.#client.on(event, this.#onClient);
    this.#status.addEventListener("statechange", this.#onChange);
    this.#look();
  }

  #unwatch() {
    for (const event of CLIENT_EVENTS) this.#client.removeListener(event, this.#onClient);
    this.#status.removeEventListener("statechange", this.#onChange);
  }

  /** @param {any} context Of any of the client's events. */
  #onClient = (context) => {
    if (context?.error) this.#error = { code: context.error.code, reason: context.error.message };
    else if (context?.client !== undefined) this.#error = null;
    else if (context?.code) this.#error = { code: context.code, reason: context.reason };
    this.#onChange();
  };

  #onChange = () => {
    const former = this.#connection;
    this.#look();
    if (this.#connection !== former) for (const listener of [...this.#listeners]) listener();
  };

  #look() {
    const { quality, rtt, retryAt, error } = this.#status;
    const state = combined(this.#client.state, this.#status.state);
    /** @type {Connection} */
    const connection = { state, quality, rtt, retryAt, error: state === "connected" ? null : (this.#error ?? error) };
    const former = this.#connection;
    const isSame = former.state === state && former.quality === quality && former.rtt === rtt
      // Computed from two clocks, it may differ by a millisecond from one look to the next.
      && Math.abs((former.retryAt ?? 0) - (retryAt ?? 0)) <= 2
      && former.error?.code === connection.error?.code && former.error?.reason === connection.error?.reason;
    if (!isSame) this.#connection = Object.freeze(connection);
  }
}

/**
 * @param {string} client The SDK's state.
 * @param {import("./line.js").LineState} line
 * @returns {GatewayState}
 */
function combined(client, line) {
  if (client === "disconnected") return "disconnected";
  if (line === "waiting" || line === "resuming") return line;
  return client === "connected" ? "connected" : "connecting";
}

/** Where pages are rendered for a browser, nothing is connected. */
const onServer = () => DISCONNECTED;

/** @type {WeakMap<Status, WeakMap<object, Store>>} */
const stores = new WeakMap();

/**
 * @param {Client & Emitter} client
 * @param {Status} status
 */
function storeOf(client, status) {
  const byClient = stores.get(status) ?? new WeakMap();
  stores.set(status, byClient);
  const store = byClient.get(client) ?? new Store(client, status);
  byClient.set(client, store);
  return store;
}

/**
 * How the connection is, and what can be done with it. The functions stay the same over renders.
 *
 * @param {Client & Emitter} client A `Centrifuge` that was made with `Socket.sdkOptions()`.
 * @param {typeof ResumableWebSocket} [Socket]
 * @returns {Readonly<Connection> & GatewayActions}
 */
export function useGateway(client, Socket = ResumableWebSocket) {
  const store = storeOf(client, Socket.status);
  const connection = useSyncExternalStore(store.listen, store.snapshot, onServer);
  return { ...connection, retryNow: store.retryNow, subscribe: store.subscribe };
}
