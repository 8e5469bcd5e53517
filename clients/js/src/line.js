// @ts-check
/**
 * A client's line to the server: one session over as many sockets, one after another, as it takes.
 * It neither waits nor looks at the clock nor holds a socket: what happens goes in together with
 * the time, actions come out (`take`), and `deadline` says when `tick` is due at the latest.
 *
 * Theory of operation. The layer above sees one socket, which opens once and closes once. Below,
 * the *serving* socket carries the session. When it is lost in a way that leaves the session
 * alive, a *candidate* is opened, at the moment that the server has given or else by the declared
 * backoff, and asks to resume; when the server says so, the candidate serves, and what either side
 * doesn't have is sent again. A candidate may be opened while the old socket still serves (the
 * server moves its clients, the network has changed); then nobody waits for anything.
 *
 *     connecting ──ready──▶ connected ──lose──▶ waiting
 *       │    ▲                  ▲               │     ▲
 *     wait  open              ready          resume  lose
 *       ▼    │                  │               ▼     │
 *      waiting                  └───────────── resuming
 *
 * and from each of them to `closed`, which is the end. TRANSITIONS has them all.
 *
 * Numbers that must not go wrong:
 *
 * - An attempt has a number, which the server compares to tell stragglers. It grows with each socket
 *   and starts again only after a connection of `stable` ms, measured from when this side heard of
 *   it, so never before the server would.
 * - The layer above has a watchdog of its own, which expects a ping each `ping` ms, with
 *   SILENCE_SLACK added. While the session lives it gets one, whether or not the line is up.
 */

import { RETRY_MAX, backoffDelay, closeVerdict } from "./backoff.js";
import { LEAVE, PREFIX, ProtocolError, ackFrame, openFrame, pongFrame, readServerFrame, resumeFrame } from "./frames.js";
import { Session } from "./session.js";

/**
 * @typedef {import("./backoff.js").Backoff} Backoff
 * @typedef {import("./backoff.js").Verdict} Verdict
 * @typedef {import("./frames.js").Quality} Quality
 * @typedef {import("./frames.js").Opened} Opened
 * @typedef {import("./frames.js").Resumed} Resumed
 *
 * @typedef {"connecting" | "connected" | "waiting" | "resuming" | "closed"} LineState
 * @typedef {"wait" | "open" | "ready" | "lose" | "resume" | "end"} LineEvent
 *
 * @typedef {{code: number, reason: string}} LineError
 *
 * @typedef {{type: "connect", socket: number, plain: boolean}} Connect Open a socket.
 * @typedef {{type: "adopt", socket: number}} Adopt Take the one that was parked.
 * @typedef {{type: "send", socket: number, data: any}} Send
 * @typedef {{type: "drop", socket: number, code: number, reason: string}} Drop Close it, and hear nothing of it any more.
 * @typedef {{type: "park", socket: number}} Park Keep it for the next line.
 * @typedef {{type: "open"}} Open Tell the layer above; likewise the next two.
 * @typedef {{type: "message", data: any}} Message
 * @typedef {{type: "close", code: number, reason: string, wasClean: boolean}} Close
 * @typedef {{type: "change"}} Change What the line tells about itself is another.
 * @typedef {Connect | Adopt | Send | Drop | Park | Open | Message | Close | Change} Action
 *
 * @typedef {object} Memory What lines to one URL leave to the next. Times are those of the lines' clock.
 * @property {number} notBefore The server doesn't want to see this client earlier.
 * @property {number} plainUntil The server is one without sessions.
 * @property {number} attempts Since the last connection that was stable.
 */

/** @type {Readonly<Record<LineState, Partial<Record<LineEvent, LineState>>>>} */
export const TRANSITIONS = Object.freeze({
  connecting: { wait: "waiting", ready: "connected", end: "closed" },
  waiting: { open: "connecting", resume: "resuming", end: "closed" },
  resuming: { ready: "connected", lose: "waiting", end: "closed" },
  connected: { lose: "waiting", end: "closed" },
  closed: {},
});

