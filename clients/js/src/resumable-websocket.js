// @ts-check
/**
 * `ResumableWebSocket`: the browser's WebSocket interface over a `Line`. Here are real sockets, timers
 * and the device's events; what they mean is decided in line.js.
 */

import { BACKOFF } from "./backoff.js";
import { SystemClock } from "./clock.js";
import { Line } from "./line.js";
import { Places, silence } from "./place.js";
import { Status } from "./status.js";

/**
 * @typedef {import("./backoff.js").Backoff} Backoff
 * @typedef {import("./clock.js").Clock} Clock
 * @typedef {import("./line.js").Action} Action
 *
 * @typedef {EventTarget & {document?: EventTarget & {hidden: boolean}, navigator?: {onLine?: boolean}, location?: {href: string}}} WindowLike
 *
 * @typedef {object} Options See the README.
 * @property {new (url: string, protocols?: string | string[]) => any} [WebSocket]
 * @property {Partial<Backoff>} [backoff]
 * @property {number} [unackedBytesMax]
 * @property {WindowLike | null} [window]
 * @property {Clock} [clock]
 * @property {() => number} [random]
 *
 * @typedef {object} Shared What the sockets of one class have in common.
 * @property {Places} places
 * @property {Status} status
 * @property {EventTarget} network The SDK's view of the network.
 * @property {boolean} watching Whether somebody tells it.
 */

const CONNECTING = 0;
const OPEN = 1;
const CLOSING = 2;
const CLOSED = 3;

/** More than 32 of the largest messages (64 KiB): the server acknowledges every 32nd. */
const UNACKED_BYTES_MAX = 4 * 1024 * 1024;
const REASON_BYTES_MAX = 123;
/** setTimeout's limit. */
const TIMER_MAX = 2 ** 31 - 1;

const systemClock = new SystemClock();

/** Node has none before version 23. @type {typeof CloseEvent} */
const CloseEventClass = globalThis.CloseEvent ?? class extends Event {
  /**
   * @param {string} type
   * @param {CloseEventInit} init
   */
  constructor(type, { code = 0, reason = "", wasClean = false } = {}) {
    super(type);
    this.code = code;
    this.reason = reason;
    this.wasClean = wasClean;
  }
};

/** @type {WeakMap<Function, Shared>} */
const sharedByClass = new WeakMap();

/** @param {Function} socketClass */
function sharedOf(socketClass) {
  let shared = sharedByClass.get(socketClass);
  if (shared === undefined) {
    /** @type {Shared} */
    const made = {
      places: new Places(),
      network: new EventTarget(),
      watching: false,
      status: new Status(() => made.watching && made.network.dispatchEvent(new Event("online"))),
    };
    shared = made;
    sharedByClass.set(socketClass, shared);
  }
  return shared;
}

/** A WebSocket whose session outlives its network. See the README for `state` and the rest. */
export class ResumableWebSocket extends EventTarget {
  static CONNECTING = CONNECTING;
  static OPEN = OPEN;
  static CLOSING = CLOSING;
  static CLOSED = CLOSED;

  /** @type {Readonly<Options>} */
  static options = Object.freeze({});

  /**
   * A class with options; those of this class hold where nothing else is said. It has a `status` and
   * a memory of its own.
   *
   * @param {Options} [options]
   * @returns {typeof ResumableWebSocket}
   */
  static with(options = {}) {
    const merged = Object.freeze({ ...this.options, ...options });
    return class extends this {
      /** @override */
      static options = merged;
    };
  }

  /** About the latest socket of this class. */
  static get status() {
    return sharedOf(this).status;
  }

  /**
   * What the stock SDK needs to leave the network and the page's life to the socket.
   *
   * @returns {{websocket: typeof ResumableWebSocket, networkEventTarget: EventTarget, pageEventTarget: EventTarget}}
   */
  static sdkOptions() {
    const shared = sharedOf(this);
    const { window } = environment(this.options);
    if (!shared.watching) {
      shared.watching = true;
      // Without a socket it is the SDK that is waiting. Once for the life of the class.
      window?.addEventListener("online", () => {
        if (shared.status.state === "closed") shared.network.dispatchEvent(new Event("online"));
      });
    }
    return { websocket: this, networkEventTarget: shared.network, pageEventTarget: new EventTarget() };
  }

  #options;
  #clock;
  #window;
  #shared;
  #place;
  #line;
  #url;
  #protocols;
  /** @type {Map<number, any>} By the line's numbers. */
  #sockets = new Map();
  /** @type {0 | 1 | 2 | 3} */
  #readyState = CONNECTING;
  /** Whether it was closed before it was open. */
  #failed = false;
  /** @type {BinaryType} */
  #binaryType = "blob";
  #protocol = "";
  #extensions = "";
  #pumping = false;
  /** @type {unknown} */
  #timer = undefined;
  #timerAt = Infinity;
  /** @type {Map<string, (event: any) => void>} */
  #handlers = new Map();
  /** @type {() => void} */
  #unwatch = () => {};

