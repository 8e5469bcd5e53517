// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";

import { Code } from "../../../../handlers/static/errors.js";
import { CALM_MS, indication } from "../../../../handlers/static/indicator.js";

/** @typedef {import("../../../../handlers/static/gateway.js").ConnectionState} ConnectionState */

const NOW = 1_700_000_000_000;

/** @type {ConnectionState} */
const CONNECTED = {
  phase: "connected", alive: true, attempt: 0, promised: false, silent: false, rtt: 43, quality: "good",
};

/**
 * For long.
 *
 * @param {Partial<ConnectionState>} change
 * @returns {ConnectionState}
 */
const away = (change) => ({ ...CONNECTED, phase: "waiting", since: NOW - 60_000, code: Code.LOST, reason: "", ...change });

/**
 * @param {ConnectionState} state
 * @param {boolean} isOnline
 */
const shown = (state, isOnline = true) => indication(state, { now: NOW, isOnline });

test("a good connection says how good, in words for the eye and for the ear", () => {
  assert.deepEqual(shown(CONNECTED), {
    kind: "connected",
    label: "Connected",
    detail: "Good · 43 ms",
    spoken: "quality of the line: good, round trip 43 milliseconds",
    advice: "",
    button: "",
    isBusy: false,
  });
  assert.equal(shown({ ...CONNECTED, quality: null }).detail, "43 ms");
  assert.equal(shown({ ...CONNECTED, quality: null, rtt: null }).detail, "");
  assert.equal(shown({ ...CONNECTED, rtt: 0.2 }).spoken, "quality of the line: good, round trip 1 millisecond");
});

test("each state has its own words", () => {
  for (const [state, kind, label] of /** @type {[ConnectionState, string, string][]} */ ([
    [{ ...CONNECTED, silent: true }, "silent", "No answer"],
    [away({ phase: "connecting", code: undefined }), "connecting", "Connecting…"],
    [away({ phase: "connecting" }), "connecting", "Reconnecting…"],
    [away({ phase: "resuming" }), "resuming", "Resuming…"],
    [away({}), "waiting", "Reconnecting"],
    [away({ code: Code.SHUTDOWN }), "restarting", "Server restarting"],
    [away({ code: Code.GOING_AWAY, phase: "resuming" }), "restarting", "Server restarting"],
    [away({ phase: "disconnected", code: 3503 }), "disconnected", "Disconnected"],
  ])) {
    assert.deepEqual([shown(state).kind, shown(state).label], [kind, label]);
  }
});

test("a device without a network is offline, unless the server answers all the same", () => {
  assert.equal(shown(CONNECTED, false).kind, "connected");
  assert.equal(shown({ ...CONNECTED, silent: true }, false).kind, "offline");
  for (const phase of /** @type {const} */ (["waiting", "resuming", "connecting"])) {
    const { label, advice } = shown(away({ phase, retryAt: null }), false);
    assert.equal(label, "Offline");
    assert.match(advice, /^You are offline\. What you write meanwhile is sent/);
  }
  assert.equal(shown(away({ phase: "disconnected", code: 3503 }), false).kind, "disconnected");
});

test("seconds are counted down to the next attempt", () => {
  const { detail, spoken, button, isBusy } = shown(away({ retryAt: NOW + 2_001 }));
  assert.deepEqual([detail, spoken, button, isBusy], ["next try in 3 s", "next try in 3 s", "Retry now", false]);
  assert.equal(shown(away({ retryAt: NOW - 10 })).detail, "next try in 0 s");
});

test("a moment that the server has given is nothing that can be hurried", () => {
  const { detail, advice, isBusy } = shown(away({ retryAt: NOW + 9_000, promised: true, code: 3013 }));
  assert.deepEqual([detail, isBusy], ["your turn in 9 s", true]);
  assert.match(advice, /^The server is busy\. The server has given this page its turn/);
});

test("while an attempt is under way there is nothing to press", () => {
  for (const phase of /** @type {const} */ (["resuming", "connecting"])) {
    const { button, isBusy } = shown(away({ phase }));
    assert.deepEqual([button, isBusy], ["Trying…", true]);
  }
});

test("what is over soon is nobody's worry", () => {
  const since = NOW - CALM_MS + 1;
  assert.deepEqual([shown(away({ since })).advice, shown(away({ since })).button], ["", ""]);
  assert.notEqual(shown(away({ since: since - 1 })).advice, "");
  assert.equal(shown(away({ phase: "connecting", code: undefined })).advice, "");
});

test("an end is said at once, with the way back", () => {
  const { advice, button } = shown(away({ phase: "disconnected", since: NOW, code: 3503, reason: "force disconnect" }));
  assert.match(advice, /for good: force disconnect/);
  assert.equal(button, "Connect again");
  assert.equal(shown(away({ phase: "disconnected", code: undefined })).button, "");
});

test("causes are said in words, and unknown ones as the server said them", () => {
  assert.match(shown(away({ code: Code.SHUTDOWN })).advice, /^The server is restarting\./);
  assert.match(shown(away({ code: Code.TOKEN_UNAVAILABLE })).advice, /^The server can't be reached\./);
  assert.match(shown(away({ code: 3010, reason: "insufficient state" })).advice, /lost \(insufficient state\)/);
});
