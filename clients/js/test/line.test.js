// @ts-check
/** One thing after another; line-random.test.js has them in any order. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { emptyMemory, Line, TRANSITIONS } from "../src/line.js";
import { BACKOFF } from "../src/backoff.js";
import { World } from "./support/world.js";

const RANDOM = 0.5;

/** @param {Partial<ConstructorParameters<typeof World>[0]>} [options] */
const begun = (options = {}) => new World({ random: () => RANDOM, ...options }).begin();

/** What the server says when it closes a socket. @param {number} retry */
const comeBackIn = (retry) => JSON.stringify({ reason: "shutdown", reconnect: true, retry });

/** The frames that the client has sent, of one type. @param {World} world @param {string} type */
function said(world, type) {
  return world.told.filter((text) => text.startsWith(`{"session":{"${type}"`)).map((text) => JSON.parse(text).session[type]);
}

test("it opens a session, and sends right behind", () => {
  const world = begun();
  assert.equal(world.line.state, "connected");
  assert.deepEqual(said(world, "open"), [{ backoff: BACKOFF }]);
  assert.deepEqual(world.atServer, ["connect"]);
  assert.deepEqual(world.atClient, ["connected"]);
});

test("every pair of a state and an event is in the table, or an error", () => {
  const states = Object.keys(TRANSITIONS);
  for (const transitions of Object.values(TRANSITIONS)) {
    for (const next of Object.values(transitions)) assert.ok(states.includes(next));
  }
  assert.deepEqual(TRANSITIONS.closed, {});
  // A socket that nobody waits for says that it is open: nothing happens.
  const line = new Line({ backoff: BACKOFF, unackedBytesMax: 1, random: () => 0, memory: emptyMemory() });
  line.socketOpened(7, 0);
  assert.deepEqual(line.take(), []);
});

test("after a loss it comes back by full jitter, and the layer above hears nothing of it", () => {
  const world = begun();
  const lostAt = world.now;
  world.last.cut();
  world.run(20);
  assert.equal(world.line.state, "waiting");
  assert.deepEqual(world.line.error, { code: 1006, reason: "" });
  assert.equal(world.line.retryAt, lostAt + 10 + RANDOM * BACKOFF.min);
  world.serverSends("meanwhile");
  world.clientSends("as well");
  world.run(400);
  assert.equal(world.line.state, "connected");
  assert.equal(world.line.error, null);
  assert.deepEqual(world.atClient, ["connected", "meanwhile"]);
  assert.deepEqual(world.atServer, ["connect", "as well"]);
  assert.deepEqual(said(world, "resume"), [{ token: "token-1", received: 1, attempt: 1 }]);
  assert.equal(world.closed, null);
});

test("each attempt has a number and a longer wait, until a connection was stable", () => {
  const world = begun();
  world.unreachable = true;
  world.last.cut();
  world.run(5_000);
  world.unreachable = false;
  world.run(8_000);
  assert.deepEqual(said(world, "resume").map(({ attempt }) => attempt), [5]);
  const waits = world.connects.slice(2).map((at, index) => at - /** @type {number} */ (world.connects[index + 1]));
  // Each failed after 100 ms.
  assert.deepEqual(waits, [600, 1_100, 2_100, 4_100]);
  world.run(5_000);
  world.last.cut();
  world.run(10_000);
  assert.equal(said(world, "resume").at(-1).attempt, 6);
  world.run(40_000);
  world.last.cut();
  world.run(1_000);
  assert.equal(said(world, "resume").at(-1).attempt, 1);
});

test("a moment that the server gives is kept exactly, whatever anybody wants", () => {
  const world = begun();
  const at = world.now + 10 + 4_180;
  world.session?.socket?.close(3001, comeBackIn(4_180), world.now);
  world.run(1_000);
  assert.equal(world.line.retryAt, at);
  world.happen((line, now) => assert.equal(line.retryNow(now), false));
  world.happen((line) => line.offline());
  world.happen((line, now) => line.online(now));
  world.happen((line, now) => line.wake(now));
  world.run(5_000);
  assert.deepEqual(world.connects.slice(1), [at]);
});

test("somebody who doesn't want to wait needn't", () => {
  const world = begun();
  world.last.cut();
  world.run(15);
  assert.equal(world.line.state, "waiting");
  world.happen((line, now) => assert.equal(line.retryNow(now), true));
  assert.equal(world.line.state, "resuming");
  world.happen((line, now) => assert.equal(line.retryNow(now), false));
});

