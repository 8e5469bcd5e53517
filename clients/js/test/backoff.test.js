// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";

import { BACKOFF, backoffDelay, closeVerdict } from "../src/backoff.js";

test("full jitter takes anything up to a longest wait that grows to its maximum", () => {
  const longest = [0, 1, 2, 3, 4, 5, 6, 2_000].map((attempt) => backoffDelay(BACKOFF, attempt, 1));
  assert.deepEqual(longest, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 20_000, 20_000]);
  assert.equal(backoffDelay(BACKOFF, 4, 0.25), 2_000);
  assert.equal(backoffDelay(BACKOFF, 4, 0), 0);
});

test("other jitters vary around the longest wait, or not at all", () => {
  assert.equal(backoffDelay({ ...BACKOFF, jitter: "none" }, 3, 0.1), 4_000);
  assert.equal(backoffDelay({ ...BACKOFF, jitter: 0.5 }, 3, 0), 2_000);
  assert.equal(backoffDelay({ ...BACKOFF, jitter: 0.5 }, 3, 0.75), 5_000);
});

test("a close says whether the session lives on, by its code", () => {
  const resumable = [1001, 1005, 1006, 1011, 1012, 1013, 1014, 1015, 3001, 3008, 3009, 3012, 3013];
  const final = [1000, 1002, 1003, 1007, 1009, 3000, 3004, 3005, 3006, 3010, 3011, 3014, 3500, 3503, 4000, 4500];
  for (const code of resumable) assert.equal(closeVerdict(code, "").resumable, true, `${code}`);
  for (const code of final) assert.equal(closeVerdict(code, "").resumable, false, `${code}`);
});

test("a close may say when to come back, and that there is nothing to come back to", () => {
  const verdict = closeVerdict(3001, '{"reason":"shutdown","reconnect":true,"retry":4180}');
  assert.deepEqual([verdict.resumable, verdict.retry], [true, 4180]);
  assert.equal(closeVerdict(3001, '{"retry":1e12}').retry, 3_600_000);
  assert.equal(closeVerdict(3001, '{"reason":"shutdown","reconnect":false}').resumable, false);
});

test("what isn't advice is taken as text", () => {
  for (const reason of ["", "shutdown", "null", "17", "[]", '{"retry":-1}', '{"retry":"soon"}', '{"retry":1e999}']) {
    const verdict = closeVerdict(3001, reason);
    assert.deepEqual([verdict.resumable, verdict.retry, verdict.reason], [true, null, reason]);
  }
});
