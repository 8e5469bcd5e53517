// @ts-check
import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";

import { Code, GatewayError } from "../../../../handlers/static/errors.js";
import { Gateway } from "../../../../handlers/static/gateway.js";
import { BACKOFF, backoffDelay, closeVerdict } from "../../../../handlers/static/verdict.js";
import { FakeSocket, settled } from "./fake_socket.js";

/** @type {import("../../../../handlers/static/gateway.js").ConnectionState[]} */
let states = [];
let tokens = 0;

/** @param {Partial<ConstructorParameters<typeof Gateway>[1]>} options */
function makeGateway(options = {}) {
  return new Gateway("ws://test/connection/websocket", {
    getToken: async () => `token-${(tokens += 1)}`,
    onState: (state) => states.push(state),
    websocket: /** @type {any} */ (FakeSocket),
    random: () => 0.5,
    ...options,
  });
}

/** @param {Partial<ConstructorParameters<typeof Gateway>[1]>} options */
async function connected(options = {}, result = {}) {
  const gateway = makeGateway(options);
  gateway.connect();
  await settled();
  FakeSocket.last.accepts(result);
  return gateway;
}

/**
 * @param {number} offset
 * @param {string} text
 */
const pub = (offset, text = `m${offset}`) => ({ push: { channel: "room", pub: { offset, data: text } } });

/** A subscription whose events are written down. @param {Gateway} gateway */
function watch(gateway, channel = "room") {
  /** @type {any[]} */
  const events = [];
  gateway.subscribe(channel, {
    onSubscribed: (subscribed) => events.push(["subscribed", subscribed]),
    onPublication: (publication) => events.push(["publication", publication.offset ?? publication.data]),
    onJoin: (info) => events.push(["join", info.user]),
    onLeave: (info) => events.push(["leave", info.user]),
    onEnded: (error) => events.push(["ended", error.code]),
  });
  return events;
}

beforeEach(() => {
  mock.timers.enable({ apis: ["setTimeout", "Date"], now: 1_700_000_000_000 });
  FakeSocket.reset();
  states = [];
  tokens = 0;
});

afterEach(() => mock.timers.reset());

// Connecting.

test("the first frame holds connect and every subscribe, before any reply", async () => {
  const gateway = makeGateway();
  watch(gateway, "a");
  watch(gateway, "b");
  gateway.connect();
  await settled();
  FakeSocket.last.onopen();
  assert.equal(FakeSocket.last.frames.length, 1);
  const [connect, ...subscribes] = FakeSocket.last.commands;
  assert.equal(connect.connect.token, "token-1");
  assert.deepEqual(subscribes.map(({ subscribe }) => subscribe.channel), ["a", "b"]);
  assert.equal(new Set(FakeSocket.last.commands.map(({ id }) => id)).size, 3);
});

test("the phases are told as they come", async () => {
  await connected();
  assert.deepEqual(states.map(({ phase }) => phase), ["connecting", "connected"]);
});

test("a server that doesn't answer is given up and tried again", async () => {
  const gateway = makeGateway();
  gateway.connect();
  await settled();
  FakeSocket.last.onopen();
  mock.timers.tick(10_000);
  assert.equal(gateway.state.phase, "waiting");
  assert.equal(gateway.state.code, Code.TIMEOUT);
  assert.ok(FakeSocket.last.closed);
});

test("a token that can't be had ends the attempts, one that can't be had now doesn't", async () => {
  const refused = makeGateway({ getToken: () => Promise.reject(new GatewayError(Code.TOKEN_UNAVAILABLE, "no", false)) });
  refused.connect();
  await settled();
  assert.equal(refused.state.phase, "disconnected");
  assert.equal(refused.state.reason, "no");
  const unreachable = makeGateway({ getToken: () => Promise.reject(new TypeError("fetch failed")) });
  unreachable.connect();
  await settled();
  assert.equal(unreachable.state.phase, "waiting");
  assert.equal(FakeSocket.made.length, 0);
});

test("an expired token is replaced at the next attempt, a good one is kept", async () => {
  const gateway = makeGateway();
  gateway.connect();
  await settled();
  FakeSocket.last.onopen();
  FakeSocket.last.refuses("connect", { code: Code.TOKEN_EXPIRED });
  assert.equal(gateway.state.phase, "waiting");
  gateway.retryNow();
  await settled();
  FakeSocket.last.accepts();
  assert.equal(FakeSocket.last.commands[0].connect.token, "token-2");
  FakeSocket.last.drops();
  gateway.retryNow();
  await settled();
  FakeSocket.last.accepts();
  assert.equal(FakeSocket.last.commands[0].connect.token, "token-2");
});

