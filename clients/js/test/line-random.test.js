// @ts-check
/** Random runs: whatever the network does, everything arrives once and in order, or both are told. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { Random } from "./support/random.js";
import { World } from "./support/world.js";

const RUNS = Number(process.env["RUNS"] ?? 150);
const FIRST_SEED = Number(process.env["SEED"] ?? 1);
const STEPS = 120;

/**
 * @param {number} seed
 * @param {boolean} mayEnd Whether the server may end the session.
 */
function run(seed, mayEnd) {
  const random = new Random(seed);
  const slow = random.chance(0.2);
  const world = new World({
    random: random.next,
    delay: () => random.next() * (slow && random.chance(0.1) ? 3_000 : 80),
    server: { retain: mayEnd ? 63_000 : 1e9, stable: random.pick([1_000, 30_000]) },
  });
  world.begin();
  /** @type {string[]} */
  const toClient = ["connected"];
  /** @type {string[]} */
  const toServer = ["connect"];
  const steps = {
    sends: () => {
      for (let count = random.below(random.pick([3, 80])); count >= 0; count -= 1) {
        toServer.push(`up ${toServer.length}`);
        world.clientSends(/** @type {string} */ (toServer.at(-1)));
      }
    },
    publishes: () => {
      for (let count = random.below(random.pick([3, 80])); count >= 0; count -= 1) {
        toClient.push(`down ${toClient.length}`);
        world.serverSends(/** @type {string} */ (toClient.at(-1)));
      }
    },
    cuts: () => world.last.cut(),
    loses: () => random.chance(0.2) && world.last.lose(),
    stalls: () => {
      world.last.stalledUntil = world.now + random.next() * random.pick([500, 10_000, 60_000]);
    },
    closes: () => {
      const retry = random.chance(0.5) ? Math.floor(random.next() * 4_000) : undefined;
      const code = random.pick([3001, 3008, 3012, 1001]);
      world.session?.socket?.close(code, JSON.stringify({ reason: "go", reconnect: true, retry }), world.now);
    },
    moves: () => {
      const retry = Math.floor(random.next() * 3_000);
      world.session?.socket?.say({ move: { retry, deadline: 30_000 } });
    },
    unreachable: () => {
      world.unreachable = true;
      world.last.cut();
      world.run(random.next() * 20_000);
      world.unreachable = false;
    },
    offline: () => world.happen((line) => line.offline()),
    online: () => world.happen((line, now) => line.online(now)),
    wakes: () => world.happen((line, now) => line.wake(now)),
    suspends: () => {
      world.happen((line, now) => line.suspend(now));
      world.run(random.next() * 5_000);
      world.happen((line, now) => line.wake(now));
    },
    retries: () => world.happen((line, now) => line.retryNow(now)),
    pings: () => world.session?.socket && world.server.sendPing(world.session, world.now),
    forgets: () => mayEnd && random.chance(0.1) && world.session && world.server.forget(world.session),
  };
  const names = /** @type {(keyof typeof steps)[]} */ (Object.keys(steps));
  /** @type {string[]} */
  const story = [];
  try {
    for (let step = 0; step < STEPS && !world.closed; step += 1) {
      const name = random.chance(0.4) ? random.pick(["sends", "publishes"]) : random.pick(names);
      story.push(`${Math.round(world.now)} ${world.line.state} ${name}`);
      steps[/** @type {keyof typeof steps} */ (name)]();
      world.run(random.next() * random.pick([5, 200, 5_000]));
    }
    // The network is well again, for long enough to notice everything.
    world.happen((line, now) => line.online(now));
    world.happen((line, now) => line.wake(now));
    for (const link of world.links) link.stalledUntil = 0;
    world.run(200_000);
    if (world.closed) {
      assert.ok(mayEnd, `the session ended: ${world.closed.reason}`);
      assert.deepEqual(world.atClient, toClient.slice(0, world.atClient.length));
      assert.deepEqual(world.atServer, toServer.slice(0, world.atServer.length));
    } else {
      assert.equal(world.line.state, "connected");
      assert.deepEqual(world.atClient, toClient);
      assert.deepEqual(world.atServer, toServer);
      assert.equal(world.line.unackedBytes, 0);
      assert.deepEqual(world.session?.tail, []);
    }
    assert.notEqual(world.closed?.reason, "session gone: fenced", "the latest attempt was taken for a straggler");
    assert.equal(world.server.all.length, 1);
    // The stock SDK would give up after 35 s.
    assert.ok(world.silenceMax <= 30_000, `the layer above heard nothing for ${world.silenceMax} ms`);
  } catch (error) {
    const told = error instanceof Error ? error.stack : error;
    throw new Error(`seed ${seed}:\n${story.slice(-12).join("\n")}\n${told}`);
  }
  return world;
}

test("while the session lives, everything arrives once and in order", () => {
  let overlaps = 0;
  for (let seed = FIRST_SEED; seed < FIRST_SEED + RUNS; seed += 1) overlaps += run(seed, false).overlaps;
  assert.ok(overlaps > 0, "no run had a socket opened while another served");
});

test("when the session ends, nothing is out of order, and the layer above is told", () => {
  let ended = 0;
  for (let seed = FIRST_SEED; seed < FIRST_SEED + RUNS; seed += 1) ended += run(seed, true).closed ? 1 : 0;
  assert.ok(ended > RUNS / 10, `only ${ended} sessions ended`);
});
