// @ts-check
/** A real socket's double: the test plays the network. */

export class FakeSocket {
  /** Every one since `reset`. @type {FakeSocket[]} */
  static made = [];

  static reset() {
    FakeSocket.made = [];
  }

  /** The newest. */
  static get last() {
    const socket = FakeSocket.made.at(-1);
    if (!socket) throw new Error("no socket was made");
    return socket;
  }

  readyState = 0;
  bufferedAmount = 0;
  protocol = "";
  extensions = "";
  binaryType = "blob";
  /** @type {any[]} */
  sent = [];
  /** @type {{code: number | undefined, reason: string | undefined} | null} */
  closedWith = null;
  /** @type {((event: any) => void) | null} */
  onopen = null;
  /** @type {((event: any) => void) | null} */
  onmessage = null;
  /** @type {((event: any) => void) | null} */
  onclose = null;
  /** @type {((event: any) => void) | null} */
  onerror = null;

  /**
   * @param {string} url
   * @param {string | string[]} [protocols]
   */
  constructor(url, protocols) {
    this.url = url;
    this.protocols = protocols;
    FakeSocket.made.push(this);
  }

  /** @param {any} data */
  send(data) {
    if (this.readyState !== 1) throw new Error("sent on a socket that isn't open");
    this.sent.push(data);
  }

  /**
   * @param {number} [code]
   * @param {string} [reason]
   */
  close(code, reason) {
    this.readyState = 2;
    this.closedWith = { code, reason };
  }

  // What the network does.

  opens() {
    this.readyState = 1;
    this.onopen?.({});
  }

  /** @param {any} data */
  says(data) {
    this.onmessage?.({ data });
  }

  /** A session frame. @param {object} frame */
  frame(frame) {
    this.says(JSON.stringify({ session: frame }));
  }

  /** Opens and begins a session, or resumes. @param {object} [members] */
  accepts(members = {}) {
    if (this.readyState === 0) this.opens();
    const kept = { generation: 1, retain: 63_000, stable: 30_000 };
    if (this.asked("resume")) this.frame({ resumed: { ...kept, received: 0, replay: 0, ...members } });
    else this.frame({ opened: { ...kept, token: "t", ping: 25_000, ...members } });
  }

  /**
   * @param {number} code
   * @param {string} [reason]
   */
  closes(code, reason = "") {
    this.readyState = 3;
    this.onerror?.({});
    this.onclose?.({ code, reason, wasClean: code !== 1006 });
  }

  /** What the client said last of one kind. @param {string} type */
  asked(type) {
    const text = this.sent.findLast((/** @type {any} */ sent) => `${sent}`.startsWith(`{"session":{"${type}"`));
    return text === undefined ? undefined : JSON.parse(text).session[type];
  }

  /** What it said of the layer above. */
  get payload() {
    return this.sent.filter((sent) => !`${sent}`.startsWith('{"session":'));
  }
}
