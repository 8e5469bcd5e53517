// @ts-check
/** A WebSocket without a network: what was sent is in `frames`, the test plays the server. */

export class FakeSocket {
  /** Every socket made since `reset`. @type {FakeSocket[]} */
  static made = [];

  static reset() {
    FakeSocket.made = [];
  }

  static get last() {
    return FakeSocket.made[FakeSocket.made.length - 1];
  }

  /** @type {string[]} */
  frames = [];
  closed = false;
  onopen = () => {};
  /** @param {{data: string}} event */
  onmessage = (event) => void event;
  /** @param {{code: number, reason: string}} event */
  onclose = (event) => void event;

  /** @param {string} url */
  constructor(url) {
    this.url = url;
    FakeSocket.made.push(this);
  }

  /** @param {string} frame */
  send(frame) {
    this.frames.push(frame);
  }

  close() {
    this.closed = true;
  }

  /** Every command that was sent, in order. */
  get commands() {
    return this.frames.flatMap((frame) => frame.split("\n").map((line) => JSON.parse(line)));
  }

  /**
   * The commands of one method.
   *
   * @param {string} method
   */
  sent(method) {
    return this.commands.filter((command) => method in command);
  }

  /** @param {any[]} messages */
  says(...messages) {
    this.onmessage({ data: messages.map((message) => JSON.stringify(message)).join("\n") });
  }

  /**
   * Answers the latest command of a method.
   *
   * @param {string} method
   * @param {any} result
   */
  answers(method, result = {}) {
    this.says({ id: this.sent(method).at(-1).id, [method]: result });
  }

  /**
   * @param {string} method
   * @param {{code: number, message?: string, temporary?: boolean}} error
   */
  refuses(method, error) {
    this.says({ id: this.sent(method).at(-1).id, error: { message: "refused", ...error } });
  }

  /**
   * Opens and accepts the connection.
   *
   * @param {any} result
   */
  accepts(result = {}) {
    this.onopen();
    this.answers("connect", { client: "c1", ping: 25, pong: true, ...result });
  }

  /**
   * @param {number} code
   * @param {string} reason
   */
  drops(code = 1006, reason = "") {
    this.onclose({ code, reason });
  }
}

/** One that gets itself another line when its own is lost, as the test says. */
export class FakeLine extends FakeSocket {
  /** @type {"connecting" | "connected" | "waiting" | "resuming"} */
  state = "connecting";
  /** @type {number | null} */
  rtt = null;
  /** @type {"excellent" | "good" | "fair" | "poor" | null} */
  quality = null;
  /** @type {number | null} */
  retryAt = null;
  /** @type {{code: number, reason: string} | null} */
  error = null;
  /** Whether the next attempt's moment was given by the server. */
  promised = false;
  retries = 0;
  onstatechange = () => {};

  /** @param {Partial<FakeLine>} changes */
  becomes(changes) {
    Object.assign(this, changes);
    this.onstatechange();
  }

  retryNow() {
    if (this.promised) return false;
    this.retries += 1;
    this.becomes({ state: "resuming", retryAt: null });
    return true;
  }

  /** @override @param {any} result */
  accepts(result = {}) {
    this.becomes({ state: "connected", error: null });
    super.accepts(result);
  }
}

/** Lets everything that was promised happen; timers don't move. */
export const settled = () => new Promise((resolve) => setImmediate(resolve));
