// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";

import { ProtocolError } from "../src/frames.js";
import { Session } from "../src/session.js";

/** A session that has sent so many frames: "1", "2", … @param {number} sent */
function sessionWith(sent, unackedBytesMax = 2 ** 20) {
  const session = new Session(unackedBytesMax);
  for (let number = 1; number <= sent; number += 1) session.send(`${number}`);
  return session;
}

/**
 * @param {Session} session
 * @param {number} count
 */
function receive(session, count) {
  let fresh = 0;
  for (let index = 0; index < count; index += 1) fresh += session.receive("x") ? 1 : 0;
  return fresh;
}

test("what is not acknowledged is kept, in order", () => {
  const session = sessionWith(5);
  session.acknowledge(2);
  assert.deepEqual(session.unacked, ["3", "4", "5"]);
  assert.equal(session.unackedBytes, 3);
  session.acknowledge(1);
  assert.deepEqual(session.unacked, ["3", "4", "5"]);
  session.acknowledge(5);
  assert.deepEqual([session.unacked, session.unackedBytes], [[], 0]);
});

test("bytes are those of UTF-8, and limited", () => {
  const session = new Session(7);
  assert.equal(session.send("€"), true);
  assert.equal(session.unackedBytes, 3);
  assert.equal(session.send("€€"), false);
});

test("nothing can be acknowledged that was never sent", () => {
  assert.throws(() => sessionWith(5).acknowledge(6), ProtocolError);
});

test("the server is told after 32 frames, or 32 Ki characters", () => {
  const session = new Session(1);
  receive(session, 31);
  assert.equal(session.ackDue, false);
  receive(session, 1);
  assert.equal(session.ackDue, true);
  assert.equal(session.say(), 32);
  assert.equal(session.ackDue, false);
  session.receive("x".repeat(32 * 1024));
  assert.equal(session.ackDue, true);
});

test("after a resumption the rest is sent again", () => {
  const session = sessionWith(5);
  receive(session, 3);
  assert.equal(session.ask(), 3);
  assert.deepEqual(session.resumed(2), ["3", "4", "5"]);
  assert.equal(receive(session, 4), 4);
  assert.equal(session.received, 7);
});

test("what came on the old socket meanwhile comes again, and is not handed over", () => {
  const session = sessionWith(0);
  receive(session, 3);
  session.ask();
  assert.equal(receive(session, 2), 2);
  session.resumed(0);
  assert.equal(receive(session, 4), 2);
  assert.equal(session.received, 7);
});

test("while it asks, the server is told no more than what it asked for", () => {
  const session = sessionWith(0);
  receive(session, 3);
  session.ask();
  receive(session, 40);
  assert.equal(session.ackDue, false);
  assert.equal(session.say(), 3);
  session.withdraw();
  assert.equal(session.ackDue, true);
  assert.equal(session.say(), 43);
});

test("a later request asks for what is missing then", () => {
  const session = sessionWith(0);
  receive(session, 3);
  session.ask();
  receive(session, 2);
  assert.equal(session.ask(), 5);
  session.resumed(0);
  assert.equal(receive(session, 1), 1);
});

test("a server that lost frames, or has more than there were, is no server to go on with", () => {
  const session = sessionWith(5);
  session.acknowledge(3);
  session.ask();
  assert.throws(() => session.resumed(2), ProtocolError);
  assert.throws(() => session.resumed(6), ProtocolError);
});

test("pings compare counts", () => {
  const session = sessionWith(5);
  receive(session, 3);
  session.compare({ received: 4, sent: 3 });
  assert.deepEqual(session.unacked, ["5"]);
  assert.throws(() => session.compare({ received: 4, sent: 4 }), ProtocolError);
  assert.throws(() => session.compare({ received: 4, sent: 2 }), ProtocolError);
});
