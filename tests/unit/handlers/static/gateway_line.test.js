// @ts-check
/** The gateway over a socket that gets itself another line when its own is lost. */
import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";

import { Code, GatewayError } from "../../../../handlers/static/errors.js";
import { Gateway } from "../../../../handlers/static/gateway.js";
import { FakeLine, FakeSocket, settled } from "./fake_socket.js";

const START = 1_700_000_000_000;

/** @type {import("../../../../handlers/static/gateway.js").ConnectionState[]} */
let states = [];

const line = () => /** @type {FakeLine} */ (FakeSocket.last);
const phases = () => states.map(({ phase }) => phase);

async function opening(options = {}) {
  const gateway = new Gateway("ws://test/connection/websocket", {
    getToken: async () => "token",
    onState: (state) => states.push(state),
    websocket: FakeLine,
    random: () => 0.5,
    ...options,
  });
  gateway.connect();
  await settled();
  return gateway;
}

async function connected(options = {}, result = {}) {
  const gateway = await opening(options);
  line().accepts(result);
  states = [];
  return gateway;
}

/** @param {{code: number, reason: string}} error */
function away(error = { code: Code.LOST, reason: "" }) {
  line().becomes({ state: "waiting", retryAt: Date.now() + 3_000, error });
}

beforeEach(() => {
  mock.timers.enable({ apis: ["setTimeout", "Date"], now: START });
  FakeSocket.reset();
  states = [];
});

afterEach(() => mock.timers.reset());

test("without its line the connection lives on, and nothing is subscribed again", async () => {
  const gateway = await connected();
  gateway.subscribe("room", {});
  line().answers("subscribe", { recoverable: true, epoch: "e", offset: 5 });
  away();
  assert.equal(gateway.state.retryAt, START + 3_000);
  line().becomes({ state: "resuming", retryAt: null });
  line().becomes({ state: "connected", error: null });
  assert.deepEqual(phases(), ["waiting", "resuming", "connected"]);
  assert.ok(states.every(({ alive }) => alive));
  assert.equal(FakeSocket.made.length, 1);
  assert.equal(line().sent("subscribe").length, 1);
});

test("when it ceased to be connected is known until it is again", async () => {
  const gateway = await connected();
  assert.equal(gateway.state.since, undefined);
  mock.timers.tick(1_000);
  away();
  mock.timers.tick(1_000);
  line().becomes({ state: "resuming" });
  assert.equal(gateway.state.since, START + 1_000);
  line().becomes({ state: "connected" });
  assert.equal(gateway.state.since, undefined);
});

test("what is asked meanwhile is asked, and waits as long as it takes", async () => {
  const gateway = await connected({}, { ping: 0 });
  const before = gateway.publish("room", 1);
  away();
  const during = gateway.publish("room", 2);
  mock.timers.tick(300_000);
  line().becomes({ state: "connected" });
  const [first, second] = line().sent("publish");
  line().says({ id: first.id, publish: { offset: 1 } }, { id: second.id, publish: { offset: 2 } });
  assert.deepEqual(await Promise.all([before, during]), [{ offset: 1 }, { offset: 2 }]);
});

test("what nobody will miss isn't kept until the line is back", async () => {
  const gateway = await connected();
  away();
  await assert.rejects(gateway.publishEphemeral("room", "typing"), { code: Code.NOT_CONNECTED });
  assert.deepEqual(line().sent("publish"), []);
});

test("a session that couldn't be saved is a lost connection", async () => {
  const gateway = await connected();
  away();
  const unanswered = assert.rejects(gateway.publish("room", 1), { code: Code.NOT_CONNECTED });
  line().drops(Code.LOST, "session gone: expired");
  await unanswered;
  assert.equal(gateway.state.phase, "waiting");
  assert.equal(gateway.state.alive, false);
  await assert.rejects(gateway.publish("room", 2), { code: Code.NOT_CONNECTED });
});

test("a socket that isn't to come yet has all the time until then", async () => {
  const gateway = await opening();
  line().becomes({ state: "waiting", retryAt: START + 60_000 });
  assert.deepEqual([gateway.state.phase, gateway.state.alive], ["waiting", false]);
  mock.timers.tick(60_000);
  line().becomes({ state: "connecting", retryAt: null });
  assert.equal(gateway.state.phase, "connecting");
  mock.timers.tick(9_999);
  assert.equal(gateway.state.phase, "connecting");
  mock.timers.tick(1);
  assert.equal(gateway.state.code, Code.TIMEOUT);
});