test("an attempt that takes too long is given up", () => {
  const world = begun();
  world.last.cut();
  world.run(15);
  world.happen((line, now) => line.retryNow(now));
  world.last.lose();
  world.run(BACKOFF.timeout);
  assert.deepEqual([world.line.state, world.line.error?.reason], ["waiting", "the server did not answer in time"]);
  world.run(1_000);
  assert.equal(world.line.state, "connected");
});

test("a move opens the next socket while the old one serves", () => {
  const world = begun();
  world.session?.socket?.say({ move: { retry: 1_200, deadline: 30_000 } });
  world.run(1_000);
  world.serverSends("on the old one");
  world.run(215);
  assert.equal(world.held.size, 2);
  assert.equal(world.line.state, "connected");
  // Behind the request to resume, on the old socket: it comes twice.
  world.serverSends("on both");
  world.run(100);
  assert.equal(world.held.size, 1);
  assert.deepEqual(world.atClient, ["connected", "on the old one", "on both"]);
  assert.equal(world.session?.generation, 2);
  assert.equal(world.states.includes("waiting"), false);
});

test("the moment of a move holds when the old socket is closed before", () => {
  const world = begun();
  const at = world.now + 10 + 2_000;
  world.session?.socket?.say({ move: { retry: 2_000, deadline: 30_000 } });
  world.run(500);
  world.session?.socket?.close(3001, '{"reason":"shutdown","reconnect":true}', world.now);
  world.run(3_000);
  assert.deepEqual(world.connects.slice(1), [at]);
});

test("a close with a moment of its own replaces that", () => {
  const world = begun();
  world.session?.socket?.say({ move: { retry: 2_000, deadline: 30_000 } });
  world.run(500);
  const at = world.now + 10 + 3_000;
  world.session?.socket?.close(3001, comeBackIn(3_000), world.now);
  world.run(5_000);
  assert.deepEqual(world.connects.slice(1), [at]);
});

test("a candidate that is refused leaves the old socket serving", () => {
  const world = begun();
  world.session?.socket?.say({ move: { retry: 0, deadline: 30_000 } });
  world.run(15);
  world.last.server.close(3013, comeBackIn(700), world.now);
  const at = world.now + 10 + 700;
  world.run(100);
  assert.equal(world.line.state, "connected");
  world.serverSends("still here");
  world.run(20);
  assert.deepEqual(world.atClient, ["connected", "still here"]);
  world.run(1_000);
  assert.equal(world.connects.at(-1), at);
  assert.equal(world.session?.generation, 2);
});

test("silence ends a socket, not the session", () => {
  const world = begun();
  world.last.lose();
  world.run(34_700);
  assert.equal(world.line.state, "connected");
  world.run(1_000);
  assert.equal(world.line.state, "connected");
  assert.equal(world.session?.generation, 2);
  assert.deepEqual(world.states.slice(-4), ["connected", "waiting", "resuming", "connected"]);
});

test("silence that was our own sleep isn't taken for the server's", () => {
  const world = begun();
  world.asleep = true;
  world.run(100_000);
  world.asleep = false;
  world.happen((line, now) => line.tick(now));
  assert.equal(world.line.state, "connected");
  // But when nothing comes, then it is.
  world.run(2_500);
  assert.notEqual(world.states.indexOf("waiting"), -1);
});

test("on waking up with a ping missing, a new socket is opened at once", () => {
  const world = begun();
  world.last.lose();
  world.run(20_000);
  world.happen((line, now) => line.wake(now));
  assert.equal(world.connects.length, 1);
  world.run(7_000);
  world.happen((line, now) => line.wake(now));
  assert.equal(world.connects.length, 2);
  world.run(100);
  assert.equal(world.session?.generation, 2);
});

test("the layer above hears a ping for each of the server's, and at intervals without a server", () => {
  const world = begun();
  world.run(26_000);
  assert.equal(world.line.quality, "good");
  assert.equal(world.line.rtt, 43);
  assert.equal(world.pings, 1);
  world.unreachable = true;
  world.last.cut();
  world.run(60_000);
  assert.ok(world.pings >= 3);
  assert.ok(world.silenceMax <= 30_000);
  assert.equal(world.atServer.includes("{}"), false);
});

