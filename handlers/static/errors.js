// @ts-check
/** What can go wrong with a connection or a command. No DOM. */

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
  GOING_AWAY: 1001,
  LOST: 1006,
  RESTART: 1012,
  SHUTDOWN: 3001,
  CONNECTION_EXPIRED: 3005,
  INVALID_TOKEN: 3500,
});

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
