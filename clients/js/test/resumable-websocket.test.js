// @ts-check
import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { ResumableWebSocket } from "../src/index.js";
import { FakeSocket } from "./support/fake-socket.js";
import { FakeWindow } from "./support/fake-window.js";
import { VirtualClock, settled } from "./support/virtual-clock.js";

const URL_ = "wss://chat.example/connection/websocket";

/** @type {VirtualClock} */
let clock;
/** @type {FakeWindow} */
let window;
/** @type {typeof ResumableWebSocket} */
let Socket;

beforeEach(() => {
  FakeSocket.reset();
  clock = new VirtualClock();
  window = new FakeWindow();
  Socket = ResumableWebSocket.with({ WebSocket: FakeSocket, clock, window, random: () => 0.5 });
});

/** A socket and everything that it dispatches. */
async function made(url = URL_, /** @type {string[] | undefined} */ protocols = undefined) {
  const socket = new Socket(url, protocols);
  /** @type {any[]} */
  const events = [];
  for (const type of ["open", "message", "error", "close"]) {
    socket.addEventListener(type, (/** @type {any} */ event) => {
      if (type === "message") events.push(event.data);
      else events.push(type === "close" ? ["close", event.code, event.reason, event.wasClean] : type);
    });
  }
  await settled();
  return { socket, events };
}

/** One with a session, after the first answer. */
async function connected() {
  const { socket, events } = await made();
  FakeSocket.last.accepts();
  socket.send("connect");
  FakeSocket.last.says("connected");
  events.length = 0;
  return { socket, events };
}

test("it has a WebSocket's interface", async () => {
  const { socket } = await made(`${URL_}?a=1#fragment`);
  assert.deepEqual([Socket.CONNECTING, Socket.OPEN, Socket.CLOSING, Socket.CLOSED], [0, 1, 2, 3]);
  const { CONNECTING, OPEN, CLOSING, CLOSED } = /** @type {any} */ (socket);
  assert.deepEqual([CONNECTING, OPEN, CLOSING, CLOSED], [0, 1, 2, 3]);
  assert.equal(socket.url, `${URL_}?a=1`);
  assert.equal(FakeSocket.last.url, `${URL_}?a=1`);
  assert.deepEqual([socket.readyState, socket.binaryType, socket.protocol, socket.extensions], [0, "blob", "", ""]);
  socket.binaryType = "arraybuffer";
  socket.binaryType = /** @type {any} */ ("nonsense");
  assert.equal(socket.binaryType, "arraybuffer");
  assert.throws(() => socket.send("x"), { name: "InvalidStateError" });
  assert.throws(() => socket.close(1001), { name: "InvalidAccessError" });
  assert.throws(() => socket.close(3000, "€".repeat(42)), { name: "SyntaxError" });
  assert.throws(() => new Socket("ws://["), { name: "SyntaxError" });
  assert.throws(() => new Socket("ftp://chat.example/"), { name: "SyntaxError" });
  assert.equal(new Socket("/connection").url, "wss://chat.example/connection");
});

test("handlers can be properties, one each, as well as listeners", async () => {
  const { socket } = await made();
  /** @type {string[]} */
  const heard = [];
  socket.onopen = () => heard.push("former");
  socket.onopen = () => heard.push("open");
  socket.onmessage = ({ data }) => heard.push(data);
  socket.onstatechange = () => {};
  FakeSocket.last.accepts();
  FakeSocket.last.says("hello");
  socket.onmessage = null;
  FakeSocket.last.says("unheard");
  socket.onclose = ({ code }) => heard.push(`closed ${code}`);
  socket.onerror = () => heard.push("error");
  FakeSocket.last.closes(3503);
  assert.deepEqual(heard, ["open", "hello", "closed 3503"]);
  assert.equal(socket.onmessage, null);
  assert.equal(typeof socket.onclose, "function");
});

test("what the layer above sees is one socket, over however many below", async () => {
  const { socket, events } = await connected();
  FakeSocket.last.closes(1006);
  assert.deepEqual([socket.state, socket.readyState], ["waiting", 1]);
  socket.send("meanwhile");
  assert.equal(socket.bufferedAmount, "connectmeanwhile".length);
  assert.equal(socket.retryAt, clock.epoch() + 250);
  await clock.advance(250);
  assert.equal(FakeSocket.made.length, 2);
  assert.equal(socket.state, "resuming");
  FakeSocket.last.accepts({ generation: 2, received: 1 });
  assert.deepEqual(FakeSocket.last.payload, ["meanwhile"]);
  assert.deepEqual([socket.state, socket.bufferedAmount], ["connected", 0]);
  FakeSocket.last.says("answer");
  assert.deepEqual(events, ["answer"]);
});

