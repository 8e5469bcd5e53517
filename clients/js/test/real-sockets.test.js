// @ts-check
/** Real sockets, which the server cuts again and again. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";

import WebSocket, { WebSocketServer } from "ws";

import { ResumableWebSocket } from "../src/index.js";
import { SessionServer } from "./support/session-server.js";

const FRAMES = 400;
const CUT_EVERY = 60;

test("all frames arrive once and in order, both ways, whatever is cut", { timeout: 30_000 }, async () => {
  const numbers = Array.from({ length: FRAMES }, (_, number) => `${number}`);
  /** @type {string[]} */
  const atServer = [];
  /** @type {string[]} */
  const atClient = [];
  /** @type {(value?: unknown) => void} */
  let allArrived = () => {};
  const done = new Promise((resolve) => {
    allArrived = resolve;
  });
  const look = () => atServer.length >= FRAMES && atClient.length >= FRAMES && allArrived();
  const server = new SessionServer({
    onPayload: (session, text) => {
      // The first is answered by everything that there is.
      if (atServer.push(text) === 1) for (const number of numbers) server.publish(session, number);
      look();
    },
  });
  const listener = new WebSocketServer({ port: 0, host: "127.0.0.1" });
  await once(listener, "listening");
  listener.on("connection", (socket) => {
    const accepted = server.accept({
      send: (text) => socket.send(text),
      close: (code, reason) => socket.close(code, reason),
    });
    socket.on("message", (data) => accepted.message(`${data}`, performance.now()));
    socket.on("close", (code) => accepted.closed(code, performance.now()));
    socket.on("error", () => {});
  });
  const { port } = /** @type {import("node:net").AddressInfo} */ (listener.address());

  const Socket = ResumableWebSocket.with({ WebSocket, backoff: { min: 1, max: 5 } });
  const socket = new Socket(`ws://127.0.0.1:${port}/`);
  socket.onopen = () => socket.send("0");
  socket.onmessage = ({ data }) => {
    atClient.push(data);
    if (atClient.length < FRAMES) socket.send(`${atClient.length}`);
    if (atClient.length % CUT_EVERY === 0) for (const client of listener.clients) client.terminate();
    look();
  };
  await done;

  assert.deepEqual(atClient, numbers);
  assert.deepEqual(atServer, numbers);
  assert.equal(server.all.length, 1);
  assert.ok(/** @type {any} */ (server.all[0]).generation > 1);
  socket.close();
  for (const client of listener.clients) client.terminate();
  listener.close();
});