test("when the session must be over, the layer above is told", () => {
  const world = begun();
  world.unreachable = true;
  world.last.cut();
  world.run(63_000 + 25_000 + 40_000);
  assert.equal(world.line.state, "closed");
  assert.deepEqual(world.closed, { type: "close", code: 1006, reason: "the session has expired", wasClean: false });
  // Its pauses were its own: the next line, or whoever is in a hurry, may come at once.
  assert.equal(world.memory.notBefore, 0);
});

test("a session that is gone leaves its socket to the next one", () => {
  const world = begun();
  world.last.cut();
  if (world.session) world.server.forget(world.session);
  world.run(1_000);
  assert.equal(world.closed?.reason, "session gone: unknown");
  assert.deepEqual(world.parked, [2]);
});

test("what ends the client ends the session, with the server's word", () => {
  const world = begun();
  world.session?.socket?.close(3503, '{"reason":"force disconnect","reconnect":false}', world.now);
  world.run(100);
  assert.deepEqual(world.closed, {
    type: "close", code: 3503, reason: '{"reason":"force disconnect","reconnect":false}', wasClean: true,
  });
});

test("before the first answer there is nothing to come back for", () => {
  const world = new World({ random: () => RANDOM });
  world.happen((line, now) => line.start(now, false));
  world.run(50);
  assert.equal(world.line.state, "connected");
  world.last.cut();
  world.run(50);
  assert.equal(world.closed?.code, 1006);
});

test("a refusal with a moment holds for the next line as well", () => {
  const world = new World({ random: () => RANDOM });
  world.happen((line, now) => line.start(now, false));
  world.run(5);
  world.last.server.close(3013, comeBackIn(5_000), world.now);
  const at = world.now + 10 + 5_000;
  world.run(50);
  assert.equal(world.closed?.code, 3013);
  world.renew();
  world.happen((line, now) => line.start(now, false));
  assert.deepEqual([world.line.state, world.line.retryAt], ["waiting", at]);
  world.run(10_000);
  assert.deepEqual(world.connects.slice(1), [at]);
  assert.equal(world.line.state, "connected");
});

test("leaving ends the session on both sides", () => {
  const world = begun();
  world.happen((line, now) => line.leave(now));
  world.run(100);
  assert.equal(world.server.sessions.size, 0);
  assert.deepEqual(world.closed, { type: "close", code: 1005, reason: "", wasClean: true });
  world.happen((line, now) => line.leave(now));
  world.happen((line, now) => line.send("too late", now));
  assert.deepEqual(world.atServer, ["connect"]);
});

test("leaving ends the session even while it is being resumed", () => {
  const world = begun();
  world.last.cut();
  world.run(15);
  world.happen((line, now) => line.retryNow(now));
  world.run(25);
  assert.equal(world.line.state, "resuming");
  world.happen((line, now) => line.leave(now));
  world.run(100);
  assert.equal(world.server.sessions.size, 0);
});

test("too much that isn't acknowledged ends the session", () => {
  const world = begun({ unackedBytesMax: 100 });
  world.last.cut();
  world.run(20);
  world.clientSends("x".repeat(90));
  assert.equal(world.line.state, "waiting");
  world.clientSends("x".repeat(20));
  assert.equal(world.closed?.code, 1006);
});

test("counts that don't agree end the session", () => {
  for (const frame of [{ ping: { received: 1, sent: 7 } }, { ack: 9 }, { opened: {} }, { resumed: {} }]) {
    const world = begun();
    world.session?.socket?.say(frame);
    world.run(100);
    assert.equal(world.closed?.code, 1006, JSON.stringify(frame));
    assert.equal(world.held.size, 0);
  }
});

test("a candidate that says anything but yes or no ends the session", () => {
  for (const text of ["connected", '{"session":{"ack":1}}', '{"session":{"resumed":{}}}']) {
    const world = begun();
    world.session?.socket?.say({ move: { retry: 0, deadline: 30_000 } });
    world.run(15);
    world.last.server.wire.send(text);
    world.run(20);
    assert.equal(world.closed?.code, 1006, text);
    assert.equal(world.held.size, 0);
  }
});