test("a token that the server rejects is final, and connecting again asks for another", async () => {
  const gateway = await connected();
  FakeSocket.last.drops(3500, '{"reason":"invalid token","reconnect":false}');
  assert.equal(gateway.state.phase, "disconnected");
  assert.equal(gateway.state.reason, "invalid token");
  gateway.connect();
  await settled();
  FakeSocket.last.accepts();
  assert.equal(FakeSocket.last.commands[0].connect.token, "token-2");
});

test("a permanent error to connect is final, a temporary one isn't", async () => {
  for (const [temporary, phase] of /** @type {const} */ ([[false, "disconnected"], [true, "waiting"]])) {
    const gateway = makeGateway();
    gateway.connect();
    await settled();
    FakeSocket.last.onopen();
    FakeSocket.last.refuses("connect", { code: 103, temporary });
    assert.equal(gateway.state.phase, phase);
  }
});

test("the token is refreshed before it expires, again and again", async () => {
  await connected({}, { expires: true, ttl: 60, ping: 0 });
  mock.timers.tick(53_999);
  assert.deepEqual(FakeSocket.last.sent("refresh"), []);
  mock.timers.tick(1);
  await settled();
  assert.equal(FakeSocket.last.sent("refresh")[0].refresh.token, "token-2");
  FakeSocket.last.answers("refresh", { expires: true, ttl: 1_000 });
  await settled();
  mock.timers.tick(990_000);
  await settled();
  assert.equal(FakeSocket.last.sent("refresh")[1].refresh.token, "token-3");
});

// Losing the connection.

test("a close is read from its JSON reason, else from its code", () => {
  assert.deepEqual(closeVerdict(3001, '{"reason":"shutdown","reconnect":true,"retry":4180}'), {
    code: 3001, reason: "shutdown", reconnect: true, retry: 4180,
  });
  assert.equal(closeVerdict(3500, '{"reason":"x","reconnect":true}').reconnect, true);
  assert.equal(closeVerdict(3001, '{"reason":"x","reconnect":false}').reconnect, false);
  assert.equal(closeVerdict(3001, '{"reason":"x","reconnect":true,"retry":-1}').retry, undefined);
  for (const [code, reconnect] of /** @type {const} */ ([
    [1000, true], [1006, true], [1009, false], [3000, true], [3499, true], [3500, false], [3999, false],
    [4000, true], [4499, true], [4500, false], [4999, false],
  ])) {
    assert.equal(closeVerdict(code, "").reconnect, reconnect, `code ${code}`);
    assert.equal(closeVerdict(code, "null").reconnect, reconnect, `code ${code}`);
  }
});

test("delays grow to a ceiling, with full jitter", () => {
  assert.equal(backoffDelay(0, 0.999999), BACKOFF.minMs);
  assert.equal(backoffDelay(1, 0.5), BACKOFF.minMs);
  for (const attempt of [0, 1, 5, 100, 5_000]) {
    assert.equal(backoffDelay(attempt, 0), 0);
    assert.ok(backoffDelay(attempt, 0.999999) <= BACKOFF.maxMs);
  }
  assert.equal(backoffDelay(5_000, 0.999999), BACKOFF.maxMs);
});

test("the delay that the server asks for is kept to the millisecond", async () => {
  const gateway = await connected();
  FakeSocket.last.drops(3001, '{"reason":"shutdown","reconnect":true,"retry":4180}');
  assert.equal(gateway.state.retryAt, 1_700_000_004_180);
  mock.timers.tick(4_179);
  assert.equal(FakeSocket.made.length, 1);
  mock.timers.tick(1);
  await settled();
  assert.equal(FakeSocket.made.length, 2);
});

test("retrying now doesn't wait, and leaves no second attempt behind", async () => {
  const gateway = await connected();
  FakeSocket.last.drops(3001, '{"reason":"shutdown","reconnect":true,"retry":4180}');
  gateway.retryNow();
  await settled();
  FakeSocket.last.accepts();
  mock.timers.tick(5_000);
  assert.equal(FakeSocket.made.length, 2);
  assert.equal(gateway.state.phase, "connected");
});

test("after a final close nothing is tried", async () => {
  const gateway = await connected();
  FakeSocket.last.drops(3503, '{"reason":"force disconnect","reconnect":false}');
  mock.timers.tick(100_000);
  assert.equal(FakeSocket.made.length, 1);
  assert.equal(gateway.state.phase, "disconnected");
});

test("failures count on until a connection has been stable", async () => {
  const gateway = await connected();
  for (const expected of [1, 2, 3]) {
    FakeSocket.last.drops();
    assert.equal(gateway.state.attempt, expected);
    gateway.retryNow();
    await settled();
    FakeSocket.last.accepts();
  }
  mock.timers.tick(10_000);
  FakeSocket.last.drops();
  assert.equal(gateway.state.attempt, 1);
});

