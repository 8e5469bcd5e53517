// @ts-check
/** When to come back: by one's own schedule, or at the moment that the server has given. */

/**
 * @typedef {object} Backoff How a client comes back by itself. Times in milliseconds.
 * @property {number} min The longest wait before the first attempt.
 * @property {number} max The longest wait before any.
 * @property {number} factor By which the longest wait grows.
 * @property {"full" | "none" | number} jitter `full`: anything from nothing to the longest wait. A
 *   fraction: that much less or more.
 * @property {number} attempts How many of them the server is asked to keep the session for.
 * @property {number} timeout How long one attempt may take.
 *
 * @typedef {object} Verdict What a close says.
 * @property {number} code
 * @property {string} reason
 * @property {boolean} resumable Whether it ended the socket only, not the session.
 * @property {number | null} retry In how many milliseconds the server wants this client back.
 */

/** @type {Readonly<Backoff>} */
export const BACKOFF = Object.freeze({
  min: 500, max: 20_000, factor: 2, jitter: "full", attempts: 8, timeout: 5_000,
});

/**
 * A server may spread its clients over minutes. More is a mistake, which would keep them away for
 * ever.
 */
export const RETRY_MAX = 3_600_000;

/** Beyond it powers are no numbers any more; `max` is reached long before. */
const EXPONENT_MAX = 64;

/**
 * How long to wait before an attempt.
 *
 * @param {Backoff} backoff
 * @param {number} attempt 0 for the first.
 * @param {number} random In [0, 1).
 * @returns {number} Milliseconds.
 */
export function backoffDelay({ min, max, factor, jitter }, attempt, random) {
  const longest = Math.min(max, min * factor ** Math.min(attempt, EXPONENT_MAX));
  if (jitter === "none") return longest;
  if (jitter === "full") return random * longest;
  return longest * (1 + jitter * (2 * random - 1));
}

/**
 * After these the session is still there: the server or something between went away (1001, 1005,
 * 1006, 1011 to 1015), or the server closed the socket only (shutdown, slow, write error, no pong,
 * too many requests).
 *
 * @type {ReadonlySet<number>}
 */
const RESUMABLE = new Set([1001, 1005, 1006, 1011, 1012, 1013, 1014, 1015, 3001, 3008, 3009, 3012, 3013]);

/**
 * Reads a WebSocket close. The reason may be JSON: `{"reason": …, "reconnect": …, "retry": …}`.
 *
 * @param {number} code
 * @param {string} reason
 * @returns {Verdict}
 */
export function closeVerdict(code, reason) {
  /** @type {any} */
  let said = null;
  try {
    said = JSON.parse(reason);
  } catch {
    // Plain text, or nothing when the network went away.
  }
  const retry = said?.retry;
  return {
    code,
    reason,
    resumable: RESUMABLE.has(code) && said?.reconnect !== false,
    retry: Number.isFinite(retry) && retry >= 0 ? Math.min(retry, RETRY_MAX) : null,
  };
}