test("the SDK's pongs stay here, and it gets pings of ours", async () => {
  const { socket, events } = await connected();
  FakeSocket.last.frame({ ping: { received: 1, sent: 1, rtt: 43, quality: "fair", retain: 63_000 } });
  socket.send("{}");
  assert.deepEqual(events, ["{}"]);
  assert.deepEqual(FakeSocket.last.asked("pong"), { received: 1, sent: 1 });
  assert.deepEqual(FakeSocket.last.payload, ["connect"]);
  assert.deepEqual([socket.rtt, socket.quality], [43, "fair"]);
});

test("it tells when anything of its state has changed", async () => {
  const { socket } = await made();
  /** @type {any[]} */
  const states = [];
  socket.addEventListener("statechange", () => states.push([socket.state, socket.quality, socket.retryAt !== null]));
  FakeSocket.last.accepts();
  FakeSocket.last.says("connected");
  FakeSocket.last.frame({ ping: { received: 0, sent: 1, rtt: 43, quality: "good" } });
  FakeSocket.last.closes(1006);
  socket.retryNow();
  assert.deepEqual(states, [
    ["connecting", null, false], ["connected", null, false], ["connected", "good", false],
    ["waiting", "good", true], ["resuming", "good", false],
  ]);
  assert.equal(socket.error?.code, 1006);
});

test("closing leaves the session and tells later", async () => {
  const { socket, events } = await connected();
  const below = FakeSocket.last;
  socket.close(3000, "bye");
  assert.deepEqual([socket.readyState, socket.state], [2, "closed"]);
  assert.deepEqual(events, []);
  assert.equal(below.sent.at(-1), '{"session":{"leave":{}}}');
  assert.equal(below.closedWith?.code, 1000);
  socket.send("too late");
  socket.close();
  await settled();
  assert.deepEqual(events, [["close", 3000, "bye", true]]);
  assert.equal(socket.readyState, 3);
  assert.equal(clock.pending, 0);
});

test("closing before it is open is a failure, as with real sockets", async () => {
  const { socket, events } = await made();
  socket.close();
  await settled();
  assert.deepEqual(events, ["error", ["close", 1006, "", false]]);
  const other = new Socket(URL_);
  other.close();
  await settled();
  assert.equal(FakeSocket.made.length, 1);
});

test("a socket that can't be opened fails like a real one", async () => {
  const { events } = await made();
  FakeSocket.last.closes(1006);
  assert.deepEqual(events, ["error", ["close", 1006, "", false]]);

  Socket = ResumableWebSocket.with({ clock, window, WebSocket: class { constructor() { throw new Error("insecure"); } } });
  assert.deepEqual((await made()).events, ["error", ["close", 1006, "Error: insecure", false]]);
});

test("without a WebSocket it says so", () => {
  const { WebSocket } = globalThis;
  try {
    /** @type {any} */ (globalThis).WebSocket = undefined;
    assert.throws(() => new (ResumableWebSocket.with({}))(URL_), /give one/);
  } finally {
    globalThis.WebSocket = WebSocket;
  }
});

test("handlers may send and close in the middle of anything", async () => {
  const { socket, events } = await connected();
  socket.addEventListener("message", () => {
    socket.send("answer");
    socket.close();
  });
  FakeSocket.last.says("one");
  FakeSocket.last.says("two");
  await settled();
  assert.deepEqual(events, ["one", ["close", 1005, "", true]]);
  assert.deepEqual(FakeSocket.last.payload, ["connect", "answer"]);
});

test("a session that is gone leaves its open socket to the next", async () => {
  const { events } = await connected();
  FakeSocket.last.frame({ gone: { reason: "overflow" } });
  assert.deepEqual(events, [["close", 1006, "session gone: overflow", false]]);
  const below = FakeSocket.last;
  const { socket, events: next } = await made();
  assert.equal(FakeSocket.last, below);
  assert.deepEqual(next, ["open"]);
  below.accepts({ token: "another" });
  socket.send("connect");
  assert.deepEqual(below.payload, ["connect", "connect"]);
  assert.equal(socket.state, "connected");
});

