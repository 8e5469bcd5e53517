// @ts-check
/**
 * A client of the gateway's channel protocol (Centrifuge JSON over one WebSocket). No DOM.
 *
 * Theory of operation. A `Gateway` is in one of four phases:
 *
 *     disconnected ──connect()──▶ connecting ──reply──▶ connected
 *          ▲                        │    ▲                 │
 *          │ final close or error   │    │ timer or        │ socket lost
 *          └────────────────────────┤    │ retryNow()      │
 *                                   ▼    │                 │
 *                                   waiting ◀──────────────┘
 *
 * Every attempt to connect has a number, and whatever arrives for an attempt that is over is
 * dropped, so that a late event can never disturb the present socket. Subscriptions outlive
 * sockets: each remembers the position (epoch and offset) of the last publication that it handed
 * over, asks for everything after it when it is subscribed again, and hands over each offset once
 * and in order. A hole makes it subscribe again from the last good position.
 *
 * `connect` and all `subscribe` commands leave in the first frame, so that coming back costs one
 * round trip.
 */

/**
 * @typedef {{user: string, client: string, conn_info?: any, chan_info?: any}} ClientInfo
 *
 * @typedef {object} Publication
 * @property {any} data
 * @property {number} [offset] Absent on ephemeral publications.
 * @property {number} [time] Milliseconds since 1970.
 * @property {ClientInfo} [info] Absent when the server's API published it.
 *
 * @typedef {"disconnected" | "connecting" | "connected" | "waiting"} Phase
 *
 * @typedef {object} ConnectionState
 * @property {Phase} phase
 * @property {number} attempt Failed attempts in a row.
 * @property {number} [retryAt] When the next attempt starts, in milliseconds since 1970 (waiting).
 * @property {number} [code] Why it isn't connected (waiting, disconnected).
 * @property {string} [reason] The same in words.
 *
 * @typedef {object} Verdict What a close says: why, and whether and when to come back.
 * @property {number} code
 * @property {string} reason
 * @property {boolean} reconnect
 * @property {number} [retry] Milliseconds that the server asks this one connection to wait.
 *
 * @typedef {object} Subscribed
 * @property {boolean} wasRecovering Whether a position was asked for.
 * @property {boolean} recovered Whether everything after that position follows.
 * @property {{from: number, to: number}} [gap] What can't be recovered any more.
 * @property {string} epoch
 * @property {number} offset
 *
 * @typedef {object} SubscriptionHandlers
 * @property {(subscribed: Subscribed) => void} [onSubscribed] Before recovered publications.
 * @property {(publication: Publication) => void} [onPublication]
 * @property {(info: ClientInfo) => void} [onJoin]
 * @property {(info: ClientInfo) => void} [onLeave]
 * @property {(error: GatewayError) => void} [onEnded] The server won't have it any more.
 *
 * @typedef {object} HistoryQuery
 * @property {number} limit
 * @property {{offset: number, epoch: string}} [since] Exclusive.
 * @property {boolean} [reverse] Newest first.
 */

/** Codes below 100 never come from the server. */
export const Code = Object.freeze({
  TIMEOUT: 1,
  NOT_CONNECTED: 2,
  NO_PING: 3,
  TOKEN_UNAVAILABLE: 4,
  CLOSED_HERE: 5,
  INTERNAL: 100,
  PERMISSION_DENIED: 103,
  TOKEN_EXPIRED: 109,
  CONNECTION_EXPIRED: 3005,
  INVALID_TOKEN: 3500,
});

/** After these the next attempt needs another token. @type {ReadonlySet<number>} */
const TOKEN_SPENT = new Set([Code.TOKEN_EXPIRED, Code.CONNECTION_EXPIRED, Code.INVALID_TOKEN]);

/** Unsubscribe codes from here on ask the client to subscribe again. */
const UNSUBSCRIBED_FOR_NOW = 2500;

