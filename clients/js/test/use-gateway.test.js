// @ts-check
/** The hook in real React, over the real SDK. */

import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";

import { Centrifuge } from "centrifuge";
import { StrictMode, createElement, useEffect } from "react";
import { act, create } from "react-test-renderer";

import { ResumableWebSocket } from "../src/index.js";
import { useGateway } from "../src/use-gateway.js";
import { FakeSocket } from "./support/fake-socket.js";
import { VirtualClock, settled } from "./support/virtual-clock.js";

// React wants to be told that it is under test; and says on each use that this renderer will go.
/** @type {any} */ (globalThis).IS_REACT_ACT_ENVIRONMENT = true;
const { error } = console;

/** @type {VirtualClock} */
let clock;
/** @type {typeof ResumableWebSocket} */
let Socket;
/** @type {Centrifuge} */
let client;
/** @type {ReturnType<typeof useGateway>} */
let gateway;
let renders = 0;
/** @type {import("react-test-renderer").ReactTestRenderer[]} */
let trees = [];

beforeEach(() => {
  console.error = (...said) => `${said[0]}`.includes("react-test-renderer is deprecated") || error(...said);
  FakeSocket.reset();
  clock = new VirtualClock();
  Socket = ResumableWebSocket.with({ WebSocket: FakeSocket, clock, window: null, random: () => 0.5 });
  client = new Centrifuge("wss://chat.example/connection/websocket", { ...Socket.sdkOptions(), token: "token" });
  renders = 0;
  trees = [];
});

afterEach(() => {
  act(() => trees.forEach((tree) => tree.unmount()));
  client.disconnect();
  console.error = error;
});

/** @param {{effect?: () => void}} props */
function Probe({ effect = () => {} }) {
  gateway = useGateway(client, Socket);
  renders += 1;
  useEffect(effect, [effect]);
  return createElement("output", null, gateway.state);
}

/** @param {import("react").ReactElement} element */
async function render(element = createElement(Probe)) {
  await act(async () => {
    trees.push(create(element));
  });
}

/** Lets something happen, and React take note. @param {() => unknown} happening */
async function happens(happening) {
  await act(async () => {
    await happening();
    await settled();
  });
}

/** The commands that reached the server, of one method. @param {string} method */
function commands(method) {
  return FakeSocket.last.payload.flatMap((frame) => frame.split("\n").map((/** @type {string} */ line) => JSON.parse(line)))
    .filter((command) => method in command);
}

/** @param {string} method @param {object} result */
function answers(method, result = {}) {
  FakeSocket.last.says(JSON.stringify({ id: commands(method).at(-1).id, [method]: result }));
}

async function connect() {
  await happens(() => client.connect());
  await happens(() => FakeSocket.last.accepts());
  await happens(() => answers("connect", { client: "c1", version: "", ping: 25, pong: true }));
}

test("it shows a connection's life", async () => {
  await render();
  assert.deepEqual(
    [gateway.state, gateway.quality, gateway.rtt, gateway.retryAt, gateway.error],
    ["disconnected", null, null, null, null],
  );
  await happens(() => client.connect());
  assert.equal(gateway.state, "connecting");
  await connect();
  assert.equal(gateway.state, "connected");
  await happens(() => FakeSocket.last.frame({ ping: { received: 1, sent: 1, rtt: 43, quality: "good" } }));
  assert.deepEqual([gateway.quality, gateway.rtt], ["good", 43]);

  await happens(() => FakeSocket.last.closes(1006));
  assert.deepEqual([gateway.state, gateway.error], ["waiting", { code: 1006, reason: "" }]);
  assert.equal(gateway.retryAt, clock.epoch() + 250);
  assert.equal(client.state, "connected");
  await happens(() => gateway.retryNow());
  assert.deepEqual([gateway.state, gateway.retryAt], ["resuming", null]);
  await happens(() => FakeSocket.last.accepts({ received: 1 }));
  assert.deepEqual([gateway.state, gateway.error], ["connected", null]);

  await happens(() => FakeSocket.last.closes(3503, '{"reason":"force disconnect","reconnect":false}'));
  assert.deepEqual([gateway.state, gateway.error], ["disconnected", { code: 3503, reason: "force disconnect" }]);
  assert.equal(trees[0]?.root.findByType("output").children[0], "disconnected");
});

test("where the SDK waits by itself it can be hurried", async () => {
  await render();
  await connect();
  await happens(() => FakeSocket.last.closes(3011, '{"reason":"force reconnect","reconnect":true}'));
  assert.deepEqual([gateway.state, gateway.error], ["connecting", { code: 3011, reason: "force reconnect" }]);
  await happens(() => gateway.retryNow());
  assert.equal(FakeSocket.made.length, 2);
  assert.equal(gateway.error?.code, 3011);
});

test("it renders when something has changed, and only then", async () => {
  await render();
  await connect();
  const before = renders;
  const ping = { received: 1, sent: 1, rtt: 43, quality: "good" };
  await happens(() => FakeSocket.last.frame({ ping }));
  await happens(() => FakeSocket.last.frame({ ping }));
  await happens(() => FakeSocket.last.frame({ ping }));
  assert.equal(renders, before + 1);
  const { retryNow, subscribe } = gateway;
  await happens(() => FakeSocket.last.closes(1006));
  assert.equal(gateway.retryNow, retryNow);
  assert.equal(gateway.subscribe, subscribe);
});

test("all who look at one client see the same, and those who come later too", async () => {
  await render();
  await connect();
  act(() => trees.splice(0).forEach((tree) => tree.unmount()));
  await happens(() => FakeSocket.last.closes(1006));
  await render();
  assert.equal(gateway.state, "waiting");
});

test("a subscription is shared, and ends with its last user", async () => {
  /** @type {string[]} */
  const heard = [];
  await render();
  await connect();
  const first = gateway.subscribe("room", { publication: ({ data }) => heard.push(`first ${data}`) }, { recoverable: true });
  const second = gateway.subscribe("room", { publication: ({ data }) => heard.push(`second ${data}`) });
  assert.deepEqual(commands("subscribe").map(({ subscribe }) => [subscribe.channel, subscribe.recoverable]), [["room", true]]);
  await happens(() => answers("subscribe"));
  await happens(() => FakeSocket.last.says('{"push":{"channel":"room","pub":{"data":"a"}}}'));
  first();
  first();
  await happens(() => FakeSocket.last.says('{"push":{"channel":"room","pub":{"data":"b"}}}'));
  assert.deepEqual(heard, ["first a", "second a", "second b"]);
  assert.deepEqual(commands("unsubscribe"), []);
  second();
  await settled();
  assert.equal(commands("unsubscribe").length, 1);
  assert.equal(client.getSubscription("room"), null);
});

test("an effect that runs twice, as in strict mode, subscribes once", async () => {
  await render();
  await connect();
  const effect = () => gateway.subscribe("room", {});
  await render(createElement(StrictMode, null, createElement(Probe, { effect })));
  assert.equal(commands("subscribe").length, 1);
  assert.equal(commands("unsubscribe").length, 0);
  act(() => trees.pop()?.unmount());
  await settled();
  assert.equal(commands("unsubscribe").length, 1);
});