test("silence beyond the ping interval is a loss, any frame counts as life", async () => {
  const gateway = await connected();
  mock.timers.tick(34_000);
  FakeSocket.last.says({});
  mock.timers.tick(34_000);
  assert.equal(gateway.state.phase, "connected");
  mock.timers.tick(1_000);
  assert.equal(gateway.state.phase, "waiting");
  assert.equal(gateway.state.code, Code.NO_PING);
});

test("a ping is answered only if the server wants it", async () => {
  await connected();
  FakeSocket.last.says({});
  assert.equal(FakeSocket.last.frames.at(-1), "{}");
  await connected({}, { pong: false });
  FakeSocket.last.says({});
  assert.notEqual(FakeSocket.last.frames.at(-1), "{}");
});

test("a probe finds a dead connection, and not a living one", async () => {
  const gateway = await connected();
  gateway.probe();
  FakeSocket.last.answers("ping");
  await settled();
  mock.timers.tick(4_000);
  await settled();
  assert.equal(gateway.state.phase, "connected");
  gateway.probe();
  mock.timers.tick(4_000);
  await settled();
  assert.equal(gateway.state.phase, "waiting");
});

test("what an old socket says has no effect", async () => {
  const gateway = await connected();
  const old = FakeSocket.last;
  const events = watch(gateway);
  old.answers("subscribe", { recoverable: true, epoch: "e", offset: 0 });
  old.drops();
  gateway.retryNow();
  await settled();
  FakeSocket.last.accepts();
  old.says(pub(1));
  old.drops(3500, '{"reason":"late","reconnect":false}');
  assert.equal(gateway.state.phase, "connected");
  assert.deepEqual(events.map(([event]) => event), ["subscribed"]);
});

test("who waits for an answer learns of the loss, when the state says so already", async () => {
  const gateway = await connected();
  const answer = gateway.publish("room", "x").catch((error) => [error.code, error.temporary, gateway.state.phase]);
  FakeSocket.last.drops();
  assert.deepEqual(await answer, [Code.NOT_CONNECTED, true, "waiting"]);
  await assert.rejects(gateway.publish("room", "x"), { code: Code.NOT_CONNECTED });
});

// Commands.

test("answers find their commands in any order", async () => {
  const gateway = await connected();
  const first = gateway.publish("room", 1, "key");
  const second = gateway.history("room", { limit: 1 });
  const [, publish, history] = FakeSocket.last.commands;
  assert.deepEqual(publish.publish, { channel: "room", data: 1, idempotency_key: "key" });
  FakeSocket.last.says({ id: history.id, history: {} }, { id: publish.id, publish: { offset: 7, epoch: "e" } });
  assert.deepEqual(await first, { offset: 7, epoch: "e" });
  assert.deepEqual(await second, { publications: [], epoch: "", offset: 0 });
});

test("errors carry code and whether to try again; silence is temporary", async () => {
  const gateway = await connected();
  const refused = gateway.publish("room", 1);
  FakeSocket.last.refuses("publish", { code: 111, temporary: true });
  await assert.rejects(refused, { code: 111, temporary: true });
  const unanswered = gateway.publishEphemeral("room", 1);
  assert.equal(FakeSocket.last.sent("publish").at(-1).publish.ephemeral, true);
  mock.timers.tick(10_000);
  await assert.rejects(unanswered, { code: Code.TIMEOUT, temporary: true });
  FakeSocket.last.answers("publish", {}); // Late: ignored.
});

// Subscriptions.

test("what was missed is asked for by position, and each offset is handed over once", async () => {
  const gateway = await connected();
  const events = watch(gateway);
  FakeSocket.last.answers("subscribe", { recoverable: true, epoch: "e", offset: 5 });
  FakeSocket.last.says(pub(6), pub(7), pub(7));
  FakeSocket.last.drops();
  gateway.retryNow();
  await settled();
  FakeSocket.last.accepts();
  const { recover, epoch, offset } = FakeSocket.last.sent("subscribe")[0].subscribe;
  assert.deepEqual({ recover, epoch, offset }, { recover: true, epoch: "e", offset: 7 });
  const publications = [{ offset: 8, data: "m8" }, { offset: 9, data: "m9" }];
  FakeSocket.last.answers("subscribe", {
    recoverable: true, was_recovering: true, recovered: true, epoch: "e", offset: 7, publications,
  });
  FakeSocket.last.says(pub(9), pub(10));
  assert.deepEqual(events.filter(([event]) => event === "publication").map(([, at]) => at), [6, 7, 8, 9, 10]);
});

