// @ts-check
import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";

import { Commands } from "../../../../handlers/static/commands.js";
import { Code, GatewayError } from "../../../../handlers/static/errors.js";

/** @type {any[]} */
let events = [];

/**
 * @param {Commands} commands
 * @param {string} method
 */
function ask(commands, method) {
  const waiter = {
    resolve: (/** @type {any} */ result) => events.push([method, result]),
    reject: (/** @type {GatewayError} */ error) => events.push([method, error.code]),
  };
  return JSON.parse(commands.prepare(method, { channel: "room" }, waiter, 1_000)).id;
}

beforeEach(() => {
  mock.timers.enable({ apis: ["setTimeout"] });
  events = [];
});

afterEach(() => mock.timers.reset());

test("each has a number of its own, and gets the answer with that number", () => {
  const commands = new Commands();
  const first = ask(commands, "history");
  const second = ask(commands, "publish");
  assert.notEqual(first, second);
  commands.answer({ id: second, publish: { offset: 1 } });
  commands.answer({ id: first, error: { code: 103, message: "no" } });
  commands.answer({ id: first, history: {} });
  assert.deepEqual(events, [["publish", { offset: 1 }], ["history", 103]]);
  assert.equal(commands.size, 0);
});

test("one that isn't answered in time is given up", () => {
  const commands = new Commands();
  ask(commands, "publish");
  mock.timers.tick(999);
  assert.deepEqual(events, []);
  mock.timers.tick(1);
  assert.deepEqual(events, [["publish", Code.TIMEOUT]]);
});

test("without a line time stands still, for those under way and those that come", () => {
  const commands = new Commands();
  ask(commands, "history");
  mock.timers.tick(999);
  commands.pause();
  ask(commands, "publish");
  mock.timers.tick(100_000);
  assert.deepEqual(events, []);
  commands.resume();
  mock.timers.tick(999);
  assert.deepEqual(events, []);
  mock.timers.tick(1);
  assert.deepEqual(events, [["history", Code.TIMEOUT], ["publish", Code.TIMEOUT]]);
});

test("a line that was never away gives nobody more time", () => {
  const commands = new Commands();
  ask(commands, "publish");
  mock.timers.tick(999);
  commands.resume();
  mock.timers.tick(1);
  assert.equal(commands.size, 0);
});

test("all fail together, and then time runs again", () => {
  const commands = new Commands();
  ask(commands, "history");
  ask(commands, "publish");
  commands.pause();
  commands.fail(new GatewayError(Code.NOT_CONNECTED, "lost", true));
  assert.deepEqual(events, [["history", Code.NOT_CONNECTED], ["publish", Code.NOT_CONNECTED]]);
  ask(commands, "presence");
  mock.timers.tick(1_000);
  assert.deepEqual(events.at(-1), ["presence", Code.TIMEOUT]);
});
