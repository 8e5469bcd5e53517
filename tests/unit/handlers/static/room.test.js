// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";

import { Room, TYPING_MS, textOf } from "../../../../handlers/static/room.js";

const NOW = 1_700_000_000_000;
const ada = { user: "ada", client: "a1" };
const ben = { user: "ben", client: "b1" };
const me = { user: "me", client: "m1" };

const makeRoom = () => new Room("lobby", "me");
const oneDay = () => "today";

/**
 * @param {number} offset
 * @param {any} [change]
 */
const message = (offset, change = {}) => ({
  offset, time: NOW + offset, info: ada, data: { type: "message", text: `m${offset}` }, ...change,
});

/** @param {Room} room */
const texts = (room) => [...room.messages, ...room.outgoing].map(({ text }) => text);

/** @param {Room} room */
const notes = (room) => room.rows(oneDay).flatMap((row) => (row.kind === "note" ? [row.text] : []));

// Messages.

test("each offset is kept once, in order, by whatever way and however often it comes", () => {
  const room = makeRoom();
  for (const offset of [5, 6]) room.publication(message(offset), NOW);
  room.page([4, 3, 2].map((offset) => message(offset)), NOW);
  for (const offset of [3, 6, 7, 1]) room.publication(message(offset), NOW);
  assert.deepEqual(room.messages.map(({ offset }) => offset), [1, 2, 3, 4, 5, 6, 7]);
  assert.equal(room.oldest, 1);
});

test("only what wasn't known is new", () => {
  const room = makeRoom();
  assert.equal(room.publication(message(1), NOW)?.text, "m1");
  assert.equal(room.publication(message(1), NOW), null);
});

test("one's own message is the same row before and after, whichever comes first", () => {
  const stored = message(9, { info: me, data: { type: "message", id: "k", text: "hello" } });
  for (const order of [["reply", "message"], ["message", "reply"], ["message"], ["reply"]]) {
    const room = makeRoom();
    room.sending("k", "hello", NOW);
    for (const step of order) {
      if (step === "reply") room.accepted("k", 9);
      else assert.equal(room.publication(stored, NOW), null);
    }
    assert.deepEqual(
      [...room.messages, ...room.outgoing].map(({ key, offset, state }) => [key, offset, state]), [["k", 9, "sent"]], order.join(),
    );
  }
});

test("one's own message takes its place among those of others by offset", () => {
  const room = makeRoom();
  room.sending("k", "mine", NOW);
  room.publication(message(3), NOW);
  room.accepted("k", 2);
  room.publication(message(1), NOW);
  assert.deepEqual(texts(room), ["m1", "mine", "m3"]);
});

test("nobody else can settle one's message by using its key", () => {
  const room = makeRoom();
  room.sending("k", "mine", NOW);
  room.publication(message(1, { data: { type: "message", id: "k", text: "forged" } }), NOW);
  assert.deepEqual(room.outgoing.map(({ state }) => state), ["sending"]);
});

test("a key that is used twice still makes two rows", () => {
  const room = makeRoom();
  for (const offset of [1, 2]) {
    room.publication(message(offset, { info: me, data: { type: "message", id: "k", text: "again" } }), NOW);
  }
  assert.equal(new Set(room.messages.map(({ key }) => key)).size, 2);
});

test("a failed message stays until it is retried, then goes last, or discarded", () => {
  const room = makeRoom();
  room.sending("a", "first", NOW);
  room.failed("a", "why");
  room.sending("b", "second", NOW);
  assert.deepEqual(room.outgoing.map(({ state, problem }) => [state, problem]), [["failed", "why"], ["sending", undefined]]);
  assert.equal(room.retried("a", NOW)?.text, "first");
  assert.deepEqual(texts(room), ["second", "first"]);
  assert.equal(room.outgoing[1].problem, undefined);
  room.discarded("a");
  assert.deepEqual(texts(room), ["second"]);
  assert.equal(room.retried("a", NOW), null);
});

test("forgetting what was stored keeps what wasn't", () => {
  const room = makeRoom();
  room.publication(message(1), NOW);
  room.sending("k", "mine", NOW);
  room.forget();
  assert.deepEqual(texts(room), ["mine"]);
  assert.equal(room.oldest, 0);
});

test("trimming lets go of the oldest only", () => {
  const room = makeRoom();
  room.page([1, 2, 3, 4].map((offset) => message(offset)), NOW);
  assert.equal(room.trim(4), false);
  assert.equal(room.trim(3), true);
  assert.equal(room.oldest, 2);
});

test("what the server's API publishes is shown for what it is", () => {
  assert.equal(textOf("plain"), "plain");
  assert.equal(textOf({ text: "an object" }), "an object");
  assert.equal(textOf({ input: 1 }), '{"input":1}');
  assert.equal(textOf({ type: "reaction" }), null);
  assert.equal(textOf({ type: "message", text: 5 }), null);
  assert.equal(textOf(undefined), null);
  const room = makeRoom();
  room.publication(message(1, { info: undefined }), NOW);
  assert.equal(room.messages[0].name, "Server");
  assert.equal(room.messages[0].own, false);
});

// Rows.