  /**
   * @param {string | URL} url
   * @param {string | string[]} [protocols]
   */
  constructor(url, protocols) {
    super();
    const { options } = /** @type {typeof ResumableWebSocket} */ (this.constructor);
    this.#options = environment(options);
    this.#clock = this.#options.clock;
    this.#window = this.#options.window;
    if (typeof this.#options.WebSocket !== "function") {
      throw new TypeError("there is no WebSocket here: give one, as in ResumableWebSocket.with({ WebSocket })");
    }
    this.#url = absolute(url, this.#window?.location?.href);
    this.#protocols = protocols;
    this.#shared = sharedOf(this.constructor);
    this.#place = this.#shared.places.at(this.#url.href, this.#clock);
    this.#line = new Line({
      backoff: this.#options.backoff,
      unackedBytesMax: this.#options.unackedBytesMax,
      random: this.#options.random,
      memory: this.#place.memory,
      plain: isBinary(this.#url, protocols),
    });
    this.#unwatch = this.#watch();
    this.#shared.status.follow(this);
    // Not before the maker has attached its handlers.
    queueMicrotask(() => this.#do((line, now) => line.start(now, this.#place.hasParked)));
  }

  // --- the browser's interface ----------------------------------------------------------------------

  get url() {
    return this.#url.href;
  }

  get readyState() {
    return this.#readyState;
  }

  get protocol() {
    return this.#protocol;
  }

  get extensions() {
    return this.#extensions;
  }

  get binaryType() {
    return this.#binaryType;
  }

