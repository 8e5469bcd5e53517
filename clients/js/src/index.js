// @ts-check
export { BACKOFF } from "./backoff.js";
export { ResumableWebSocket } from "./resumable-websocket.js";
export { Status } from "./status.js";

/**
 * @typedef {import("./backoff.js").Backoff} Backoff
 * @typedef {import("./clock.js").Clock} Clock
 * @typedef {import("./frames.js").Quality} Quality
 * @typedef {import("./line.js").LineError} LineError
 * @typedef {import("./line.js").LineState} LineState
 * @typedef {import("./resumable-websocket.js").Options} Options
 * @typedef {import("./status.js").LineStatus} LineStatus
 */
