// @ts-check
/**
 * A small server of sessions: counts, keeps, fences and replays as the protocol says. It knows
 * neither sockets nor time, so it serves the random runs as well as real sockets.
 */

/**
 * @typedef {object} Wire A socket as the server sees it.
 * @property {(text: string) => void} send
 * @property {(code: number, reason: string) => void} close
 *
 * @typedef {object} SessionRecord
 * @property {string} token
 * @property {number} generation
 * @property {number} received
 * @property {number} sent
 * @property {string[]} tail What the client hasn't acknowledged.
 * @property {ServerSocket | null} socket
 * @property {number} attempt
 * @property {number} resumedAt
 * @property {number} pingAt
 * @property {number} pongBy
 * @property {number} expiresAt
 * @property {number} said What the client knows to be received.
 * @property {any} declared
 */

const PONG_TIMEOUT = 10_000;

export class SessionServer {
  /** By token. @type {Map<string, SessionRecord>} */
  sessions = new Map();
  /** Every session there ever was. @type {SessionRecord[]} */
  all = [];
  /** Attempts to resume that were taken for stragglers. */
  fenced = 0;
  ping;
  retain;
  stable;
  #onPayload;

  /**
   * @param {object} [options]
   * @param {number} [options.ping]
   * @param {number} [options.retain]
   * @param {number} [options.stable]
   * @param {(session: SessionRecord, text: string) => void} [options.onPayload]
   */
  constructor({ ping = 25_000, retain = 63_000, stable = 30_000, onPayload = () => {} } = {}) {
    this.ping = ping;
    this.retain = retain;
    this.stable = stable;
    this.#onPayload = onPayload;
  }

  /** @param {Wire} wire */
  accept(wire) {
    return new ServerSocket(this, wire);
  }

  /** When `tick` is due. */
  get deadline() {
    return Math.min(...[...this.sessions.values()].flatMap(({ socket, pingAt, pongBy, expiresAt }) =>
      socket ? [pingAt, pongBy] : [expiresAt]), Infinity);
  }

  /** @param {number} now */
  tick(now) {
    for (const session of [...this.sessions.values()]) {
      if (!session.socket) {
        if (now >= session.expiresAt) this.sessions.delete(session.token);
      } else if (now >= session.pongBy) {
        session.socket.close(3012, "no pong", now);
      } else if (now >= session.pingAt) {
        this.sendPing(session, now);
      }
    }
  }

  /**
   * @param {SessionRecord} session
   * @param {number} now
   */
  sendPing(session, now) {
    session.pingAt = now + this.ping;
    session.pongBy = Math.min(session.pongBy, now + PONG_TIMEOUT);
    session.said = session.received;
    const { received, sent } = session;
    session.socket?.say({ ping: { received, sent, rtt: 43, quality: "good", retain: this.retain } });
  }

  /**
   * @param {SessionRecord} session
   * @param {string} text
   */
  publish(session, text) {
    session.sent += 1;
    session.tail.push(text);
    session.socket?.wire.send(text);
  }

  /**
   * @param {SessionRecord} session
   * @param {string} text
   */
  process(session, text) {
    session.received += 1;
    this.#onPayload(session, text);
    if (session.received - session.said >= 32) {
      session.said = session.received;
      session.socket?.say({ ack: session.received });
    }
  }

  /** A session ends, whatever its client thinks. @param {SessionRecord} session */
  forget(session) {
    this.sessions.delete(session.token);
  }
}

class ServerSocket {
  /** @type {SessionRecord | null} */
  #session = null;
  #server;
  #closed = false;

  /**
   * @param {SessionServer} server
   * @param {Wire} wire
   */
  constructor(server, wire) {
    this.#server = server;
    this.wire = wire;
  }

  /** @param {object} frame */
  say(frame) {
    this.wire.send(JSON.stringify({ session: frame }));
  }

  /**
   * @param {string} text
   * @param {number} now
   */
  message(text, now) {
    if (this.#closed) return;
    const session = this.#session;
    if (!text.startsWith('{"session":')) {
      if (session === null) this.close(3501, "bad request", now);
      else if (session.socket === this) this.#server.process(session, text);
      return;
    }
    const { open, resume, ack, pong, leave } = JSON.parse(text).session;
    if (open && session === null) this.#open(open, now);
    else if (resume && session === null) this.#resume(resume, now);
    else if (session === null || open || resume) this.close(3501, "bad request", now);
    else if (session.socket !== this) return;
    else if (leave) this.#server.forget(session);
    else {
      if (pong) session.pongBy = Infinity;
      this.#acknowledge(session, ack ?? pong.received);
    }
  }

  /**
   * @param {number} code
   * @param {string} reason
   * @param {number} now
   */
  close(code, reason, now) {
    this.wire.close(code, reason);
    this.closed(code, now);
  }

  /**
   * The socket is gone.
   *
   * @param {number} code 1000 is the client's own will.
   * @param {number} now
   */
  closed(code, now) {
    if (this.#closed) return;
    this.#closed = true;
    const session = this.#session;
    if (session?.socket !== this) return;
    session.socket = null;
    session.expiresAt = now + this.#server.retain;
    if (code === 1000 || session.sent === 0) this.#server.forget(session);
  }

  /**
   * @param {{backoff: any}} open
   * @param {number} now
   */
  #open({ backoff }, now) {
    const { ping, retain, stable } = this.#server;
    const token = `token-${this.#server.all.length + 1}`;
    /** @type {SessionRecord} */
    const session = {
      token, generation: 1, received: 0, sent: 0, tail: [], socket: this, attempt: 0, resumedAt: -Infinity,
      pingAt: now + ping / 2, pongBy: Infinity, expiresAt: Infinity, said: 0, declared: backoff,
    };
    this.#session = session;
    this.#server.sessions.set(token, session);
    this.#server.all.push(session);
    this.say({ opened: { token, generation: 1, ping, retain, stable } });
  }

  /**
   * @param {{token: string, received: number, attempt: number}} resume
   * @param {number} now
   */
  #resume({ token, received, attempt }, now) {
    const { ping, retain, stable } = this.#server;
    const session = this.#server.sessions.get(token);
    if (session === undefined) {
      this.say({ gone: { reason: "unknown" } });
      return;
    }
    if (attempt <= session.attempt && now - session.resumedAt < stable) {
      this.#server.fenced += 1;
      this.say({ gone: { reason: "fenced" } });
      return;
    }
    if (received < session.sent - session.tail.length) {
      // From before what was acknowledged: a request of long ago, or a client that can't count.
      this.close(3501, "bad request", now);
      return;
    }
    const former = session.socket;
    session.socket = this;
    session.generation += 1;
    session.attempt = attempt;
    session.resumedAt = now;
    session.pingAt = now + ping / 2;
    session.pongBy = Infinity;
    session.said = session.received;
    this.#session = session;
    if (former !== null) {
      former.say({ gone: { reason: "fenced" } });
      former.close(3000, "fenced", now);
    }
    this.#acknowledge(session, received);
    const replay = session.tail.length;
    this.say({ resumed: { generation: session.generation, received: session.received, replay, retain, stable } });
    for (const text of session.tail) this.wire.send(text);
  }

  /**
   * @param {SessionRecord} session
   * @param {number} received
   */
  #acknowledge(session, received) {
    const before = session.sent - session.tail.length;
    if (received > session.sent) throw new Error(`the client claims ${received} frames of ${session.sent}`);
    session.tail.splice(0, Math.max(0, received - before));
  }
}