test("a run of one person's messages has one head, until a pause, a day or somebody else", () => {
  const room = makeRoom();
  const later = (/** @type {number} */ minutes) => NOW + minutes * 60_000;
  room.page([
    message(1, { time: NOW }), message(2, { time: later(1) }), message(3, { time: later(7) }),
    message(4, { time: later(8), info: ben }), message(5, { time: later(9) }), message(6, { time: later(60 * 24 * 2) }),
  ], NOW);
  const rows = room.rows((time) => new Date(time).toDateString());
  assert.deepEqual(rows.map(({ kind }) => kind), ["day", "message", "message", "message", "message", "message", "day", "message"]);
  assert.deepEqual(rows.flatMap((row) => (row.kind === "message" ? [[row.first, row.last]] : [])), [
    [true, false], [false, true], [true, true], [true, true], [true, true], [true, true],
  ]);
});

test("what happens before the first message of a day stands under that day", () => {
  const room = makeRoom();
  room.presence([me], NOW);
  room.joined(ada, NOW);
  room.publication(message(1), NOW);
  assert.deepEqual(room.rows(oneDay).map(({ kind }) => kind), ["day", "note", "message"]);
});

test("rows have distinct keys", () => {
  const room = makeRoom();
  room.presence([me], NOW);
  room.joined(ada, NOW);
  room.page([message(1), message(2)], NOW);
  room.joined(ben, NOW);
  room.sending("k", "mine", NOW);
  const keys = room.rows(oneDay).map(({ key }) => key);
  assert.equal(new Set(keys).size, keys.length);
});

// People.

test("people are listed once, however many connections they have, oneself first", () => {
  const room = makeRoom();
  room.presence([ben, ada, { ...ada, client: "a2" }, me], NOW);
  assert.deepEqual(room.people().map(({ user, own, connections }) => [user, own, connections]), [
    ["me", true, 1], ["ada", false, 2], ["ben", false, 1],
  ]);
});

test("who comes and goes for good is noted, oneself isn't", () => {
  const room = makeRoom();
  room.presence([me], NOW);
  room.joined({ ...me, client: "m2" }, NOW);
  room.joined(ada, NOW);
  room.joined({ ...ada, client: "a2" }, NOW);
  room.left(ada, NOW);
  assert.deepEqual(notes(room), ["ada joined"]);
  room.left({ ...ada, client: "a2" }, NOW);
  const deadline = room.expire(NOW);
  assert.ok(deadline !== null && deadline > NOW);
  assert.deepEqual(notes(room), ["ada joined"]);
  assert.equal(room.expire(deadline), null);
  assert.deepEqual(notes(room), ["ada joined · ada left"]);
});

test("who is back at once has neither left nor joined", () => {
  const room = makeRoom();
  room.presence([me, ada], NOW);
  room.left(ada, NOW);
  room.joined({ ...ada, client: "a2" }, NOW);
  assert.equal(room.expire(NOW + 3_600_000), null);
  assert.deepEqual(notes(room), []);
});

test("after a restart of the server people get time to come back before they have left", () => {
  const room = makeRoom();
  room.presence([me, ada, ben], NOW);
  room.presence([{ ...me, client: "m2" }], NOW);
  assert.deepEqual(room.people().map(({ user }) => user), ["me"]);
  room.expire(NOW + 20_000);
  room.joined({ ...ada, client: "a2" }, NOW);
  room.expire(NOW + 60_000);
  assert.deepEqual(notes(room), ["ben left"]);
});

test("a presence list from before a join, with the join applied again, has everybody once", () => {
  const room = makeRoom();
  room.presence([me], NOW);
  room.joined(ada, NOW);
  room.presence([me], NOW);
  room.joined(ada, NOW);
  assert.deepEqual(room.people().map(({ user }) => user), ["me", "ada"]);
});

test("names come from the connection's information where it has one", () => {
  const room = makeRoom();
  room.presence([{ ...ada, conn_info: { name: "Ada Lovelace" } }, { user: "", client: "x" }], NOW);
  assert.deepEqual(room.people().map(({ name }) => name), ["Ada Lovelace", "Anonymous"]);
});

// Typing.

const typing = (/** @type {any} */ info, active = true) => ({ info, data: { type: "typing", active } });

test("typing is shown until it stops, a message comes, the person leaves, or it wasn't repeated", () => {
  /** @type {[string, (room: Room) => void][]} */
  const ends = [
    ["stops", (room) => room.publication(typing(ada, false), NOW)],
    ["writes", (room) => room.publication(message(1), NOW)],
    ["leaves", (room) => room.left(ada, NOW)],
    ["falls silent", (room) => room.expire(NOW + TYPING_MS)],
  ];
  for (const [name, end] of ends) {
    const room = makeRoom();
    room.publication(typing(ada), NOW);
    assert.deepEqual(room.typing(), ["ada"], name);
    end(room);
    assert.deepEqual(room.typing(), [], name);
  }
});

test("a person who types in two tabs is one, oneself is none", () => {
  const room = makeRoom();
  room.publication(typing(ada), NOW);
  room.publication(typing({ ...ada, client: "a2" }), NOW);
  room.publication(typing({ ...me, client: "m2" }), NOW);
  assert.deepEqual(room.typing(), ["ada"]);
});

test("what isn't stored isn't a message, whatever it says", () => {
  const room = makeRoom();
  room.publication({ info: ada, data: { type: "message", text: "gone after a reload" } }, NOW);
  assert.deepEqual(texts(room), []);
});