/** So much longer than a ping's interval may nothing be heard; as in the stock SDKs. */
const SILENCE_SLACK = 10_000;
/** So much later than due the layer above gets a ping, when none came from the server. */
const PING_SLACK = 5_000;
/** A deadline noticed so late means that this side was asleep or stalled, not the other. */
const STALL = 1_000;
/** What arrived during a stall is heard within this time. */
const STALL_GRACE = 2_000;
/** So much later than the server notices a loss at the latest: its ping's deadline, twice, and room. */
const GIVE_UP_SLACK = 30_000;
/** How long a server without sessions isn't asked again. */
const PLAIN_MEMORY = 600_000;

/** To close a socket with when the session is to live on. */
const SOCKET_ONLY = Object.freeze({ code: 3012, reason: "resuming" });
const PROTOCOL_ERROR = 3501;
const NORMAL = 1000;
const NO_STATUS = 1005;
const ABNORMAL = 1006;

/** @returns {Memory} */
export function emptyMemory() {
  return { notBefore: 0, plainUntil: 0, attempts: 0 };
}

export class Line {
  /** @type {LineState} */
  state = "connecting";
  /** @type {number | null} */
  rtt = null;
  /** @type {Quality | null} */
  quality = null;
  /** @type {LineError | null} */
  error = null;

  #memory;
  #backoff;
  #random;
  /** @type {Action[]} */
  #actions = [];
  #plain;
  /** @type {Session} */
  #session;
  /** Of the server's; empty before the session has begun. */
  #token = "";
  #ping = 0;
  #retain = 0;
  #stable = 0;

  #lastSocket = 0;
  /** @type {number | null} */
  #serving = null;
  /** Whether that one is open. */
  #isOpen = false;
  /** @type {number | null} */
  #candidate = null;
  /** Whether the layer above knows that it is open. */
  #told = false;
  /** Whether the serving socket is one that an earlier line left. */
  #adopted = false;
  /** Whether the candidate has asked to resume, and waits. */
  #isAsking = false;
  /** Requests to resume without an answer. Each may still arrive, and evict a later socket. */
  #unanswered = 0;

  #attempts;
  /**
   * Since when there is a connection without any attempt at another, which the server might have
   * accepted without this side hearing of it.
   *
   * @type {number | null}
   */
  #steadySince = null;
  /** @type {number | null} When `open` or `resume` was sent. */
  #spokeAt = null;
  /** @type {number | null} When the next socket is opened. */
  #retryAt = null;
  /** Whether that moment is the server's. */
  #isSlot = false;
  /** @type {number | null} By when a candidate must have resumed. */
  #resumeBy = null;
  #heardAt = 0;
  /** @type {number | null} When silence counts as loss. */
  #silentAt = null;
  /** @type {number | null} When the layer above gets a ping that nobody sent. */
  #pingAboveAt = null;
  /** @type {number | null} When the session can't be there any more. */
  #overAt = null;
  #offline = false;
  #suspended = false;

  /**
   * @param {object} options
   * @param {Readonly<Backoff>} options.backoff
   * @param {number} options.unackedBytesMax
   * @param {() => number} options.random
   * @param {Memory} options.memory
   * @param {boolean} [options.plain] Without a session from the start.
   */
  constructor({ backoff, unackedBytesMax, random, memory, plain = false }) {
    this.#backoff = backoff;
    this.#random = random;
    this.#memory = memory;
    this.#plain = plain;
    this.#attempts = memory.attempts;
    this.#session = new Session(unackedBytesMax);
  }

  /** What is to be done since the last call, in this order. */
  take() {
    const actions = this.#actions;
    this.#actions = [];
    return actions;
  }

  /** When `tick` is due, if nothing happens before. */
  get deadline() {
    return Math.min(
      this.#attemptAt ?? Infinity,
      this.#resumeBy ?? Infinity,
      this.#silentAt ?? Infinity,
      this.#pingAboveAt ?? Infinity,
      this.#endAt ?? Infinity,
    );
  }

  /** While waiting: when the next attempt starts; null when that depends on other things. */
  get retryAt() {
    return this.state === "waiting" ? this.#attemptAt : null;
  }

  /** Whether there is a plain socket below, not a session. */
  get plain() {
    return this.#plain;
  }

