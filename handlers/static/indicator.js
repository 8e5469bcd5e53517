// @ts-check
/** What the page says about its connection. Pure: no DOM, no clock. */

import { absenceAdvice, endAdvice, isServerRestarting, lineWords, secondsUntil, spokenLine } from "./words.js";

/** @typedef {import("./gateway.js").ConnectionState} ConnectionState */

/**
 * @typedef {"connected" | "silent" | "connecting" | "resuming" | "waiting" | "restarting" | "offline" | "disconnected"} Kind
 *
 * @typedef {object} Indication
 * @property {Kind} kind
 * @property {string} label
 * @property {string} detail Of the line, or when it goes on.
 * @property {string} spoken The detail in full, as it is read aloud.
 * @property {string} advice What has happened and what to do; empty while there is nothing to worry
 *   about.
 * @property {"" | "Retry now" | "Trying…" | "Connect again"} button What can be done, if anything.
 * @property {boolean} isBusy The button does nothing just now.
 */

/** A line that is back so soon is nobody's worry: only the label shows that it was away. */
export const CALM_MS = 1_500;

/** @type {Readonly<Record<Kind, string>>} */
const LABELS = {
  connected: "Connected",
  silent: "No answer",
  connecting: "Connecting…",
  resuming: "Resuming…",
  waiting: "Reconnecting",
  restarting: "Server restarting",
  offline: "Offline",
  disconnected: "Disconnected",
};

/**
 * @param {ConnectionState} state
 * @param {object} here
 * @param {number} here.now
 * @param {boolean} here.isOnline Whether the device has a network.
 * @returns {Indication}
 */
export function indication(state, { now, isOnline }) {
  const kind = kindOf(state, isOnline);
  const label = kind === "connecting" && state.code !== undefined ? "Reconnecting…" : LABELS[kind];
  const { detail, spoken } = detailOf(kind, state, now);
  return { kind, label, detail, spoken, ...adviceOf(kind, state, now, isOnline) };
}

/**
 * @param {ConnectionState} state
 * @param {boolean} isOnline
 * @returns {Kind}
 */
function kindOf(state, isOnline) {
  const { phase } = state;
  if (phase === "disconnected") return "disconnected";
  // What answers is there, whatever the device says: a server on this machine needs no network.
  if (phase === "connected" && !state.silent) return "connected";
  if (!isOnline) return "offline";
  if (phase === "connected") return "silent";
  return isServerRestarting(state) ? "restarting" : phase;
}

/**
 * @param {Kind} kind
 * @param {ConnectionState} state
 * @param {number} now
 */
function detailOf(kind, state, now) {
  if (kind === "connected") return { detail: lineWords(state), spoken: spokenLine(state) };
  if (state.phase === "waiting" && state.retryAt != null) {
    const what = state.promised ? "your turn" : "next try";
    const detail = `${what} in ${secondsUntil(state.retryAt, now)} s`;
    return { detail, spoken: detail };
  }
  const detail = { offline: "no network", silent: "still waiting", restarting: "trying now" }[String(kind)] ?? "";
  return { detail, spoken: detail };
}

/**
 * @param {Kind} kind
 * @param {ConnectionState} state
 * @param {number} now
 * @param {boolean} isOnline
 * @returns {Pick<Indication, "advice" | "button" | "isBusy">}
 */
function adviceOf(kind, state, now, isOnline) {
  if (kind === "disconnected") {
    return { advice: endAdvice(state), button: state.code === undefined ? "" : "Connect again", isBusy: false };
  }
  const isAway = state.phase !== "connected" && state.code !== undefined;
  if (!isAway || now - (state.since ?? now) < CALM_MS) return { advice: "", button: "", isBusy: false };
  const advice = absenceAdvice(state, isOnline);
  if (state.phase === "waiting") return { advice, button: "Retry now", isBusy: state.promised };
  return { advice, button: "Trying…", isBusy: true };
}