  set binaryType(type) {
    if (type !== "blob" && type !== "arraybuffer") return;
    this.#binaryType = type;
    if (this.#line.plain) for (const socket of this.#sockets.values()) socket.binaryType = type;
  }

  /** Bytes that no real socket has sent yet. */
  get bufferedAmount() {
    const waiting = this.state === "waiting" || this.state === "resuming" ? this.#line.unackedBytes : 0;
    return [...this.#sockets.values()].reduce((sum, { bufferedAmount = 0 }) => sum + bufferedAmount, waiting);
  }

  /** @param {string | ArrayBufferLike | ArrayBufferView | Blob} data In a session, text only. */
  send(data) {
    if (this.#readyState === CONNECTING) {
      throw new DOMException("the socket isn't open yet", "InvalidStateError");
    }
    if (this.#readyState !== OPEN) return;
    if (typeof data !== "string" && !this.#line.plain) {
      throw new TypeError("a session carries text; for binary messages ask for a subprotocol");
    }
    this.#do((line, now) => line.send(data, now));
  }

  /**
   * Ends the session as well: the server keeps nothing for it.
   *
   * @param {number} [code]
   * @param {string} [reason]
   */
  close(code, reason = "") {
    if (code !== undefined && code !== 1000 && !(code >= 3000 && code <= 4999)) {
      throw new DOMException("the code must be 1000, or between 3000 and 4999", "InvalidAccessError");
    }
    if (new TextEncoder().encode(reason).length > REASON_BYTES_MAX) {
      throw new DOMException(`the reason has more than ${REASON_BYTES_MAX} bytes`, "SyntaxError");
    }
    if (this.#readyState >= CLOSING) return;
    this.#failed = this.#readyState === CONNECTING;
    this.#readyState = CLOSING;
    this.#do((line, now) => line.leave(now, code, reason));
  }

  /** @returns {((event: Event) => void) | null} */
  get onopen() {
    return this.#handlers.get("open") ?? null;
  }

  set onopen(handler) {
    this.#handle("open", handler);
  }

  /** @returns {((event: MessageEvent) => void) | null} */
  get onmessage() {
    return this.#handlers.get("message") ?? null;
  }

  set onmessage(handler) {
    this.#handle("message", handler);
  }

  /** @returns {((event: CloseEvent) => void) | null} */
  get onclose() {
    return this.#handlers.get("close") ?? null;
  }

  set onclose(handler) {
    this.#handle("close", handler);
  }

  /** @returns {((event: Event) => void) | null} */
  get onerror() {
    return this.#handlers.get("error") ?? null;
  }

  set onerror(handler) {
    this.#handle("error", handler);
  }

  // --- what it tells beyond that --------------------------------------------------------------------

  get state() {
    return this.#line.state;
  }

  /** Milliseconds. */
  get rtt() {
    return this.#line.rtt === null ? null : Math.round(this.#line.rtt);
  }

  get quality() {
    return this.#line.quality;
  }

  get error() {
    return this.#line.error;
  }

  /** Milliseconds since 1970. */
  get retryAt() {
    const { retryAt } = this.#line;
    return retryAt === null ? null : Math.round(this.#clock.epoch() + retryAt - this.#clock.now());
  }

  /** @returns {((event: Event) => void) | null} */
  get onstatechange() {
    return this.#handlers.get("statechange") ?? null;
  }

  set onstatechange(handler) {
    this.#handle("statechange", handler);
  }

  /**
   * Doesn't wait any longer, except for a moment that the server has given.
   *
   * @returns {boolean} Whether an attempt starts now.
   */
  retryNow() {
    return this.#do((line, now) => line.retryNow(now));
  }

  // --- the line's actions ---------------------------------------------------------------------------

  /**
   * Lets something happen to the line, and does what follows from it.
   *
   * @template T
   * @param {(line: Line, now: number) => T} happening
   * @returns {T}
   */
  #do(happening) {
    const result = happening(this.#line, this.#clock.now());
    // What the handlers of the layer above do meanwhile is queued behind.
    if (!this.#pumping) {
      this.#pumping = true;
      for (let actions = this.#line.take(); actions.length > 0; actions = this.#line.take()) {
        for (const action of actions) this.#perform(action);
      }
      this.#pumping = false;
      this.#arm();
    }
    return result;
  }

  /** @param {Action} action */
  #perform(action) {
    switch (action.type) {
      case "connect":
        this.#connect(action.socket, action.plain);
        break;
      case "adopt":
        this.#adopt(action.socket);
        break;
      case "send":
        this.#sockets.get(action.socket)?.send(action.data);
        break;
      case "drop":
        this.#forget(action.socket)?.close(action.code, action.reason);
        break;
      case "park": {
        const socket = this.#forget(action.socket);
        if (socket) this.#place.park(socket);
        break;
      }
      case "open":
        if (this.#readyState !== CONNECTING) break;
        this.#readyState = OPEN;
        this.dispatchEvent(new Event("open"));
        break;
      case "message":
        if (this.#readyState !== OPEN) break;
        this.dispatchEvent(new MessageEvent("message", { data: action.data, origin: this.#url.origin }));
        break;
      case "close":
        this.#closed(action);
        break;
      case "change":
        this.dispatchEvent(new Event("statechange"));
        break;
      default:
        /** @type {never} */ (action);
    }
  }

  /** @param {import("./line.js").Close} action */
  #closed({ code, reason, wasClean }) {
    const isFailure = this.#failed || this.#readyState === CONNECTING;
    const event = new CloseEventClass("close", this.#failed ? { code: 1006 } : { code, reason, wasClean });
    const tell = () => {
      this.#readyState = CLOSED;
      if (isFailure) this.dispatchEvent(new Event("error"));
      this.dispatchEvent(event);
    };
    this.#unwatch();
    this.#clock.clearTimeout(this.#timer);
    // As with real sockets, `close()` has returned before its event comes.
    if (this.#readyState === CLOSING) queueMicrotask(tell);
    else tell();
  }

  // --- real sockets ---------------------------------------------------------------------------------

  /**
   * @param {number} id
   * @param {boolean} plain
   */
  #connect(id, plain) {
    const { WebSocket } = this.#options;
    let socket;
    try {
      socket = this.#protocols === undefined ? new WebSocket(this.url) : new WebSocket(this.url, this.#protocols);
    } catch (error) {
      // Such as an insecure URL in a secure page.
      this.#line.socketClosed(id, this.#clock.now(), 1006, String(error));
      return;
    }
    if (plain) socket.binaryType = this.#binaryType;
    this.#attach(id, socket);
  }

  /** @param {number} id */
  #adopt(id) {
    const socket = this.#place.take();
    if (socket?.readyState !== OPEN) {
      this.#line.socketClosed(id, this.#clock.now(), 1006, "it was closed meanwhile");
      return;
    }
    this.#attach(id, socket);
    this.#opened(id, socket);
  }

  /**
   * @param {number} id
   * @param {any} socket
   */
  #attach(id, socket) {
    this.#sockets.set(id, socket);
    socket.onopen = () => this.#opened(id, socket);
    socket.onmessage = (/** @type {MessageEvent} */ { data }) => {
      this.#do((line, now) => line.socketMessage(id, now, data));
    };
    socket.onclose = (/** @type {CloseEvent} */ { code, reason, wasClean }) => {
      this.#forget(id);
      this.#do((line, now) => line.socketClosed(id, now, code, reason, wasClean));
    };
    // Always followed by a close, which says more.
    socket.onerror = () => {};
  }

  /**
   * @param {number} id
   * @param {any} socket
   */
  #opened(id, socket) {
    this.#protocol = socket.protocol ?? "";
    this.#extensions = socket.extensions ?? "";
    this.#do((line, now) => line.socketOpened(id, now));
  }

  /** @param {number} id */
  #forget(id) {
    const socket = this.#sockets.get(id);
    this.#sockets.delete(id);
    if (socket) silence(socket);
    return socket;
  }

  // --- time and the device --------------------------------------------------------------------------

  /** A timer that would come too early stays: it is set again when it comes. */
  #arm() {
    const { deadline } = this.#line;
    if (deadline >= this.#timerAt) return;
    this.#clock.clearTimeout(this.#timer);
    this.#timerAt = deadline;
    const delay = Math.ceil(Math.max(0, deadline - this.#clock.now()));
    this.#timer = this.#clock.setTimeout(() => {
      this.#timerAt = Infinity;
      this.#do((line, now) => line.tick(now));
    }, Math.min(delay, TIMER_MAX));
  }

  /** Listens to the device; returns what ends that. */
  #watch() {
    const window = this.#window;
    if (!window) return () => {};
    const listening = new AbortController();
    /**
     * @param {EventTarget | undefined} target
     * @param {string} type
     * @param {(event: any) => void} listener
     */
    const on = (target, type, listener) => target?.addEventListener(type, listener, { signal: listening.signal });
    const wake = () => this.#do((line, now) => line.wake(now));

    // A server on this machine is there without any network.
    if (!isLoopback(this.#url)) {
      if (window.navigator?.onLine === false) this.#line.offline();
      on(window, "offline", () => {
        if (this.#line.plain) this.#shared.network.dispatchEvent(new Event("offline"));
        this.#do((line) => line.offline());
      });
    }
    on(window, "online", () => {
      if (this.#line.plain) this.#shared.network.dispatchEvent(new Event("online"));
      this.#do((line, now) => line.online(now));
    });
    on(window, "pagehide", ({ persisted }) => {
      this.#do((line, now) => (persisted ? line.suspend(now) : line.leave(now)));
    });
    on(window, "pageshow", wake);
    on(window.document, "resume", wake);
    on(window.document, "visibilitychange", () => {
      if (!window.document?.hidden) wake();
    });
    return () => listening.abort();
  }

  /**
   * @param {string} type
   * @param {((event: any) => void) | null} handler
   */
  #handle(type, handler) {
    const former = this.#handlers.get(type);
    if (former) this.removeEventListener(type, former);
    this.#handlers.delete(type);
    if (typeof handler !== "function") return;
    this.#handlers.set(type, handler);
    this.addEventListener(type, handler);
  }
}

// On instances as well, as the browser has them.
for (const [name, value] of Object.entries({ CONNECTING, OPEN, CLOSING, CLOSED })) {
  Object.defineProperty(ResumableWebSocket.prototype, name, { value, enumerable: true });
}

/**
 * Options with their defaults.
 *
 * @param {Readonly<Options>} options
 */
function environment(options) {
  const here = /** @type {any} */ (globalThis);
  return {
    WebSocket: options.WebSocket ?? here.WebSocket,
    backoff: Object.freeze({ ...BACKOFF, ...options.backoff }),
    unackedBytesMax: options.unackedBytesMax ?? UNACKED_BYTES_MAX,
    window: options.window !== undefined ? options.window : windowOf(here),
    clock: options.clock ?? systemClock,
    random: options.random ?? Math.random,
  };
}

/**
 * @param {any} here
 * @returns {WindowLike | null}
 */
function windowOf(here) {
  return typeof here.addEventListener === "function" ? here : null;
}

/**
 * @param {string | URL} url
 * @param {string} [base]
 */
function absolute(url, base) {
  let found;
  try {
    found = new URL(url, base);
  } catch {
    throw new DOMException(`not a URL: ${url}`, "SyntaxError");
  }
  if (found.protocol === "http:") found.protocol = "ws:";
  if (found.protocol === "https:") found.protocol = "wss:";
  if (found.protocol !== "ws:" && found.protocol !== "wss:") {
    throw new DOMException(`not a WebSocket's URL: ${url}`, "SyntaxError");
  }
  found.hash = "";
  return found;
}

/**
 * Whether the channel protocol is asked for in its binary form.
 *
 * @param {URL} url
 * @param {string | string[]} [protocols]
 */
function isBinary(url, protocols = []) {
  const asked = typeof protocols === "string" ? [protocols] : protocols;
  return asked.includes("centrifuge-protobuf")
    || ["cf_protocol", "format"].some((key) => url.searchParams.get(key) === "protobuf");
}

/** @param {URL} url */
function isLoopback({ hostname }) {
  return hostname === "localhost" || hostname === "[::1]" || /^127\.\d+\.\d+\.\d+$/.test(hostname);
}
