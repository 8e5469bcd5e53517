// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";

import { BACKOFF } from "../src/backoff.js";
import { LEAVE, PREFIX, ProtocolError, ackFrame, openFrame, pongFrame, readServerFrame, resumeFrame } from "../src/frames.js";

test("the client's frames are as the protocol has them", () => {
  assert.equal(
    openFrame(BACKOFF),
    '{"session":{"open":{"backoff":{"min":500,"max":20000,"factor":2,"jitter":"full","attempts":8,"timeout":5000}}}}',
  );
  assert.equal(resumeFrame('a"b', 812, 2), '{"session":{"resume":{"token":"a\\"b","received":812,"attempt":2}}}');
  assert.equal(ackFrame(812), '{"session":{"ack":812}}');
  assert.equal(pongFrame(812, 17), '{"session":{"pong":{"received":812,"sent":17}}}');
  assert.equal(LEAVE, '{"session":{"leave":{}}}');
  for (const frame of [openFrame(BACKOFF), resumeFrame("", 0, 1), ackFrame(0), pongFrame(0, 0), LEAVE]) {
    assert.ok(frame.startsWith(PREFIX));
  }
});

test("the server's frames are read", () => {
  const read = (/** @type {object} */ frame) => readServerFrame(JSON.stringify({ session: frame }));
  const opened = { token: "t", generation: 1, ping: 25_000, retain: 63_000, stable: 30_000 };
  assert.deepEqual(read({ opened }), { type: "opened", ...opened });
  const resumed = { generation: 2, received: 17, retain: 63_000, stable: 30_000 };
  assert.deepEqual(read({ resumed: { ...resumed, replay: 5 } }), { type: "resumed", ...resumed });
  assert.deepEqual(read({ gone: { reason: "expired" } }), { type: "gone", reason: "expired" });
  assert.deepEqual(read({ ack: 17 }), { type: "ack", received: 17 });
  assert.deepEqual(read({ move: { retry: 1_200, deadline: 30_000 } }), { type: "move", retry: 1_200, deadline: 30_000 });
  const ping = { received: 17, sent: 830, rtt: 43, quality: "good", retain: 63_000 };
  assert.deepEqual(read({ ping }), { type: "ping", ...ping });
});

test("what a ping leaves out isn't known", () => {
  const ping = readServerFrame('{"session":{"ping":{"received":0,"sent":0}}}');
  assert.deepEqual(ping, { type: "ping", received: 0, sent: 0, rtt: 0, quality: null, retain: null });
  const later = readServerFrame('{"session":{"ping":{"received":0,"sent":0,"quality":"superb"}}}');
  assert.equal(later.type === "ping" && later.quality, null);
});

test("frames of a later version are no error", () => {
  assert.deepEqual(readServerFrame('{"session":{"whatever":{}}}'), { type: "unknown" });
});

test("nonsense is", () => {
  const nonsense = [
    '{"session":', '{"session":null}', '{"session":{"ack":-1}}', '{"session":{"ack":1.5}}', '{"session":{"ack":"1"}}',
    '{"session":{"ack":null}}', '{"session":{"ack":9007199254740993}}', '{"session":{"ping":null}}',
    '{"session":{"opened":{}}}', '{"session":{"resumed":{"generation":2}}}', '{"session":{"gone":null}}',
    '{"session":{"move":{"retry":-1,"deadline":0}}}', '{"session":{"move":{"retry":1e999,"deadline":0}}}',
  ];
  for (const text of nonsense) assert.throws(() => readServerFrame(text), ProtocolError, text);
});