const CONNECT_TIMEOUT_MS = 10_000;
const COMMAND_TIMEOUT_MS = 10_000;
const PROBE_TIMEOUT_MS = 4_000;
/** Added to the server's ping interval before silence counts as loss; as in the stock SDKs. */
const PING_SLACK_MS = 10_000;
/** A connection that lasted this long ends a series of failures; shorter ones continue it. */
const STABLE_MS = 10_000;
/** setTimeout's limit. */
const TIMER_MAX_MS = 2 ** 31 - 1;

export const BACKOFF = Object.freeze({ minMs: 500, maxMs: 20_000, factor: 2 });

export class GatewayError extends Error {
  /**
   * @param {number} code
   * @param {string} message
   * @param {boolean} temporary Whether the same thing may work later.
   */
  constructor(code, message, temporary) {
    super(message);
    this.name = "GatewayError";
    this.code = code;
    this.temporary = temporary;
  }
}

/**
 * How long to wait before an attempt: exponential with full jitter, so that clients cut off
 * together don't come back together.
 *
 * @param {number} attempt 0 for the first.
 * @param {number} random In [0, 1).
 * @returns {number} Milliseconds.
 */
export function backoffDelay(attempt, random) {
  // The exponent is clamped because 2 ** 1024 is Infinity, and Infinity * 0 isn't a number.
  const ceiling = BACKOFF.minMs * BACKOFF.factor ** Math.min(attempt, 30);
  return Math.round(random * Math.min(BACKOFF.maxMs, ceiling));
}

/**
 * Reads a WebSocket close. A JSON reason is obeyed; otherwise the code's range decides.
 *
 * @param {number} code
 * @param {string} text
 * @returns {Verdict}
 */
export function closeVerdict(code, text) {
  try {
    const said = JSON.parse(text);
    if (typeof said.reconnect === "boolean") {
      const retry = Number.isFinite(said.retry) && said.retry >= 0 ? said.retry : undefined;
      return { code, reason: String(said.reason ?? ""), reconnect: said.reconnect, retry };
    }
  } catch {
    // Not JSON: plain text, or nothing at all when the network went away.
  }
  const final = code === 1009 || (code >= 3500 && code < 4000) || (code >= 4500 && code < 5000);
  return { code, reason: text || "connection lost", reconnect: !final };
}

/** One channel. Made by `Gateway.subscribe`. */
class Subscription {
  /**
   * @param {string} channel
   * @param {SubscriptionHandlers} handlers
   */
  constructor(channel, handlers) {
    this.channel = channel;
    this.handlers = handlers;
    this.subscribed = false;
    this.failures = 0;
    /** @type {{epoch: string, offset: number} | null} null: nothing to recover from yet. */
    this.position = null;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
  }

  request() {
    const request = { channel: this.channel, recoverable: true, join_leave: true };
    return this.position ? { ...request, recover: true, ...this.position } : request;
  }
}

export class Gateway {
  /** @type {ConnectionState} */
  state = { phase: "disconnected", attempt: 0 };

  #url;
  #getToken;
  #onState;
  #websocket;
  #random;
  #now;

  /** @type {string | null} */
  #token = null;
  /** @type {WebSocket | null} */
  #socket = null;
  /** Numbers attempts; whatever belongs to an earlier one is stale. */
  #current = 0;
  /** Whether the first frame of this socket has left. */
  #opened = false;
  #failures = 0;
  #nextId = 1;
  #pongs = false;
  #lastSeen = 0;
  /** @type {Map<number, {resolve: (result: any) => void, reject: (error: GatewayError) => void, timer: ReturnType<typeof setTimeout>}>} */
  #outstanding = new Map();
  /** @type {Map<string, Subscription>} */
  #subscriptions = new Map();
  /** @type {Record<"retry" | "connect" | "watch" | "stable" | "refresh", ReturnType<typeof setTimeout> | undefined>} */
  #timers = { retry: undefined, connect: undefined, watch: undefined, stable: undefined, refresh: undefined };