test("a parked socket that was closed meanwhile is replaced without a word", async () => {
  await connected();
  FakeSocket.last.frame({ gone: { reason: "expired" } });
  const parked = FakeSocket.last;
  const { socket, events } = await made();
  socket.send("connect");
  parked.closes(3502, '{"reason":"stale","reconnect":false}');
  assert.equal(FakeSocket.made.length, 2);
  FakeSocket.last.accepts();
  assert.deepEqual(events, ["open"]);
  assert.deepEqual(FakeSocket.last.payload, ["connect"]);
});

test("nobody keeps a parked socket for ever, or for somebody else", async () => {
  await connected();
  FakeSocket.last.frame({ gone: { reason: "expired" } });
  const parked = FakeSocket.last;
  await made("wss://other.example/");
  assert.notEqual(FakeSocket.last, parked);
  await clock.advance(8_000);
  assert.equal(parked.closedWith?.code, 1000);
  await made();
  assert.equal(FakeSocket.made.length, 3);
});

test("the next socket keeps the moment that the last was given", async () => {
  const { events } = await made();
  FakeSocket.last.opens();
  FakeSocket.last.closes(3013, '{"reason":"too many requests","reconnect":true,"retry":4000}');
  assert.deepEqual(events.at(-1), ["close", 3013, '{"reason":"too many requests","reconnect":true,"retry":4000}', true]);
  await clock.advance(600);
  const { socket } = await made();
  assert.deepEqual([socket.state, socket.readyState, socket.retryAt], ["waiting", 0, clock.epoch() + 3_400]);
  assert.equal(socket.retryNow(), false);
  // The SDK loses its patience, and tries again.
  await clock.advance(2_000);
  socket.close();
  const { socket: later } = await made();
  assert.equal(FakeSocket.made.length, 1);
  await clock.advance(1_400);
  assert.equal(FakeSocket.made.length, 2);
  FakeSocket.last.accepts();
  assert.equal(later.state, "connected");
});

test("without sessions it is a plain socket", async () => {
  const { socket, events } = await made();
  FakeSocket.last.opens();
  socket.send("connect");
  FakeSocket.last.closes(3501, "bad request");
  assert.equal(FakeSocket.made.length, 2);
  FakeSocket.last.opens();
  assert.deepEqual(FakeSocket.last.sent, ["connect"]);
  FakeSocket.last.says("{}");
  socket.send("{}");
  assert.deepEqual(FakeSocket.last.sent, ["connect", "{}"]);
  assert.equal(socket.state, "connected");
  FakeSocket.last.closes(1006);
  assert.deepEqual(events, ["open", "{}", ["close", 1006, "", false]]);

  const { socket: next } = await made();
  FakeSocket.last.opens();
  next.send(new Uint8Array([1]));
  assert.deepEqual(FakeSocket.last.sent, [new Uint8Array([1])]);
  next.close(4000, "bye");
  assert.deepEqual(FakeSocket.last.closedWith, { code: 4000, reason: "bye" });

  await clock.advance(600_000);
  await made();
  FakeSocket.last.opens();
  assert.ok(FakeSocket.last.asked("open"));
});

test("binary protocols go over plain sockets", async () => {
  const { socket } = await made(URL_, ["centrifuge-protobuf"]);
  socket.binaryType = "arraybuffer";
  FakeSocket.last.opens();
  assert.deepEqual(FakeSocket.last.protocols, ["centrifuge-protobuf"]);
  assert.deepEqual([FakeSocket.last.sent, FakeSocket.last.binaryType], [[], "arraybuffer"]);
  await made(`${URL_}?cf_protocol=protobuf`);
  FakeSocket.last.opens();
  assert.deepEqual(FakeSocket.last.sent, []);
});

test("a session carries text only", async () => {
  const { socket } = await connected();
  assert.throws(() => socket.send(new Uint8Array([1])), TypeError);
});

test("offline it waits, and online it comes back at once", async () => {
  const { socket } = await connected();
  window.network(false);
  FakeSocket.last.closes(1006);
  await clock.advance(20_000);
  assert.deepEqual([socket.state, socket.retryAt, FakeSocket.made.length], ["waiting", null, 1]);
  window.network(true);
  assert.deepEqual([socket.state, FakeSocket.made.length], ["resuming", 2]);
});

test("a server on this machine needs no network", async () => {
  const { socket } = await made("ws://localhost:8000/");
  FakeSocket.last.accepts();
  FakeSocket.last.says("connected");
  window.network(false);
  FakeSocket.last.closes(1006);
  assert.equal(typeof socket.retryAt, "number");
});

