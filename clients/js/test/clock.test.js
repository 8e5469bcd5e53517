// @ts-check
import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";

import { SystemClock } from "../src/clock.js";

const { now: steadyNow } = performance;
const { now: wallNow } = Date;
let steady = 0;
let wall = 0;

beforeEach(() => {
  steady = 5_000;
  wall = 1_700_000_000_000;
  performance.now = () => steady;
  Date.now = () => wall;
});

afterEach(() => {
  performance.now = steadyNow;
  Date.now = wallNow;
});

test("it goes with the steady clock, and leaps over a sleep", () => {
  const clock = new SystemClock();
  const start = clock.now();
  steady += 100;
  wall += 101;
  assert.equal(clock.now() - start, 100);
  // Asleep: only one of the two has gone on.
  wall += 60_000;
  assert.equal(clock.now() - start, 60_100);
  steady += 100;
  wall += 100;
  assert.equal(clock.now() - start, 60_200);
});

test("it doesn't go back when somebody sets the clock", () => {
  const clock = new SystemClock();
  const start = clock.now();
  steady += 100;
  wall -= 3_600_000;
  assert.equal(clock.now() - start, 100);
  assert.equal(clock.epoch(), wall);
});

test("a clock that is corrected a little changes nothing", () => {
  const clock = new SystemClock();
  const start = clock.now();
  wall += 1_900;
  assert.equal(clock.now(), start);
});