  /** Bytes that the server hasn't acknowledged. */
  get unackedBytes() {
    return this.#session.unackedBytes;
  }

  /** While a candidate is under way it isn't over. */
  get #endAt() {
    return this.#candidate === null ? this.#overAt : null;
  }

  get #attemptAt() {
    return this.#held ? null : this.#retryAt;
  }

  /** No attempt to resume is worth it now. A socket for a new session is opened in any case. */
  get #held() {
    return this.#suspended || (this.#offline && this.#token !== "");
  }

  // --- from the layer above -------------------------------------------------------------------------

  /**
   * @param {number} now
   * @param {boolean} parked Whether there is an open socket that an earlier line left.
   */
  start(now, parked) {
    if (this.state !== "connecting" || this.#serving !== null) return;
    if (now < this.#memory.plainUntil) this.#plain = true;
    if (parked && !this.#plain) {
      this.#adopted = true;
      this.#serving = ++this.#lastSocket;
      this.#actions.push({ type: "adopt", socket: this.#serving });
    } else if (now < this.#memory.notBefore) {
      this.#move("wait");
      this.#schedule(this.#memory.notBefore, true);
    } else {
      this.#connect();
    }
  }

  /**
   * Once open. In a session, text only.
   *
   * @param {any} data
   * @param {number} now
   */
  send(data, now) {
    if (this.state === "closed") return;
    if (this.#plain && this.#isOpen) {
      this.#actions.push({ type: "send", socket: /** @type {number} */ (this.#serving), data });
      return;
    }
    // The answer to a ping. Here the server has pings of the session's, which are answered below.
    if (data === "{}") return;
    if (!this.#session.send(data)) {
      this.#end(now, ABNORMAL, "too much that the server has not acknowledged");
    } else if (this.#serving !== null && this.#isOpen) {
      this.#actions.push({ type: "send", socket: this.#serving, data });
    }
  }

  /**
   * Ends the session now; nothing is kept for it.
   *
   * @param {number} now
   * @param {number} [code]
   * @param {string} [reason]
   */
  leave(now, code, reason = "") {
    if (this.state === "closed") return;
    if (this.#serving !== null && this.#token !== "") {
      this.#actions.push({ type: "send", socket: this.#serving, data: LEAVE });
    }
    const below = this.#plain && code !== undefined ? { code, reason } : { code: NORMAL, reason: "" };
    this.#dropAll(below);
    this.#close(now, { type: "close", code: code ?? NO_STATUS, reason, wasClean: true });
  }

  /**
   * Doesn't wait any longer, except for a moment that the server has given.
   *
   * @param {number} now
   * @returns {boolean} Whether an attempt starts.
   */
  retryNow(now) {
    if (this.state !== "waiting" || (this.#isSlot && now < (this.#retryAt ?? 0))) return false;
    this.#attempt(now);
    return true;
  }

  // --- from the device ------------------------------------------------------------------------------

  /** There is no network: attempts would only raise the next delay. */
  offline() {
    if (this.#offline) return;
    this.#offline = true;
    this.#changed();
  }

  /**
   * There is a network, maybe another one.
   *
   * @param {number} now
   */
  online(now) {
    const wasOffline = this.#offline;
    this.#offline = false;
    if (wasOffline && this.#candidate !== null) {
      this.#drop(this.#candidate);
      this.#candidateLost(now, closeVerdict(ABNORMAL, "the network has changed"));
    }
    if (this.state === "waiting" && !this.#isSlot) this.#schedule(now, false);
    // The socket may have survived or not: a new one is quicker than waiting for it to say so.
    else if (wasOffline) this.#renew(now);
    this.#changed();
    this.tick(now);
  }

  /**
   * The page is seen again, or the device awake.
   *
   * @param {number} now
   */
  wake(now) {
    if (this.#suspended) {
      this.#suspended = false;
      if (this.state === "waiting" && !this.#isSlot) this.#schedule(now, false);
      this.#changed();
    } else if (this.#ping > 0 && now - this.#heardAt > this.#ping + STALL) {
      this.#renew(now); // a ping is missing
    }
    this.tick(now);
  }

  /**
   * The page is frozen, maybe for ever: let the socket go, and keep the session until `wake`.
   *
   * @param {number} now
   */
  suspend(now) {
    if (this.state === "closed" || this.#suspended) return;
    this.#suspended = true;
    if (this.#candidate !== null) {
      this.#drop(this.#candidate);
      this.#candidateLost(now, closeVerdict(ABNORMAL, "the page was suspended"));
    }
    if (this.#serving !== null) {
      this.#drop(this.#serving);
      this.socketClosed(this.#serving, now, ABNORMAL, "the page was suspended");
    }
  }

  // --- from sockets ---------------------------------------------------------------------------------

  /**
   * @param {number} socket
   * @param {number} now
   */
  socketOpened(socket, now) {
    if (socket === this.#candidate) {
      this.#unanswered += 1;
      this.#isAsking = true;
      this.#spokeAt = now;
      const data = resumeFrame(this.#token, this.#session.ask(), this.#attempts);
      this.#actions.push({ type: "send", socket, data });
    } else if (socket === this.#serving) {
      this.#isOpen = true;
      if (this.#plain) {
        this.#move("ready");
        this.error = null;
      } else {
        this.#spokeAt = now;
        this.#actions.push({ type: "send", socket, data: openFrame(this.#backoff) });
      }
      if (!this.#told) {
        this.#told = true;
        this.#actions.push({ type: "open" });
      }
      // Behind an `open` that got no answer on an earlier socket. Nobody has processed them.
      for (const data of this.#session.unacked) this.#actions.push({ type: "send", socket, data });
      this.#changed();
    }
  }

  /**
   * @param {number} socket
   * @param {number} now
   * @param {any} data
   */
  socketMessage(socket, now, data) {
    try {
      if (socket === this.#candidate) this.#candidateMessage(now, data);
      else if (socket === this.#serving) this.#servingMessage(now, data);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.#dropAll({ code: PROTOCOL_ERROR, reason: "the session's counts do not agree" });
      this.#end(now, ABNORMAL, error.message);
    }
  }

  /**
   * @param {number} socket
   * @param {number} now
   * @param {number} code
   * @param {string} reason
   * @param {boolean} [wasClean]
   */
  socketClosed(socket, now, code, reason, wasClean = false) {
    const verdict = closeVerdict(code, reason);
    if (socket === this.#candidate) {
      if (wasClean) this.#refused();
      this.#candidateLost(now, verdict);
    } else if (socket === this.#serving) {
      this.#serving = null;
      if (this.#token !== "") this.#lost(now, verdict);
      else this.#notOpened(now, verdict, wasClean);
    }
  }

  // --- time -----------------------------------------------------------------------------------------

  /** @param {number} now */
  tick(now) {
    if (this.#candidate !== null && this.#resumeBy !== null && now >= this.#resumeBy) {
      this.#drop(this.#candidate);
      this.#candidateLost(now, closeVerdict(ABNORMAL, "the server did not answer in time"));
    }
    if (this.#serving !== null && this.#silentAt !== null && now >= this.#silentAt) this.#silent(now, this.#silentAt);
    const endAt = this.#endAt;
    if (endAt !== null && now >= endAt) {
      if (this.#isSlot) this.#memory.notBefore = Math.max(this.#memory.notBefore, this.#retryAt ?? 0);
      this.#end(now, ABNORMAL, "the session has expired");
    }
    const attemptAt = this.#attemptAt;
    if (attemptAt !== null && now >= attemptAt) this.#attempt(now);
    if (this.#pingAboveAt !== null && now >= this.#pingAboveAt) this.#pingAbove(now);
  }

  /**
   * @param {number} now
   * @param {number} due
   */
  #silent(now, due) {
    if (now - due >= STALL) {
      // Our own loop stood still. What came meanwhile is still to be heard.
      this.#silentAt = now + STALL_GRACE;
      return;
    }
    const socket = /** @type {number} */ (this.#serving);
    this.#drop(socket);
    this.socketClosed(socket, now, ABNORMAL, "the server is silent");
  }

  // --- the serving socket ---------------------------------------------------------------------------

  /**
   * @param {number} now
   * @param {any} data
   */
  #servingMessage(now, data) {
    if (this.#plain) {
      this.#actions.push({ type: "message", data });
      return;
    }
    if (typeof data !== "string") throw new ProtocolError("a binary message in a session");
    this.#hear(now);
    if (data.startsWith(PREFIX)) {
      this.#handle(now, readServerFrame(data));
    } else if (this.#token === "") {
      // No session frame comes behind a payload frame: this server doesn't know sessions.
      this.#memory.plainUntil = now + PLAIN_MEMORY;
      this.#plain = true;
      this.#move("ready");
      this.#silentAt = null;
      this.error = null;
      this.#changed();
      this.#actions.push({ type: "message", data });
    } else if (this.#session.receive(data)) {
      this.#pingAboveAt = this.#ping > 0 ? now + this.#ping + PING_SLACK : null;
      this.#actions.push({ type: "message", data });
      if (this.#session.ackDue && this.#serving !== null) {
        this.#actions.push({ type: "send", socket: this.#serving, data: ackFrame(this.#session.say()) });
      }
    }
  }

  /**
   * @param {number} now
   * @param {import("./frames.js").ServerFrame} frame
   */
  #handle(now, frame) {
    const begun = this.#token !== "";
    if (frame.type === "unknown") return;
    if (frame.type === "opened" && !begun) {
      this.#opened(now, frame);
    } else if (frame.type === "ack" && begun) {
      this.#session.acknowledge(frame.received);
    } else if (frame.type === "ping" && begun) {
      this.#session.compare(frame);
      const data = pongFrame(this.#session.say(), this.#session.sent);
      this.#actions.push({ type: "send", socket: /** @type {number} */ (this.#serving), data });
      if (frame.rtt > 0) this.rtt = frame.rtt;
      this.quality = frame.quality;
      this.#retain = frame.retain ?? this.#retain;
      this.#pingAbove(now);
      this.#changed();
    } else if (frame.type === "move" && begun) {
      if (this.#candidate === null) this.#schedule(now + Math.min(frame.retry, RETRY_MAX), true);
    } else if (frame.type === "gone" && begun) {
      this.#gone(now, frame.reason);
    } else {
      throw new ProtocolError(`"${frame.type}" out of place`);
    }
  }

  /**
   * @param {number} now
   * @param {Opened} frame
   */
  #opened(now, frame) {
    this.#token = frame.token;
    this.#ping = frame.ping;
    this.#retain = frame.retain;
    this.#serve(now, frame.stable);
  }

  /**
   * A socket begins to serve.
   *
   * @param {number} now
   * @param {number} stable
   */
  #serve(now, stable) {
    this.#stable = stable;
    this.#steadySince = now;
    this.#overAt = null;
    this.#adopted = false;
    this.error = null;
    this.rtt = this.#spokeAt === null ? this.rtt : now - this.#spokeAt;
    this.#hear(now);
    this.#pingAboveAt ??= this.#ping > 0 ? now + this.#ping + PING_SLACK : null;
    if (this.state !== "connected") this.#move("ready");
    this.#changed();
  }

  /**
   * The server has evicted this socket, or ended the session.
   *
   * @param {number} now
   * @param {string} reason
   */
  #gone(now, reason) {
    const socket = /** @type {number} */ (this.#serving);
    if (reason === "fenced" && this.#unanswered > 0) {
      // By a request of our own: its answer is under way to the candidate, or was given up.
      if (this.#candidate === null) this.#unanswered -= 1;
      // The server compares the next attempt with that one.
      this.#steadySince = null;
      this.#drop(socket);
      this.socketClosed(socket, now, ABNORMAL, "evicted");
      return;
    }
    this.#end(now, ABNORMAL, `session gone: ${reason}`, socket);
  }

  /**
   * The session's socket is gone.
   *
   * @param {number} now
   * @param {Verdict} verdict
   */
  #lost(now, verdict) {
    // Before the first answer there is nothing that the server would keep.
    if (!verdict.resumable || this.#session.received === 0) {
      this.#remember(now, verdict);
      this.#end(now, verdict.code, verdict.reason);
      return;
    }
    this.#settle(now);
    this.#silentAt = null;
    this.#overAt = now + this.#retain + this.#ping + GIVE_UP_SLACK;
    this.error = { code: verdict.code, reason: verdict.reason };
    this.#move("lose");
    if (this.#candidate !== null) this.#move("resume");
    else this.#comeBack(now, verdict);
    this.#changed();
  }

  /**
   * The socket is gone before there was a session.
   *
   * @param {number} now
   * @param {Verdict} verdict
   * @param {boolean} wasClean
   */
  #notOpened(now, verdict, wasClean) {
    this.#silentAt = null;
    if (this.#plain) {
      this.#close(now, { type: "close", code: verdict.code, reason: verdict.reason, wasClean });
    } else if (this.#adopted) {
      // It had grown too old. Nobody has been told anything yet.
      this.#adopted = false;
      this.#connect();
    } else if (verdict.code === PROTOCOL_ERROR) {
      this.#memory.plainUntil = now + PLAIN_MEMORY;
      this.#plain = true;
      this.#connect();
    } else {
      this.#remember(now, verdict);
      this.#end(now, verdict.code, verdict.reason);
    }
  }

  // --- the candidate --------------------------------------------------------------------------------

  /**
   * @param {number} now
   * @param {any} data
   */
  #candidateMessage(now, data) {
    if (typeof data !== "string" || !data.startsWith(PREFIX)) {
      throw new ProtocolError("a payload frame before the session was resumed");
    }
    const frame = readServerFrame(data);
    const socket = /** @type {number} */ (this.#candidate);
    if (frame.type === "gone" || frame.type === "resumed") {
      this.#isAsking = false;
      this.#unanswered -= 1;
    }
    if (frame.type === "gone") {
      this.#candidate = null;
      this.#end(now, ABNORMAL, `session gone: ${frame.reason}`, socket);
    } else if (frame.type === "resumed") {
      this.#resumed(now, socket, frame);
    } else if (frame.type !== "unknown") {
      throw new ProtocolError(`"${frame.type}" out of place`);
    }
  }

  /**
   * @param {number} now
   * @param {number} socket
   * @param {Resumed} frame
   */
  #resumed(now, socket, frame) {
    const again = this.#session.resumed(frame.received);
    if (this.#serving !== null) this.#drop(this.#serving);
    this.#serving = socket;
    this.#isOpen = true;
    this.#candidate = null;
    this.#resumeBy = null;
    this.#retain = frame.retain;
    for (const data of again) this.#actions.push({ type: "send", socket, data });
    this.#serve(now, frame.stable);
  }

  /** The server has closed the candidate, and won't act on what that asked for. */
  #refused() {
    if (!this.#isAsking) return;
    this.#isAsking = false;
    this.#unanswered -= 1;
    this.#session.withdraw();
  }

  /**
   * @param {number} now
   * @param {Verdict} verdict
   */
  #candidateLost(now, verdict) {
    this.#candidate = null;
    this.#resumeBy = null;
    if (!verdict.resumable) {
      this.#end(now, verdict.code, verdict.reason);
      return;
    }
    if (this.#isAsking && this.#serving !== null) {
      // Nobody knows which of the two sockets the server takes for the session's.
      this.#drop(this.#serving);
      this.socketClosed(this.#serving, now, verdict.code, verdict.reason);
      return;
    }
    if (this.state === "resuming") this.#move("lose");
    if (this.state === "connected") this.#steadySince = now;
    this.error = { code: verdict.code, reason: verdict.reason };
    this.#comeBack(now, verdict);
    this.#changed();
  }

  // --- attempts -------------------------------------------------------------------------------------

  #connect() {
    this.#isOpen = false;
    this.#serving = ++this.#lastSocket;
    this.#actions.push({ type: "connect", socket: this.#serving, plain: this.#plain });
  }

  /** @param {number} now */
  #attempt(now) {
    this.#retryAt = null;
    this.#isSlot = false;
    if (this.#candidate !== null) return;
    if (this.#token === "") {
      this.#move("open");
      this.#connect();
    } else {
      this.#settle(now);
      this.#attempts += 1;
      this.#candidate = ++this.#lastSocket;
      this.#isAsking = false;
      this.#resumeBy = now + this.#backoff.timeout;
      this.#actions.push({ type: "connect", socket: this.#candidate, plain: false });
      if (this.state === "waiting") this.#move("resume");
    }
    this.#changed();
  }

  /**
   * A connection ends, or may: starts the count of attempts again, if it lasted.
   *
   * @param {number} now
   */
  #settle(now) {
    if (this.#steadySince !== null && now - this.#steadySince >= this.#stable) this.#attempts = 0;
    this.#steadySince = null;
  }

  /**
   * Opens another socket now, while this one serves.
   *
   * @param {number} now
   */
  #renew(now) {
    if (this.state === "connected" && !this.#plain && this.#candidate === null && this.#retryAt === null) {
      this.#schedule(now, false);
    }
  }

  /**
   * When to open the next socket, after one was lost.
   *
   * @param {number} now
   * @param {Verdict} verdict
   */
  #comeBack(now, { retry }) {
    if (retry !== null) {
      this.#schedule(now + retry, true);
      // The server keeps the session until the moment that it has given (and a while longer).
      if (this.#overAt !== null) this.#overAt = Math.max(this.#overAt, now + retry + GIVE_UP_SLACK);
    } else if (!this.#isSlot) {
      this.#schedule(now + backoffDelay(this.#backoff, this.#attempts, this.#random()), false);
    }
  }

  /**
   * @param {number} at
   * @param {boolean} isSlot
   */
  #schedule(at, isSlot) {
    this.#retryAt = at;
    this.#isSlot = isSlot;
  }

  /**
   * The next line, too, comes when the server has said.
   *
   * @param {number} now
   * @param {Verdict} verdict
   */
  #remember(now, { retry }) {
    if (retry !== null) this.#memory.notBefore = now + retry;
  }

  // --- small things ---------------------------------------------------------------------------------

  /** @param {number} now */
  #hear(now) {
    this.#heardAt = now;
    this.#silentAt = this.#ping > 0 ? now + this.#ping + SILENCE_SLACK : null;
  }

  /** @param {number} now */
  #pingAbove(now) {
    this.#pingAboveAt = this.#ping > 0 ? now + this.#ping + PING_SLACK : null;
    this.#actions.push({ type: "message", data: "{}" });
  }

  /** @param {number} socket */
  #drop(socket) {
    this.#actions.push({ type: "drop", socket, ...SOCKET_ONLY });
  }

  /** @param {{code: number, reason: string}} how */
  #dropAll(how) {
    for (const socket of [this.#serving, this.#candidate]) {
      if (socket !== null) this.#actions.push({ type: "drop", socket, ...how });
    }
    this.#serving = null;
    this.#candidate = null;
  }

  /**
   * The session is over, and not because the layer above wanted it.
   *
   * @param {number} now
   * @param {number} code
   * @param {string} reason
   * @param {number} [parked] A socket on which the server awaits the next session.
   */
  #end(now, code, reason, parked) {
    if (parked !== undefined) {
      if (this.#serving === parked) this.#serving = null;
      this.#actions.push({ type: "park", socket: parked });
    }
    this.#dropAll({ code: NORMAL, reason: "" });
    this.error = { code, reason };
    this.#close(now, { type: "close", code, reason, wasClean: code !== ABNORMAL });
  }

  /**
   * @param {number} now
   * @param {Close} action
   */
  #close(now, action) {
    this.#settle(now);
    this.#memory.attempts = this.#attempts;
    this.#retryAt = this.#resumeBy = this.#silentAt = this.#pingAboveAt = this.#overAt = null;
    this.#move("end");
    this.#actions.push(action);
    this.#changed();
  }

  /** @param {LineEvent} event */
  #move(event) {
    const next = TRANSITIONS[this.state][event];
    if (next === undefined) throw new Error(`"${event}" can't happen while ${this.state}`);
    this.state = next;
  }

  /** Told once for however much happens in one step. */
  #changed() {
    if (!this.#actions.some(({ type }) => type === "change")) this.#actions.push({ type: "change" });
  }
}
