// @ts-check
/**
 * A client of the gateway's channel protocol (Centrifuge JSON over one WebSocket). No DOM.
 *
 * Theory of operation. A `Gateway` is in one of five phases:
 *
 *     disconnected ──connect()──▶ connecting ──reply──▶ connected ──line lost──▶ resuming
 *          ▲                        │    ▲               │     ▲                   │
 *          │ final close or error   │    │ timer or      │     └──── line back ────┤
 *          └────────────────────────┤    │ retryNow()    │ connection lost         │
 *                                   ▼    │               ▼                         │
 *                                   waiting ◀────────────┴─────────────────────────┘
 *
 * Every attempt to connect has a number, and whatever arrives for an attempt that is over is
 * dropped, so that a late event can never disturb the present socket. Subscriptions outlive
 * sockets: each remembers the position (epoch and offset) of the last publication that it handed
 * over, asks for everything after it when it is subscribed again, and hands over each offset once
 * and in order. A hole makes it subscribe again from the last good position.
 *
 * `connect` and all `subscribe` commands leave in the first frame, so that coming back costs one
 * round trip.
 *
 * The socket may be more than a plain one: a `ResumableWebSocket` gets itself another line when its
 * own is lost, and says so (`state`, `statechange`). Then the connection lives on meanwhile
 * (`alive`): nothing is subscribed again, commands are taken and carried out when the line is back,
 * and no time runs against the server. The phase is `waiting` or `resuming`, like the line's state.
 */

import { Commands } from "./commands.js";
import { Code, GatewayError } from "./errors.js";
import { backoffDelay, closeVerdict, tokenVerdict } from "./verdict.js";

/**
 * @typedef {{user: string, client: string, conn_info?: any, chan_info?: any}} ClientInfo
 *
 * @typedef {object} Publication
 * @property {any} data
 * @property {number} [offset] Absent on ephemeral publications.
 * @property {number} [time] Milliseconds since 1970.
 * @property {ClientInfo} [info] Absent when the server's API published it.
 *
 * @typedef {"disconnected" | "connecting" | "connected" | "resuming" | "waiting"} Phase
 *
 * @typedef {object} ConnectionState
 * @property {Phase} phase
 * @property {boolean} alive Whether commands are taken: they are carried out now, or when the line
 *   is back.
 * @property {number} attempt Failed attempts in a row, without those of the line.
 * @property {number} [since] When it ceased to be connected, in milliseconds since 1970.
 * @property {number | null} [retryAt] When the next attempt starts, in milliseconds since 1970
 *   (waiting); null when that depends on something else than time.
 * @property {boolean} promised The moment of that attempt was given by the server, and it is no use
 *   to come earlier.
 * @property {boolean} silent It looks connected, but the server hasn't answered for a while.
 * @property {number | null} rtt Round trip in milliseconds, as last measured.
 * @property {LineStatus["quality"]} quality Of the line.
 * @property {number} [code] Why it isn't connected.
 * @property {string} [reason] The same in words.
 *
 * @typedef {import("../../clients/js/src/index.js").LineStatus} LineStatus
 * @typedef {WebSocket & LineStatus & {retryNow(): boolean}} Line A socket that is more than a plain one.
 * @typedef {WebSocket & Partial<Line> & {onstatechange?: (() => void) | null}} Socket
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

/** After these the next attempt needs another token. @type {ReadonlySet<number>} */
const TOKEN_SPENT = new Set([Code.TOKEN_EXPIRED, Code.CONNECTION_EXPIRED, Code.INVALID_TOKEN]);

/** Unsubscribe codes from here on ask the client to subscribe again. */
const UNSUBSCRIBED_FOR_NOW = 2500;