test("retrying now is the line's business, and a moment that the server has given is kept", async () => {
  const gateway = await connected();
  away();
  line().promised = true;
  gateway.retryNow();
  assert.deepEqual([gateway.state.phase, gateway.state.promised], ["waiting", true]);
  line().promised = false;
  gateway.retryNow();
  assert.deepEqual([gateway.state.phase, gateway.state.promised], ["resuming", false]);
  gateway.retryNow();
  assert.equal(line().retries, 1);
  assert.equal(FakeSocket.made.length, 1);
});

test("the reason is what it began with, unless there is a better one", async () => {
  const gateway = await connected();
  away({ code: Code.SHUTDOWN, reason: '{"reason":"shutdown","reconnect":true}' });
  assert.deepEqual([gateway.state.code, gateway.state.reason], [Code.SHUTDOWN, "shutdown"]);
  line().becomes({ state: "resuming" });
  away({ code: Code.LOST, reason: "" });
  assert.equal(gateway.state.code, Code.SHUTDOWN);
  away({ code: 3013, reason: "too many requests" });
  assert.equal(gateway.state.code, 3013);
  line().becomes({ state: "connected", error: null });
  assert.equal(gateway.state.code, undefined);
});

test("quality and round trip are handed on", async () => {
  const gateway = await connected();
  line().becomes({ rtt: 43, quality: "good" });
  assert.deepEqual([gateway.state.rtt, gateway.state.quality], [43, "good"]);
});

test("a question without an answer is shown, the answer ends that, a ping doesn't", async () => {
  const gateway = await connected();
  const answered = gateway.publish("room", 1);
  mock.timers.tick(3_999);
  assert.equal(gateway.state.silent, false);
  mock.timers.tick(1);
  assert.deepEqual([gateway.state.phase, gateway.state.silent], ["connected", true]);
  line().says({});
  assert.equal(gateway.state.silent, true);
  line().answers("publish", { offset: 1 });
  assert.equal(gateway.state.silent, false);
  await answered;
});

test("a line that is known to be lost isn't silent", async () => {
  const gateway = await connected();
  gateway.probe(500);
  mock.timers.tick(500);
  assert.equal(gateway.state.silent, true);
  away();
  assert.equal(gateway.state.silent, false);
  mock.timers.tick(10_000);
  line().becomes({ state: "connected" });
  assert.deepEqual(phases().filter((phase) => phase === "connected").length, 2);
  assert.equal(gateway.state.silent, false);
});

test("a probe asks, but leaves the line alone", async () => {
  const gateway = await connected();
  gateway.probe();
  mock.timers.tick(4_000);
  await settled();
  assert.equal(gateway.state.phase, "connected");
  away();
  gateway.probe();
  assert.equal(line().retries, 0);
});

test("a page that was asleep listens for a moment before it calls the server silent", async () => {
  const gateway = await connected();
  // As timers do after a sleep: 35 s have passed for them, an hour for the clock.
  mock.timers.setTime(START + 3_600_000);
  mock.timers.tick(0);
  assert.equal(gateway.state.phase, "connected");
  line().says({});
  mock.timers.tick(2_000);
  assert.equal(gateway.state.phase, "connected");
  mock.timers.setTime(START + 7_200_000);
  mock.timers.tick(0);
  assert.equal(gateway.state.phase, "connected");
  mock.timers.tick(2_000);
  assert.deepEqual([gateway.state.phase, gateway.state.code], ["waiting", Code.NO_PING]);
});

test("a token that can't be renewed just now is asked for again", async () => {
  let tokens = 0;
  const getToken = async () => {
    tokens += 1;
    if (tokens === 2) throw new GatewayError(Code.TOKEN_UNAVAILABLE, "away", true);
    return `token-${tokens}`;
  };
  await connected({ getToken }, { expires: true, ttl: 60, ping: 0 });
  mock.timers.tick(54_000);
  await settled();
  assert.deepEqual(line().sent("refresh"), []);
  mock.timers.tick(5_000);
  await settled();
  assert.deepEqual(line().sent("refresh").map(({ refresh }) => refresh.token), ["token-3"]);
});