test("a page that goes away leaves", async () => {
  await connected();
  window.page("pagehide", false);
  assert.equal(FakeSocket.last.sent.at(-1), '{"session":{"leave":{}}}');
  assert.equal(FakeSocket.last.closedWith?.code, 1000);
});

test("a page that is kept for later comes back to its session", async () => {
  const { socket, events } = await connected();
  window.page("pagehide", true);
  assert.equal(FakeSocket.last.closedWith?.code, 3012);
  assert.equal(socket.state, "waiting");
  window.page("pageshow", true);
  FakeSocket.last.accepts({ received: 1 });
  assert.equal(socket.state, "connected");
  assert.deepEqual(events, []);
});

test("a page that becomes visible looks whether a ping is missing", async () => {
  await connected();
  window.visibility(true);
  await clock.sleep(20_000);
  window.visibility(false);
  assert.equal(FakeSocket.made.length, 1);
  window.visibility(true);
  await clock.sleep(10_000);
  window.visibility(false);
  assert.equal(FakeSocket.made.length, 2);
});

test("a timer is not set anew for each message", async () => {
  const { socket } = await connected();
  let set = 0;
  const { setTimeout } = clock;
  clock.setTimeout = (...given) => {
    set += 1;
    return setTimeout.apply(clock, given);
  };
  for (let index = 0; index < 100; index += 1) FakeSocket.last.says("x");
  assert.equal(set, 0);
  await clock.advance(25_000);
  assert.equal(socket.state, "connected");
  await clock.advance(40_000);
  assert.notEqual(socket.state, "connected");
});

test("a class tells of its latest socket", async () => {
  const seen = /** @type {any[]} */ ([]);
  Socket.status.addEventListener("statechange", () => seen.push(Socket.status.state));
  assert.deepEqual([Socket.status.state, Socket.status.retryAt, Socket.status.error], ["closed", null, null]);
  const { socket } = await connected();
  FakeSocket.last.frame({ ping: { received: 1, sent: 1, rtt: 43, quality: "poor" } });
  assert.deepEqual([Socket.status.state, Socket.status.quality, Socket.status.rtt], ["connected", "poor", 43]);
  FakeSocket.last.closes(1006);
  assert.deepEqual([Socket.status.state, Socket.status.retryAt], ["waiting", socket.retryAt]);
  assert.equal(Socket.status.retryNow(), true);
  assert.equal(Socket.status.state, "resuming");
  assert.ok(seen.includes("waiting"));
  assert.notEqual(Socket.with().status, Socket.status);
});

test("the SDK is woken up where it waits by itself, and left alone otherwise", async () => {
  const { networkEventTarget: network, websocket } = Socket.sdkOptions();
  assert.equal(websocket, Socket);
  Socket.sdkOptions();
  const heard = /** @type {string[]} */ ([]);
  for (const type of ["online", "offline"]) network.addEventListener(type, () => heard.push(type));
  assert.equal(Socket.status.retryNow(), true);
  assert.deepEqual(heard, ["online"]);
  await connected();
  window.network(false);
  window.network(true);
  assert.deepEqual(heard, ["online"]);
  FakeSocket.last.accepts({ received: 1 });
  FakeSocket.last.closes(3503);
  window.network(true);
  assert.deepEqual(heard, ["online", "online"]);
});

test("over a plain socket the SDK looks after the network itself", async () => {
  const { networkEventTarget: network } = Socket.sdkOptions();
  const heard = /** @type {string[]} */ ([]);
  for (const type of ["online", "offline"]) network.addEventListener(type, () => heard.push(type));
  await made(URL_, ["centrifuge-protobuf"]);
  FakeSocket.last.opens();
  window.network(false);
  window.network(true);
  assert.deepEqual(heard, ["offline", "online"]);
});

test("nobody listens to the page for a socket that is closed", async () => {
  const { socket } = await connected();
  socket.close();
  await settled();
  window.network(false);
  window.network(true);
  window.page("pagehide", false);
  await clock.advance(100_000);
  assert.equal(FakeSocket.made.length, 1);
});

test("only so many URLs are remembered", async () => {
  for (let index = 0; index < 40; index += 1) {
    await made(`${URL_}?token=${index}`);
    FakeSocket.last.opens();
    FakeSocket.last.closes(3013, '{"reason":"too many","reconnect":true,"retry":4000}');
  }
  assert.equal((await made(`${URL_}?token=39`)).socket.state, "waiting");
  assert.equal((await made(`${URL_}?token=0`)).socket.state, "connecting");
});
