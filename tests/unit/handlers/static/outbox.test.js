// @ts-check
import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";

import { Code, GatewayError } from "../../../../handlers/static/errors.js";
import { Outbox } from "../../../../handlers/static/outbox.js";
import { settled } from "./fake_socket.js";

/** @type {{key: string, resolve: (result: any) => void, reject: (error: any) => void}[]} */
let attempts = [];
/** @type {any[]} */
let events = [];

function makeOutbox() {
  return new Outbox({
    publish: (key) => new Promise((resolve, reject) => attempts.push({ key, resolve, reject })),
    onAccepted: (key, offset) => events.push(["accepted", key, offset]),
    onRefused: (key, error) => events.push(["refused", key, error.code]),
  });
}

const lost = () => new GatewayError(Code.NOT_CONNECTED, "lost", true);
const busy = () => new GatewayError(Code.INTERNAL, "busy", true);

beforeEach(() => {
  mock.timers.enable({ apis: ["setTimeout"] });
  attempts = [];
  events = [];
});

afterEach(() => mock.timers.reset());

test("messages go one after the other, in the order of writing", async () => {
  const outbox = makeOutbox();
  outbox.add("a", "1");
  outbox.add("b", "2");
  assert.equal(attempts.length, 0, "not before the way is open");
  outbox.flush();
  assert.deepEqual(attempts.map(({ key }) => key), ["a"]);
  attempts[0].resolve({ offset: 1 });
  await settled();
  assert.deepEqual(attempts.map(({ key }) => key), ["a", "b"]);
  attempts[1].resolve({ offset: 2 });
  await settled();
  assert.deepEqual(events, [["accepted", "a", 1], ["accepted", "b", 2]]);
  assert.equal(outbox.size, 0);
});

test("a message whose reply was lost goes again under the same key, before the others", async () => {
  const outbox = makeOutbox();
  outbox.flush();
  outbox.add("a", "1");
  outbox.add("b", "2");
  outbox.hold();
  attempts[0].reject(lost());
  await settled();
  assert.equal(attempts.length, 1);
  outbox.flush();
  assert.deepEqual(attempts.map(({ key }) => key), ["a", "a"]);
});

test("a message that was found in the room doesn't go again", async () => {
  const outbox = makeOutbox();
  outbox.flush();
  outbox.add("a", "1");
  outbox.add("b", "2");
  outbox.hold();
  attempts[0].reject(lost());
  await settled();
  outbox.settle("a");
  outbox.flush();
  assert.deepEqual(attempts.map(({ key }) => key), ["a", "b"]);
});

test("a refusal for now is tried again with growing pauses, then given up", async () => {
  const outbox = makeOutbox();
  outbox.flush();
  outbox.add("a", "1");
  for (const pause of [500, 1_000, 2_000, 4_000, 8_000]) {
    attempts[attempts.length - 1].reject(busy());
    await settled();
    mock.timers.tick(pause - 1);
    const before = attempts.length;
    mock.timers.tick(1);
    assert.equal(attempts.length, before + 1);
  }
  assert.deepEqual(events, []);
  attempts[attempts.length - 1].reject(busy());
  await settled();
  assert.deepEqual(events, [["refused", "a", Code.INTERNAL]]);
  assert.equal(outbox.size, 0);
});

test("a refusal for good lets the next one go", async () => {
  const outbox = makeOutbox();
  outbox.flush();
  outbox.add("a", "1");
  outbox.add("b", "2");
  attempts[0].reject(new GatewayError(Code.PERMISSION_DENIED, "no", false));
  await settled();
  assert.deepEqual(events, [["refused", "a", Code.PERMISSION_DENIED]]);
  assert.equal(attempts[1].key, "b");
});

test("losing the connection doesn't count as a refusal, however often", async () => {
  const outbox = makeOutbox();
  outbox.add("a", "1");
  for (let round = 0; round < 20; round += 1) {
    outbox.flush();
    outbox.hold();
    attempts[round].reject(lost());
    await settled();
  }
  assert.deepEqual(events, []);
  assert.equal(outbox.size, 1);
});

test("a closed outbox forgets everything and says nothing", async () => {
  const outbox = makeOutbox();
  outbox.flush();
  outbox.add("a", "1");
  outbox.add("b", "2");
  outbox.close();
  attempts[0].resolve({ offset: 1 });
  await settled();
  assert.deepEqual(events, []);
  assert.equal(attempts.length, 1);
});