test("after a position that can't be recovered it goes on from the new one", async () => {
  const gateway = await connected();
  const events = watch(gateway);
  FakeSocket.last.answers("subscribe", { recoverable: true, epoch: "e", offset: 5 });
  FakeSocket.last.drops();
  gateway.retryNow();
  await settled();
  FakeSocket.last.accepts();
  FakeSocket.last.answers("subscribe", {
    recoverable: true, was_recovering: true, recovered: false, epoch: "f", offset: 2, gap: { from: 6, to: 9 },
  });
  FakeSocket.last.says(pub(3));
  assert.deepEqual(events.slice(1), [
    ["subscribed", { wasRecovering: true, recovered: false, gap: { from: 6, to: 9 }, epoch: "f", offset: 2 }],
    ["publication", 3],
  ]);
});

test("a hole makes it subscribe again from the last good position", async () => {
  const gateway = await connected();
  const events = watch(gateway);
  FakeSocket.last.answers("subscribe", { recoverable: true, epoch: "e", offset: 5 });
  FakeSocket.last.says(pub(6), pub(8), pub(9));
  assert.equal(FakeSocket.last.sent("unsubscribe").length, 1);
  mock.timers.tick(BACKOFF.minMs);
  assert.equal(FakeSocket.last.sent("subscribe").at(-1).subscribe.offset, 6);
  const publications = [7, 8, 9].map((offset) => ({ offset, data: "" }));
  FakeSocket.last.answers("subscribe", { recoverable: true, recovered: true, epoch: "e", offset: 6, publications });
  assert.deepEqual(events.filter(([event]) => event === "publication").map(([, at]) => at), [6, 7, 8, 9]);
});

test("ephemeral publications, joins and leaves are handed over as they come", async () => {
  const gateway = await connected();
  const events = watch(gateway);
  FakeSocket.last.answers("subscribe", { recoverable: true, epoch: "e", offset: 5 });
  const info = { user: "ada", client: "x" };
  FakeSocket.last.says(
    { push: { channel: "room", join: { info } } },
    { push: { channel: "room", pub: { data: "typing", info } } },
    { push: { channel: "room", leave: { info } } },
    { push: { channel: "other", pub: { data: "foreign" } } },
  );
  assert.deepEqual(events.slice(1), [["join", "ada"], ["publication", "typing"], ["leave", "ada"]]);
});

test("the server's unsubscribe is obeyed by its code", async () => {
  const gateway = await connected();
  const events = watch(gateway);
  FakeSocket.last.answers("subscribe", { recoverable: true, epoch: "e", offset: 5 });
  FakeSocket.last.says({ push: { channel: "room", unsubscribe: { code: 2500, reason: "insufficient state" } } });
  mock.timers.tick(BACKOFF.minMs);
  FakeSocket.last.answers("subscribe", { recoverable: true, recovered: true, epoch: "e", offset: 5 });
  FakeSocket.last.says({ push: { channel: "room", unsubscribe: { code: 2000, reason: "server" } } });
  mock.timers.tick(BACKOFF.maxMs);
  assert.equal(FakeSocket.last.sent("subscribe").length, 2);
  assert.deepEqual(events.at(-1), ["ended", 2000]);
});

test("a refused subscription is tried again only if the refusal is temporary", async () => {
  const gateway = await connected();
  const events = watch(gateway);
  FakeSocket.last.refuses("subscribe", { code: 100, temporary: true });
  mock.timers.tick(BACKOFF.minMs);
  FakeSocket.last.refuses("subscribe", { code: 103 });
  assert.deepEqual(events, [["ended", 103]]);
  mock.timers.tick(BACKOFF.maxMs);
  assert.equal(FakeSocket.last.sent("subscribe").length, 2);
});

test("a subscription without an answer starts over, so that the server can't refuse a second one", async () => {
  const gateway = await connected();
  watch(gateway);
  mock.timers.tick(10_000);
  assert.equal(FakeSocket.last.sent("unsubscribe").length, 1);
  mock.timers.tick(BACKOFF.minMs);
  assert.equal(FakeSocket.last.sent("subscribe").length, 2);
});

test("what was left isn't heard of again", async () => {
  const gateway = await connected();
  const events = watch(gateway);
  gateway.unsubscribe("room");
  FakeSocket.last.answers("subscribe", { recoverable: true, epoch: "e", offset: 5 });
  FakeSocket.last.says(pub(6));
  assert.deepEqual(events, []);
  FakeSocket.last.drops();
  gateway.retryNow();
  await settled();
  FakeSocket.last.accepts();
  assert.deepEqual(FakeSocket.last.sent("subscribe"), []);
});