  /**
   * @param {string} url
   * @param {object} options
   * @param {() => Promise<string>} options.getToken Called for the first connect and whenever the
   *   token has expired. To end the attempts, reject with a GatewayError that isn't temporary.
   * @param {(state: ConnectionState) => void} [options.onState]
   * @param {typeof WebSocket} [options.websocket] Anything with the browser's interface.
   * @param {() => number} [options.random]
   * @param {() => number} [options.now] Milliseconds since 1970.
   */
  constructor(url, { getToken, onState = () => {}, websocket = WebSocket, random = Math.random, now = Date.now }) {
    this.#url = url;
    this.#getToken = getToken;
    this.#onState = onState;
    this.#websocket = websocket;
    this.#random = random;
    this.#now = now;
  }

  /** Starts. Without effect while connecting or connected. */
  connect() {
    if (this.state.phase === "connecting" || this.state.phase === "connected") return;
    this.#failures = 0;
    this.#attempt();
  }

  /** Doesn't wait any longer for the next attempt. */
  retryNow() {
    if (this.state.phase === "waiting") this.#attempt();
  }

  /** Ends for good, until `connect()`. */
  disconnect() {
    this.#lost({ code: Code.CLOSED_HERE, reason: "closed by this page", reconnect: false });
  }

  /**
   * Finds out soon whether a connection that looks open still is: for when the device was asleep or
   * its network changed. A wait for the next attempt is cut short.
   */
  probe() {
    this.retryNow();
    if (this.state.phase !== "connected") return;
    const current = this.#current;
    this.#command("ping", {}, PROBE_TIMEOUT_MS).catch((error) => {
      if (error.code !== Code.TIMEOUT || current !== this.#current) return;
      this.#lost({ code: Code.NO_PING, reason: "the server doesn't answer", reconnect: true });
    });
  }

  /**
   * Subscribes, now or as soon as connected, and again after every loss until `unsubscribe`.
   *
   * @param {string} channel
   * @param {SubscriptionHandlers} handlers
   */
  subscribe(channel, handlers) {
    if (this.#subscriptions.has(channel)) throw new Error(`already subscribed to ${channel}`);
    const subscription = new Subscription(channel, handlers);
    this.#subscriptions.set(channel, subscription);
    if (this.#opened) this.#send([this.#subscribeCommand(subscription)]);
  }

  /** @param {string} channel */
  unsubscribe(channel) {
    const subscription = this.#subscriptions.get(channel);
    if (!subscription) return;
    clearTimeout(subscription.timer);
    this.#subscriptions.delete(channel);
    if (!this.#opened) return;
    // Whatever the answer: the server forgets the channel now, or with the socket.
    this.#command("unsubscribe", { channel }).catch(() => {});
  }

  /**
   * Resolves once the server has committed it. With an idempotency key, a repeat after a lost reply
   * answers with the first one's offset and stores nothing.
   *
   * @param {string} channel
   * @param {any} data
   * @param {string} [idempotencyKey] At most 64 characters.
   * @returns {Promise<{offset?: number, epoch?: string, duplicate?: boolean}>}
   */
  publish(channel, data, idempotencyKey) {
    return this.#command("publish", { channel, data, idempotency_key: idempotencyKey });
  }

  /**
   * Publishes what nobody will miss: never stored, dropped rather than delayed.
   *
   * @param {string} channel
   * @param {any} data
   */
  publishEphemeral(channel, data) {
    return this.#command("publish", { channel, data, ephemeral: true });
  }

  /**
   * @param {string} channel
   * @param {HistoryQuery} query
   * @returns {Promise<{publications: Publication[], epoch: string, offset: number}>}
   */
  async history(channel, query) {
    const result = await this.#command("history", { channel, ...query });
    return { publications: result.publications ?? [], epoch: result.epoch ?? "", offset: result.offset ?? 0 };
  }

  /**
   * @param {string} channel
   * @returns {Promise<Record<string, ClientInfo>>} By client id.
   */
  async presence(channel) {
    return (await this.#command("presence", { channel })).presence ?? {};
  }

  // One attempt: token, socket, first frame, reply.

  async #attempt() {
    this.#clearTimers();
    const current = ++this.#current;
    this.#setState({ phase: "connecting" });
    this.#timers.connect = setTimeout(
      () => this.#lost({ code: Code.TIMEOUT, reason: "the server didn't answer in time", reconnect: true }),
      CONNECT_TIMEOUT_MS,
    );
    if (this.#token === null) {
      try {
        const token = await this.#getToken();
        if (current !== this.#current) return;
        this.#token = token;
      } catch (error) {
        if (current === this.#current) this.#lost(tokenVerdict(error));
        return;
      }
    }
    const socket = new this.#websocket(this.#url);
    this.#socket = socket;
    socket.onopen = () => {
      if (current === this.#current) this.#open();
    };
    socket.onmessage = (event) => {
      if (current === this.#current) this.#receive(String(event.data));
    };
    socket.onclose = (event) => {
      if (current === this.#current) this.#lost(closeVerdict(event.code, event.reason));
    };
  }

  #open() {
    const connect = this.#prepare("connect", { token: this.#token, name: "capegate-page" }, {
      resolve: (result) => this.#connected(result),
      reject: (error) => this.#refused(error),
    });
    this.#opened = true;
    const subscribes = [...this.#subscriptions.values()].map((subscription) => this.#subscribeCommand(subscription));
    this.#send([connect, ...subscribes]);
  }

  /** @param {any} result */
  #connected(result) {
    clearTimeout(this.#timers.connect);
    this.#pongs = result.pong === true;
    if (result.ping > 0) this.#watch(result.ping * 1000 + PING_SLACK_MS);
    this.#scheduleRefresh(result);
    this.#timers.stable = setTimeout(() => {
      this.#failures = 0;
    }, STABLE_MS);
    this.#setState({ phase: "connected" });
  }

  /** @param {GatewayError} error */
  #refused(error) {
    // Lost with the socket: that has its own verdict.
    if (error.code === Code.NOT_CONNECTED) return;
    const reconnect = error.temporary || error.code === Code.TOKEN_EXPIRED;
    this.#lost({ code: error.code, reason: error.message, reconnect });
  }

  /** @param {Verdict} verdict */
  #lost(verdict) {
    this.#clearTimers();
    this.#current += 1;
    const socket = this.#socket;
    this.#socket = null;
    this.#opened = false;
    if (socket) socket.close();
    if (TOKEN_SPENT.has(verdict.code)) this.#token = null;
    for (const subscription of this.#subscriptions.values()) {
      subscription.subscribed = false;
      clearTimeout(subscription.timer);
    }
    if (verdict.reconnect) {
      const delay = verdict.retry ?? backoffDelay(this.#failures, this.#random());
      this.#failures += 1;
      this.#timers.retry = setTimeout(() => this.#attempt(), Math.min(delay, TIMER_MAX_MS));
      this.#setState({ phase: "waiting", retryAt: this.#now() + delay, code: verdict.code, reason: verdict.reason });
    } else {
      this.#setState({ phase: "disconnected", code: verdict.code, reason: verdict.reason });
    }
    // After the state has changed, so that whoever is told "not connected" finds it so.
    const outstanding = [...this.#outstanding.values()];
    this.#outstanding.clear();
    for (const command of outstanding) {
      clearTimeout(command.timer);
      command.reject(new GatewayError(Code.NOT_CONNECTED, "the connection was lost", true));
    }
  }

  /** @param {number} silenceMs */
  #watch(silenceMs) {
    // One timer that looks at a timestamp: re-arming it for every message would cost more.
    const check = () => {
      const left = this.#lastSeen + silenceMs - this.#now();
      if (left > 0) {
        this.#timers.watch = setTimeout(check, left);
        return;
      }
      this.#lost({ code: Code.NO_PING, reason: "nothing heard from the server", reconnect: true });
    };
    this.#timers.watch = setTimeout(check, silenceMs);
  }

  /** @param {{expires?: boolean, ttl?: number}} result */
  #scheduleRefresh({ expires, ttl = 0 }) {
    clearTimeout(this.#timers.refresh);
    if (!expires) return;
    // A little early, so that the answer is there before the server's clock runs out.
    const delay = Math.max(1, ttl - Math.min(10, ttl / 10)) * 1000;
    this.#timers.refresh = setTimeout(() => this.#refresh(), Math.min(delay, TIMER_MAX_MS));
  }

  async #refresh() {
    const current = this.#current;
    try {
      const token = await this.#getToken();
      if (current !== this.#current) return;
      this.#token = token;
      const result = await this.#command("refresh", { token });
      if (current === this.#current) this.#scheduleRefresh(result);
    } catch {
      // The server closes an expired connection as it sees fit; the next connect then asks for a
      // new token, and shows why there is none.
      if (current === this.#current) this.#token = null;
    }
  }

  // What arrives.

  /** @param {string} frame */
  #receive(frame) {
    this.#lastSeen = this.#now();
    const current = this.#current;
    for (const line of frame.split("\n")) {
      if (line.trim() === "") continue;
      this.#handle(JSON.parse(line));
      // One of them may have ended this connection.
      if (current !== this.#current) return;
    }
  }

  /** @param {any} message */
  #handle(message) {
    if (message.id) this.#reply(message);
    else if (message.push) this.#push(message.push);
    else if (this.#pongs) this.#socket?.send("{}");
  }

  /** @param {any} reply */
  #reply(reply) {
    const command = this.#outstanding.get(reply.id);
    if (!command) return;
    this.#outstanding.delete(reply.id);
    clearTimeout(command.timer);
    const { id, error, ...results } = reply;
    if (error) command.reject(new GatewayError(error.code, error.message, error.temporary === true));
    else command.resolve(Object.values(results)[0] ?? {});
  }

  /** @param {any} push */
  #push(push) {
    const subscription = this.#subscriptions.get(push.channel);
    // Pushes may still be under way for a channel that was just left.
    if (!subscription?.subscribed) return;
    if (push.pub) this.#publication(subscription, push.pub);
    else if (push.join) subscription.handlers.onJoin?.(push.join.info);
    else if (push.leave) subscription.handlers.onLeave?.(push.leave.info);
    else if (push.unsubscribe) this.#unsubscribed(subscription, push.unsubscribe);
  }

  /**
   * @param {Subscription} subscription
   * @param {Publication} publication
   */
  #publication(subscription, publication) {
    const { position } = subscription;
    if (publication.offset && position) {
      if (publication.offset <= position.offset) return;
      if (publication.offset > position.offset + 1) {
        this.#resubscribe(subscription);
        return;
      }
      position.offset = publication.offset;
    }
    subscription.handlers.onPublication?.(publication);
  }

  // Subscriptions.

  /** @param {Subscription} subscription */
  #subscribeCommand(subscription) {
    const live = () => this.#subscriptions.get(subscription.channel) === subscription;
    return this.#prepare("subscribe", subscription.request(), {
      resolve: (result) => {
        if (live()) this.#subscribed(subscription, result);
      },
      reject: (error) => {
        // Without a connection there is nothing to retry: the next first frame subscribes again.
        if (!live() || error.code === Code.NOT_CONNECTED) return;
        if (error.code === Code.TIMEOUT) this.#resubscribe(subscription);
        else if (error.temporary) this.#subscribeLater(subscription);
        else this.#end(subscription, error);
      },
    });
  }

  /**
   * @param {Subscription} subscription
   * @param {any} result
   */
  #subscribed(subscription, result) {
    const { epoch = "", offset = 0, publications = [], gap } = result;
    const wasRecovering = subscription.position !== null;
    const recovered = result.recovered === true;
    subscription.subscribed = true;
    subscription.failures = 0;
    if (!wasRecovering || !recovered) {
      subscription.position = result.recoverable ? { epoch, offset } : null;
    }
    subscription.handlers.onSubscribed?.({ wasRecovering, recovered, gap, epoch, offset });
    for (const publication of publications) {
      if (!subscription.subscribed) return;
      this.#publication(subscription, publication);
    }
  }

  /**
   * @param {Subscription} subscription
   * @param {{code: number, reason: string}} push
   */
  #unsubscribed(subscription, { code, reason }) {
    subscription.subscribed = false;
    if (code >= UNSUBSCRIBED_FOR_NOW) this.#subscribeLater(subscription);
    else this.#end(subscription, new GatewayError(code, reason, false));
  }

  /**
   * Starts over where it isn't known whether, or how well, the server has this client subscribed.
   *
   * @param {Subscription} subscription
   */
  #resubscribe(subscription) {
    subscription.subscribed = false;
    this.#command("unsubscribe", { channel: subscription.channel }).catch(() => {});
    this.#subscribeLater(subscription);
  }

  /** @param {Subscription} subscription */
  #subscribeLater(subscription) {
    const delay = backoffDelay(subscription.failures, this.#random());
    subscription.failures += 1;
    clearTimeout(subscription.timer);
    subscription.timer = setTimeout(() => {
      if (this.#opened) this.#send([this.#subscribeCommand(subscription)]);
    }, delay);
  }

  /**
   * @param {Subscription} subscription
   * @param {GatewayError} error
   */
  #end(subscription, error) {
    this.#subscriptions.delete(subscription.channel);
    subscription.handlers.onEnded?.(error);
  }

  // Commands.

  /**
   * @param {string} method
   * @param {object} params
   * @param {number} [timeoutMs]
   * @returns {Promise<any>}
   */
  #command(method, params, timeoutMs = COMMAND_TIMEOUT_MS) {
    if (this.state.phase !== "connected") {
      return Promise.reject(new GatewayError(Code.NOT_CONNECTED, "not connected", true));
    }
    return new Promise((resolve, reject) => {
      this.#send([this.#prepare(method, params, { resolve, reject }, timeoutMs)]);
    });
  }

  /**
   * Numbers a command and expects its reply.
   *
   * @param {string} method
   * @param {object} params
   * @param {{resolve: (result: any) => void, reject: (error: GatewayError) => void}} waiter
   * @param {number} [timeoutMs]
   * @returns {string} The command as it goes on the wire.
   */
  #prepare(method, params, { resolve, reject }, timeoutMs = COMMAND_TIMEOUT_MS) {
    const id = this.#nextId++;
    const timer = setTimeout(() => {
      this.#outstanding.delete(id);
      reject(new GatewayError(Code.TIMEOUT, "the server didn't answer in time", true));
    }, timeoutMs);
    this.#outstanding.set(id, { resolve, reject, timer });
    return JSON.stringify({ id, [method]: params });
  }

  /** @param {string[]} commands */
  #send(commands) {
    this.#socket?.send(commands.join("\n"));
  }

  /** @param {Partial<ConnectionState> & {phase: Phase}} state */
  #setState(state) {
    this.state = { attempt: this.#failures, ...state };
    this.#onState(this.state);
  }

  #clearTimers() {
    for (const timer of Object.values(this.#timers)) clearTimeout(timer);
  }
}

/**
 * @param {unknown} error
 * @returns {Verdict}
 */
function tokenVerdict(error) {
  if (error instanceof GatewayError) {
    return { code: error.code, reason: error.message, reconnect: error.temporary };
  }
  return { code: Code.TOKEN_UNAVAILABLE, reason: "the server can't be reached", reconnect: true };
}