const CONNECT_TIMEOUT_MS = 10_000;
const PROBE_TIMEOUT_MS = 4_000;
/** So long a question may go unanswered, and nothing else be heard, before that is shown. */
const PATIENCE_MS = 4_000;
/** A check that comes so much too late means that this page was asleep, not the server. */
const ASLEEP_MS = 1_000;
/** What arrived during the sleep is heard within this time. */
const AWAKE_GRACE_MS = 2_000;
/** A new token that can't be had just now is asked for again. */
const REFRESH_RETRY_MS = 5_000;
/** Added to the server's ping interval before silence counts as loss; as in the stock SDKs. */
const PING_SLACK_MS = 10_000;
/** A connection that lasted this long ends a series of failures; shorter ones continue it. */
const STABLE_MS = 10_000;
/** setTimeout's limit. */
const TIMER_MAX_MS = 2 ** 31 - 1;

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
  state = { phase: "disconnected", alive: false, attempt: 0, promised: false, silent: false, rtt: null, quality: null };

  #url;
  #getToken;
  #onState;
  #websocket;
  #random;
  #now;

  /** @type {string | null} */
  #token = null;
  /** @type {Socket | null} */
  #socket = null;
  /** Numbers attempts; whatever belongs to an earlier one is stale. */
  #current = 0;
  /** Whether the first frame of this socket has left. */
  #opened = false;
  /** Whether the server has accepted it. */
  #alive = false;
  #failures = 0;
  #pongs = false;
  #lastSeen = 0;
  #silent = false;
  #promised = false;
  /** What the present trouble began with. @type {{code: number, reason: string} | null} */
  #cause = null;
  #commands = new Commands();
  /** @type {Map<string, Subscription>} */
  #subscriptions = new Map();
  /** @type {Partial<Record<"retry" | "connect" | "watch" | "patience" | "stable" | "refresh", ReturnType<typeof setTimeout>>>} */
  #timers = {};

  /**
   * @param {string} url
   * @param {object} options
   * @param {() => Promise<string>} options.getToken Called for the first connect and whenever the
   *   token has expired. To end the attempts, reject with a GatewayError that isn't temporary.
   * @param {(state: ConnectionState) => void} [options.onState]
   * @param {new (url: string) => any} [options.websocket] Anything with the browser's interface.
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

  /** Starts. Without effect unless disconnected or waiting. */
  connect() {
    if (this.#socket || this.state.phase === "connecting") return;
    this.#failures = 0;
    this.#cause = null;
    this.#attempt();
  }

  /** Doesn't wait any longer for the next attempt, unless the server has given its moment. */
  retryNow() {
    if (this.state.phase !== "waiting") return;
    const line = this.#line;
    if (!line) this.#attempt();
    else if (!line.retryNow()) {
      this.#promised = true;
      this.#setState(this.state);
    }
  }

  /** Ends for good, until `connect()`. */
  disconnect() {
    this.#lost({ code: Code.CLOSED_HERE, reason: "closed by this page", reconnect: false });
  }

  /**
   * Finds out soon whether a connection that looks open still is: for when the device was asleep or
   * its network changed. A wait for the next attempt is cut short. A line that comes back by itself
   * is left to do so.
   *
   * @param {number} [patienceMs] So soon it is shown that there is no answer.
   */
  probe(patienceMs = PATIENCE_MS) {
    if (!this.#line) this.retryNow();
    if (this.state.phase !== "connected") return;
    const current = this.#current;
    this.#listen(patienceMs);
    this.#command("ping", {}, PROBE_TIMEOUT_MS).catch((error) => {
      if (error.code !== Code.TIMEOUT || current !== this.#current || this.#line) return;
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
    // Kept until the line is back, it would be news of yesterday.
    if (this.state.phase !== "connected") return Promise.reject(notConnected());
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
    this.#expectConnection();
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
    /** @type {Socket} */
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
    socket.onstatechange = () => {
      if (current === this.#current) this.#lineChanged();
    };
  }

  #open() {
    const connect = this.#commands.prepare("connect", { token: this.#token, name: "capegate-page" }, {
      resolve: (result) => this.#connected(result),
      reject: (error) => this.#refused(error),
    });
    this.#opened = true;
    const subscribes = [...this.#subscriptions.values()].map((subscription) => this.#subscribeCommand(subscription));
    this.#send([connect, ...subscribes]);
  }

  /** @param {any} result */
  #connected(result) {
    this.#stopTimer("connect");
    this.#alive = true;
    this.#pongs = result.pong === true;
    if (result.ping > 0) this.#watch(result.ping * 1000 + PING_SLACK_MS);
    this.#scheduleRefresh(result);
    this.#timers.stable = setTimeout(() => {
      this.#failures = 0;
    }, STABLE_MS);
    this.#setState({ phase: "connected" });
  }

  #expectConnection() {
    this.#timers.connect ??= setTimeout(
      () => this.#lost({ code: Code.TIMEOUT, reason: "the server didn't answer in time", reconnect: true }),
      CONNECT_TIMEOUT_MS,
    );
  }

  /** The socket, if it comes back by itself. */
  get #line() {
    const socket = this.#socket;
    return socket && "retryNow" in socket ? /** @type {Line} */ (socket) : null;
  }

  #lineChanged() {
    const line = this.#line;
    // Its close comes next.
    if (!line || line.state === "closed") return;
    if (line.error) this.#blame(closeVerdict(line.error.code, line.error.reason));
    const isAway = line.state === "waiting" || line.state === "resuming";
    if (isAway) {
      this.#commands.pause();
      this.#stopTimer("patience");
      this.#silent = false;
    } else {
      this.#commands.resume();
    }
    if (line.state !== "waiting") this.#promised = false;
    if (this.#alive) {
      this.#setState({ phase: line.state, retryAt: line.retryAt });
    } else if (line.state === "waiting") {
      this.#stopTimer("connect");
      this.#setState({ phase: "waiting", retryAt: line.retryAt });
    } else {
      this.#expectConnection();
      this.#setState({ phase: "connecting" });
    }
  }

  /** @param {GatewayError} error */
  #refused(error) {
    // Lost with the socket: that has its own verdict.
    if (error.code === Code.NOT_CONNECTED) return;
    const reconnect = error.temporary || error.code === Code.TOKEN_EXPIRED;
    this.#lost({ code: error.code, reason: error.message, reconnect });
  }

  /** @param {import("./verdict.js").Verdict} verdict */
  #lost(verdict) {
    this.#clearTimers();
    this.#current += 1;
    const socket = this.#socket;
    this.#socket = null;
    this.#opened = this.#alive = this.#silent = this.#promised = false;
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
      this.#blame(verdict);
      this.#setState({ phase: "waiting", retryAt: this.#now() + delay });
    } else {
      this.#cause = verdict;
      this.#setState({ phase: "disconnected" });
    }
    // After the state has changed, so that whoever is told "not connected" finds it so.
    this.#commands.fail(notConnected());
  }

  /**
   * Remembers why it isn't connected. That the line broke, or that nobody is there to connect to,
   * says less than what was known before.
   *
   * @param {{code: number, reason: string}} cause
   */
  #blame({ code, reason }) {
    if (this.#cause === null || code !== Code.LOST) this.#cause = { code, reason };
  }

  /** @param {number} silenceMs */
  #watch(silenceMs) {
    let due = 0;
    let spared = false;
    // One timer that looks at a timestamp: re-arming it for every message would cost more.
    const checkIn = (/** @type {number} */ delay) => {
      due = this.#now() + delay;
      this.#timers.watch = setTimeout(check, delay);
    };
    const check = () => {
      const now = this.#now();
      const left = this.#lastSeen + silenceMs - now;
      const wasAsleep = now - due > ASLEEP_MS;
      if (left <= 0 && (spared || !wasAsleep)) {
        this.#lost({ code: Code.NO_PING, reason: "nothing heard from the server", reconnect: true });
        return;
      }
      spared = left <= 0;
      checkIn(spared ? AWAKE_GRACE_MS : left);
    };
    checkIn(silenceMs);
  }

  /**
   * A question is being asked.
   *
   * @param {number} patienceMs
   */
  #listen(patienceMs) {
    if (this.state.phase !== "connected") return;
    this.#timers.patience ??= setTimeout(() => {
      this.#silent = true;
      this.#setState({ phase: "connected" });
    }, patienceMs);
  }

  #heard() {
    this.#stopTimer("patience");
    if (!this.#silent) return;
    this.#silent = false;
    this.#setState({ phase: this.state.phase });
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
    } catch (error) {
      if (current !== this.#current) return;
      // The server closes an expired connection as it sees fit; the next connect then asks for a
      // new token, and shows why there is none.
      this.#token = null;
      if (tokenVerdict(error).reconnect) {
        this.#timers.refresh = setTimeout(() => this.#refresh(), REFRESH_RETRY_MS);
      }
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
    // A ping may be the line's own, made to keep watchdogs quiet: it answers nothing.
    if (message.id || message.push) this.#heard();
    if (message.id) this.#commands.answer(message);
    else if (message.push) this.#push(message.push);
    else if (this.#pongs) this.#socket?.send("{}");
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
    return this.#commands.prepare("subscribe", subscription.request(), {
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
  #command(method, params, timeoutMs) {
    if (!this.#alive) return Promise.reject(notConnected());
    return new Promise((resolve, reject) => {
      this.#send([this.#commands.prepare(method, params, { resolve, reject }, timeoutMs)]);
    });
  }

  /** @param {string[]} commands */
  #send(commands) {
    this.#socket?.send(commands.join("\n"));
    this.#listen(PATIENCE_MS);
  }

  /** @param {{phase: Phase, retryAt?: number | null}} state */
  #setState({ phase, retryAt }) {
    const line = this.#line;
    if (phase === "connected") this.#cause = null;
    const since = phase === "connected" ? undefined : (this.state.since ?? this.#now());
    this.state = {
      phase,
      alive: this.#alive,
      attempt: this.#failures,
      since,
      retryAt,
      promised: this.#promised,
      silent: this.#silent,
      rtt: line?.rtt ?? null,
      quality: line?.quality ?? null,
      code: this.#cause?.code,
      reason: this.#cause?.reason,
    };
    this.#onState(this.state);
  }

  /** @param {"connect" | "patience"} name */
  #stopTimer(name) {
    clearTimeout(this.#timers[name]);
    delete this.#timers[name];
  }

  #clearTimers() {
    for (const timer of Object.values(this.#timers)) clearTimeout(timer);
    this.#timers = {};
  }
}

const notConnected = () => new GatewayError(Code.NOT_CONNECTED, "there is no connection", true);
