// @ts-check
/** What the page says: times, lists of names, and what to do when something went wrong. */

import { Code } from "./errors.js";

/** @typedef {import("./gateway.js").ConnectionState} ConnectionState */
/** @typedef {import("./errors.js").GatewayError} GatewayError */

const clock = new Intl.DateTimeFormat(undefined, { hour: "numeric", minute: "2-digit" });
const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });
const thisYear = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });
const otherYear = new Intl.DateTimeFormat(undefined, { dateStyle: "long" });

/** @param {number} time */
export const clockTime = (time) => clock.format(time);

/** @param {number} time */
export const fullTime = (time) => moment.format(time);

/**
 * @param {number} time
 * @param {number} now
 */
export function dayName(time, now) {
  const day = new Date(time);
  const today = new Date(now);
  const yesterday = new Date(now);
  yesterday.setDate(today.getDate() - 1);
  if (day.toDateString() === today.toDateString()) return "Today";
  if (day.toDateString() === yesterday.toDateString()) return "Yesterday";
  return (day.getFullYear() === today.getFullYear() ? thisYear : otherYear).format(day);
}

/** @param {string[]} names */
export function typingPhrase(names) {
  if (names.length === 0) return "";
  if (names.length === 1) return `${names[0]} is typing`;
  if (names.length === 2) return `${names[0]} and ${names[1]} are typing`;
  return "Several people are typing";
}

/** @param {number} count */
export const peopleCount = (count) => (count === 1 ? "1 person here" : `${count} people here`);

/**
 * @param {number} count
 * @param {string} one
 * @param {string} many
 */
export const counted = (count, one, many) => `${count} ${count === 1 ? one : many}`;

/**
 * @param {number} time
 * @param {number} now
 */
export const secondsUntil = (time, now) => Math.max(0, Math.ceil((time - now) / 1000));

/** @type {Readonly<Record<import("../../clients/js/src/index.js").Quality, string>>} */
const QUALITY = { excellent: "Excellent", good: "Good", fair: "Fair", poor: "Poor" };

/**
 * The line in a few words: its quality and the time that a round trip takes.
 *
 * @param {ConnectionState} state
 */
export function lineWords({ quality, rtt }) {
  const words = [];
  if (quality !== null) words.push(QUALITY[quality]);
  if (rtt !== null) words.push(`${Math.max(1, Math.round(rtt))} ms`);
  return words.join(" · ");
}

/**
 * The same as it is read aloud.
 *
 * @param {ConnectionState} state
 */
export function spokenLine({ quality, rtt }) {
  const words = [];
  if (quality !== null) words.push(`quality of the line: ${quality}`);
  if (rtt !== null) words.push(`round trip ${counted(Math.max(1, Math.round(rtt)), "millisecond", "milliseconds")}`);
  return words.join(", ");
}

/** After these codes the server is being started again. @type {ReadonlySet<number>} */
const RESTARTING = new Set([Code.GOING_AWAY, Code.RESTART, Code.SHUTDOWN]);

/** @param {ConnectionState} state */
export const isServerRestarting = ({ code }) => code !== undefined && RESTARTING.has(code);

/** Why there is no connection, where there is more to say than what the server said. */
const CAUSES = new Map([
  [Code.TIMEOUT, "The server doesn't answer."],
  [Code.NO_PING, "The server has gone silent."],
  [Code.TOKEN_UNAVAILABLE, "The server can't be reached."],
  [Code.LOST, "The connection was lost."],
  [3005, "Your token has to be renewed."],
  [3013, "The server is busy."],
]);

/**
 * Why there is no connection just now, and what that means for the reader.
 *
 * @param {ConnectionState} state
 * @param {boolean} isOnline Whether the device has a network.
 */
export function absenceAdvice(state, isOnline) {
  const { code = Code.LOST, reason = "" } = state;
  const known = isServerRestarting(state) ? "The server is restarting." : CAUSES.get(code);
  const cause = isOnline ? (known ?? `The connection was lost (${reason}).`) : "You are offline.";
  const turn = state.promised ? " The server has given this page its turn, and wouldn't take it earlier." : "";
  return `${cause}${turn} What you write meanwhile is sent when you are back.`;
}

/**
 * Why the connection has ended for good, and what to do.
 *
 * @param {ConnectionState} state
 */
export function endAdvice({ code = 0, reason = "" }) {
  switch (code) {
    case 0:
      return "";
    case Code.CLOSED_HERE:
      return "You are disconnected. Connect again whenever you like.";
    case Code.INVALID_TOKEN:
      return "The server doesn't accept this token any more. Connect again to get a new one.";
    case Code.TOKEN_UNAVAILABLE:
      return reason;
    case 1009:
      return "The server closed the connection because a message was too large. Connect again and send a shorter one.";
    case 3504:
      return "There are too many connections for this user or address. Close other tabs, then connect again.";
    default:
      return `The server closed the connection for good: ${reason || `code ${code}`}. You can try to connect again.`;
  }
}

/**
 * Why a message wasn't stored, and what to do.
 *
 * @param {GatewayError} error
 */
export function sendingAdvice({ code, message }) {
  switch (code) {
    case Code.TIMEOUT:
      return "No answer from the server. Retrying can't send it twice.";
    case Code.INTERNAL:
      return "The server couldn't store it just now. Try again in a moment.";
    case Code.PERMISSION_DENIED:
      return "You may not write in this room.";
    case 106:
    case 111:
      return "You are sending too fast. Wait a moment, then try again.";
    case 107:
      return "The server didn't accept this text. Shorten or change it.";
    default:
      return `The server refused it: ${message}.`;
  }
}

/**
 * Why a room can't be entered, and what to do.
 *
 * @param {GatewayError} error
 * @param {string} room
 */
export function roomAdvice({ code, message }, room) {
  switch (code) {
    case 102:
      return "This server has no chat rooms: the namespace “chat” isn't configured.";
    case Code.PERMISSION_DENIED:
      return `You may not enter #${room}. Choose another room, or ask for a token that admits you.`;
    case 106:
      return "You are in too many rooms. Leave one, then open this one again.";
    case 107:
      return `The server doesn't accept “${room}” as the name of a room. Choose a shorter or simpler one.`;
    default:
      return `The server ended your visit to #${room}: ${message}. Reload the page to enter again.`;
  }
}
