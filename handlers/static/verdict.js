// @ts-check
/** What becomes of a connection that failed: whether to come back, and when. Pure. */

import { Code, GatewayError } from "./errors.js";

/**
 * @typedef {object} Verdict What a close says: why, and whether and when to come back.
 * @property {number} code
 * @property {string} reason
 * @property {boolean} reconnect
 * @property {number} [retry] Milliseconds that the server asks this one connection to wait.
 */

export const BACKOFF = Object.freeze({ minMs: 500, maxMs: 20_000, factor: 2 });

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

/**
 * What it means that there is no token.
 *
 * @param {unknown} error
 * @returns {Verdict}
 */
export function tokenVerdict(error) {
  if (error instanceof GatewayError) {
    return { code: error.code, reason: error.message, reconnect: error.temporary };
  }
  return { code: Code.TOKEN_UNAVAILABLE, reason: "the server can't be reached", reconnect: true };
}
