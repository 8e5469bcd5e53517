// @ts-check
/**
 * The session layer's frames: JSON text messages with the single key `session`. Every other text
 * message is a payload frame. Times are milliseconds.
 */

/**
 * @typedef {import("./backoff.js").Backoff} Backoff
 *
 * @typedef {"excellent" | "good" | "fair" | "poor"} Quality
 *
 * @typedef {{type: "opened", token: string, generation: number, ping: number, retain: number, stable: number}} Opened
 * @typedef {{type: "resumed", generation: number, received: number, retain: number, stable: number}} Resumed
 * @typedef {{type: "gone", reason: string}} Gone
 * @typedef {{type: "ping", received: number, sent: number, rtt: number, quality: Quality | null, retain: number | null}} Ping
 * @typedef {{type: "ack", received: number}} Ack
 * @typedef {{type: "move", retry: number, deadline: number}} Move
 * @typedef {{type: "unknown"}} Unknown Of a later version; nothing is lost by ignoring it.
 * @typedef {Opened | Resumed | Gone | Ping | Ack | Move | Unknown} ServerFrame
 */

/** With this, and exactly this, each session frame of the server begins. */
export const PREFIX = '{"session":';

export const LEAVE = '{"session":{"leave":{}}}';

/** @type {ReadonlySet<unknown>} */
const QUALITIES = new Set(["excellent", "good", "fair", "poor"]);

/** The server said what can't be. Nothing that is counted can be relied on after that. */
export class ProtocolError extends Error {
  /** @param {string} message */
  constructor(message) {
    super(message);
    this.name = "ProtocolError";
  }
}

/** @param {Backoff} backoff */
export function openFrame(backoff) {
  const { min, max, factor, jitter, attempts, timeout } = backoff;
  return JSON.stringify({ session: { open: { backoff: { min, max, factor, jitter, attempts, timeout } } } });
}

/**
 * @param {string} token
 * @param {number} received
 * @param {number} attempt From 1.
 */
export function resumeFrame(token, received, attempt) {
  return JSON.stringify({ session: { resume: { token, received, attempt } } });
}

/** @param {number} received */
export function ackFrame(received) {
  return `{"session":{"ack":${received}}}`;
}

/**
 * @param {number} received
 * @param {number} sent
 */
export function pongFrame(received, sent) {
  return `{"session":{"pong":{"received":${received},"sent":${sent}}}}`;
}

/**
 * Reads a message that begins with `PREFIX`.
 *
 * @param {string} text
 * @returns {ServerFrame}
 * @throws {ProtocolError}
 */
export function readServerFrame(text) {
  try {
    return decode(JSON.parse(text).session);
  } catch (error) {
    if (error instanceof ProtocolError) throw error;
    throw new ProtocolError(`not a session frame: ${text.slice(0, 100)}`);
  }
}

/**
 * @param {any} frame
 * @returns {ServerFrame}
 */
function decode({ ack, ping, opened, resumed, gone, move }) {
  if (ack !== undefined) return { type: "ack", received: count(ack) };
  if (ping !== undefined) {
    return {
      type: "ping",
      received: count(ping.received),
      sent: count(ping.sent),
      rtt: duration(ping.rtt ?? 0),
      quality: QUALITIES.has(ping.quality) ? ping.quality : null,
      retain: ping.retain === undefined ? null : duration(ping.retain),
    };
  }
  if (opened !== undefined) {
    const { token, generation, ping: interval, retain, stable } = opened;
    if (typeof token !== "string" || token === "") throw new ProtocolError("opened without a token");
    return {
      type: "opened",
      token,
      generation: count(generation),
      ping: duration(interval),
      retain: duration(retain),
      stable: duration(stable),
    };
  }
  if (resumed !== undefined) {
    return {
      type: "resumed",
      generation: count(resumed.generation),
      received: count(resumed.received),
      retain: duration(resumed.retain),
      stable: duration(resumed.stable),
    };
  }
  if (gone !== undefined) return { type: "gone", reason: String(gone.reason) };
  if (move !== undefined) {
    return { type: "move", retry: duration(move.retry), deadline: duration(move.deadline) };
  }
  return { type: "unknown" };
}

/** @param {unknown} value */
function count(value) {
  if (typeof value === "number" && Number.isSafeInteger(value) && value >= 0) return value;
  throw new ProtocolError(`not a count: ${value}`);
}

/** @param {unknown} value */
function duration(value) {
  if (typeof value === "number" && Number.isFinite(value) && value >= 0) return value;
  throw new ProtocolError(`not a duration: ${value}`);
}