test("frames of a later version change nothing", () => {
  const world = begun();
  world.session?.socket?.say({ move: { retry: 0, deadline: 30_000 } });
  world.run(15);
  for (const link of world.links) link.server.wire.send('{"session":{"novelty":{}}}');
  world.run(100);
  assert.deepEqual([world.line.state, world.session?.generation], ["connected", 2]);
});

test("when a request to resume gets lost, both sockets are given up", () => {
  const world = begun();
  world.session?.socket?.say({ move: { retry: 0, deadline: 30_000 } });
  world.run(35);
  assert.equal(said(world, "resume").length, 1);
  world.last.cut();
  world.run(30);
  assert.equal(world.line.state, "waiting");
  world.run(2_000);
  assert.equal(world.line.state, "connected");
  assert.deepEqual(said(world, "resume").map(({ attempt }) => attempt), [1, 2]);
});

test("when the next socket can't be opened, the old one goes on, and another is tried", () => {
  const world = begun();
  world.unreachable = true;
  world.session?.socket?.say({ move: { retry: 0, deadline: 30_000 } });
  world.run(200);
  assert.deepEqual([world.line.state, world.connects.length], ["connected", 2]);
  world.serverSends("still here");
  world.unreachable = false;
  world.run(2_000);
  assert.deepEqual(world.atClient, ["connected", "still here"]);
  assert.equal(world.session?.generation, 2);
  assert.equal(world.states.includes("waiting"), false);
});

test("without a network there are no attempts, and at once when it is back", () => {
  const world = begun();
  world.happen((line) => line.offline());
  world.last.cut();
  world.run(30_000);
  assert.deepEqual([world.line.state, world.line.retryAt], ["waiting", null]);
  assert.equal(world.connects.length, 1);
  world.happen((line, now) => line.online(now));
  assert.equal(world.connects.length, 2);
  world.run(100);
  assert.equal(said(world, "resume")[0].attempt, 1);
  assert.equal(world.line.state, "connected");
});

test("when the network has changed, a socket that seems open is replaced while it serves", () => {
  const world = begun();
  world.happen((line) => line.offline());
  world.run(1_000);
  world.last.lose();
  world.happen((line, now) => line.online(now));
  world.run(100);
  assert.equal(world.session?.generation, 2);
  assert.equal(world.states.includes("waiting"), false);
});

test("a page that is frozen lets its socket go, and resumes when it is thawed", () => {
  const world = begun();
  world.happen((line, now) => line.suspend(now));
  world.run(20_000);
  assert.deepEqual([world.line.state, world.line.retryAt, world.connects.length], ["waiting", null, 1]);
  world.happen((line, now) => line.wake(now));
  world.run(100);
  assert.equal(world.session?.generation, 2);
});

test("a request that was overtaken, and a word from the socket before, change nothing", () => {
  const world = begun();
  world.session?.socket?.say({ move: { retry: 0, deadline: 30_000 } });
  world.run(35);
  const old = world.link(1);
  old.stalledUntil = world.now + 1_000;
  world.run(2_000);
  assert.equal(world.line.state, "connected");
  assert.equal(world.closed, null);
});

test("a server that answers without a session is talked to without one", () => {
  const world = new World({ random: () => RANDOM });
  world.happen((line, now) => line.start(now, false));
  world.run(10);
  world.clientSends("connect");
  world.last.server.wire.send('{"id":1,"connect":{}}');
  world.run(15);
  assert.deepEqual([world.line.state, world.line.plain], ["connected", true]);
  assert.deepEqual(world.atClient, ['{"id":1,"connect":{}}']);
  world.clientSends("{}");
  assert.equal(world.told.at(-1), "{}");
  assert.ok(world.memory.plainUntil > world.now);
});

test("a server that refuses sessions gets a plain socket, and all that was sent", () => {
  const world = new World({ random: () => RANDOM });
  world.happen((line, now) => line.start(now, false));
  world.run(15);
  world.clientSends("connect");
  world.last.server.close(3501, "bad request", world.now);
  world.run(15);
  world.clientSends("subscribe");
  world.run(10);
  assert.deepEqual(world.plain, [false, true]);
  assert.deepEqual([world.line.state, world.line.plain, world.opens], ["connected", true, 1]);
  assert.deepEqual(world.told.slice(-2), ["connect", "subscribe"]);
  world.last.server.close(3001, "shutdown", world.now);
  world.run(100);
  assert.deepEqual(world.closed, { type: "close", code: 3001, reason: "shutdown", wasClean: true });
});
