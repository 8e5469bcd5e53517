// @ts-check
import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";

import { Conversation, channelOf } from "../../../../handlers/static/conversation.js";
import { Gateway } from "../../../../handlers/static/gateway.js";
import { FakeSocket, settled } from "./fake_socket.js";

const CHANNEL = "chat:lobby";
const me = { user: "me", client: "c1" };
const ada = { user: "ada", client: "a1" };

/** @param {number} offset */
const stored = (offset) => ({ offset, time: Date.now(), info: ada, data: { type: "message", text: `m${offset}` } });

/**
 * @param {number} from
 * @param {number} to
 */
const newestFirst = (from, to) => Array.from({ length: from - to + 1 }, (_, index) => stored(from - index));

/** A conversation that has entered, with `top` messages stored before. */
async function entered(top = 0) {
  const gateway = new Gateway("ws://test/", {
    getToken: async () => "token",
    websocket: /** @type {any} */ (FakeSocket),
    random: () => 0,
    onState: ({ phase }) => {
      if (phase === "waiting" || phase === "disconnected") conversation.hold();
    },
  });
  const conversation = new Conversation({ gateway, name: "lobby", me: "me", onChange: () => {} });
  conversation.enter();
  gateway.connect();
  await settled();
  FakeSocket.last.accepts();
  FakeSocket.last.answers("subscribe", { recoverable: true, epoch: "e", offset: top });
  FakeSocket.last.answers("history", { publications: newestFirst(top, Math.max(1, top - 49)), epoch: "e", offset: top });
  FakeSocket.last.answers("presence", { presence: { c1: me } });
  await settled();
  return { gateway, conversation };
}

/**
 * The connection is lost and comes back.
 *
 * @param {Gateway} gateway
 * @param {any} subscribed
 */
async function returns(gateway, subscribed) {
  FakeSocket.last.drops();
  gateway.retryNow();
  await settled();
  FakeSocket.last.accepts();
  FakeSocket.last.answers("subscribe", { recoverable: true, was_recovering: true, epoch: "e", ...subscribed });
  await settled();
}

/** @param {Conversation} conversation */
const texts = ({ room }) => [...room.messages, ...room.outgoing].map(({ text }) => text);

beforeEach(() => {
  mock.timers.enable({ apis: ["setTimeout", "Date"], now: 1_700_000_000_000 });
  FakeSocket.reset();
});

afterEach(() => mock.timers.reset());

test("a room of any name is a channel that the wire can carry", () => {
  assert.equal(channelOf("lobby"), "chat:lobby");
  assert.match(channelOf("a#b, café $"), /^chat:[!-~]+$/);
  assert.ok(!channelOf("a#b").slice(5).includes("#"));
});

test("entering reads the newest page and who is there", async () => {
  const { conversation } = await entered(60);
  assert.equal(conversation.room.messages.length, 50);
  assert.equal(conversation.past, "more");
  assert.equal(conversation.unread, 0);
  assert.deepEqual(conversation.room.people().map(({ user }) => user), ["me"]);
});

test("older pages are asked for once each, until there are no more", async () => {
  const { conversation } = await entered(60);
  conversation.loadOlder();
  conversation.loadOlder();
  const asked = FakeSocket.last.sent("history").slice(1);
  assert.deepEqual(asked.map(({ history }) => history.since), [{ offset: 11, epoch: "e" }]);
  FakeSocket.last.answers("history", { publications: newestFirst(10, 1), epoch: "e", offset: 60 });
  await settled();
  assert.equal(conversation.past, "complete");
  assert.equal(conversation.room.messages.length, 60);
  conversation.loadOlder();
  assert.equal(FakeSocket.last.sent("history").length, 2);
});

test("a page that didn't come can be asked for again", async () => {
  const { conversation } = await entered(60);
  conversation.loadOlder();
  FakeSocket.last.refuses("history", { code: 100, temporary: true });
  await settled();
  assert.equal(conversation.past, "failed");
  conversation.loadOlder();
  FakeSocket.last.answers("history", { publications: newestFirst(10, 1), epoch: "e", offset: 60 });
  await settled();
  assert.equal(conversation.past, "complete");
});

test("a room that keeps nothing says so", async () => {
  const { gateway, conversation } = await entered();
  assert.equal(conversation.past, "complete");
  await returns(gateway, { recovered: false, epoch: "f", offset: 0 });
  FakeSocket.last.refuses("history", { code: 108 });
  await settled();
  assert.equal(conversation.past, "unkept");
});

test("a message is sent with its key, and sent when the server says so", async () => {
  const { conversation } = await entered();
  conversation.send("hello");
  const { channel, data, idempotency_key: key } = FakeSocket.last.sent("publish")[0].publish;
  assert.equal(channel, CHANNEL);
  assert.deepEqual(data, { type: "message", id: key, text: "hello" });
  assert.match(key, /^[0-9a-f]{32}$/);
  FakeSocket.last.answers("publish", { offset: 1, epoch: "e" });
  await settled();
  assert.deepEqual(conversation.room.messages.map(({ offset, state }) => [offset, state]), [[1, "sent"]]);
});

test("what was written without a connection goes when it is back, after what was missed", async () => {
  const { gateway, conversation } = await entered();
  FakeSocket.last.drops();
  conversation.send("offline");
  gateway.retryNow();
  await settled();
  FakeSocket.last.accepts();
  assert.deepEqual(FakeSocket.last.sent("publish"), []);
  FakeSocket.last.answers("subscribe", {
    recoverable: true, was_recovering: true, recovered: true, epoch: "e", offset: 0, publications: [stored(1)],
  });
  await settled();
  assert.deepEqual(texts(conversation), ["m1", "offline"]);
  assert.equal(FakeSocket.last.sent("publish").length, 1);
});

test("a message that was stored although its reply was lost is neither doubled nor sent again", async () => {
  const { gateway, conversation } = await entered();
  conversation.send("once");
  const { data } = FakeSocket.last.sent("publish")[0].publish;
  await returns(gateway, { recovered: true, offset: 0, publications: [{ offset: 1, time: 1, info: me, data }] });
  assert.deepEqual(conversation.room.messages.map(({ text, state }) => [text, state]), [["once", "sent"]]);
  assert.deepEqual(FakeSocket.last.sent("publish"), []);
});

test("a message whose reply was lost, and which wasn't among what was missed, goes again under its key", async () => {
  const { gateway, conversation } = await entered();
  conversation.send("once");
  const { idempotency_key: key } = FakeSocket.last.sent("publish")[0].publish;
  await returns(gateway, { recovered: true, offset: 0 });
  assert.deepEqual(FakeSocket.last.sent("publish").map(({ publish }) => publish.idempotency_key), [key]);
  FakeSocket.last.answers("publish", { offset: 1, epoch: "e", duplicate: true });
  await settled();
  assert.deepEqual(conversation.room.messages.map(({ text, offset }) => [text, offset]), [["once", 1]]);
});

test("a refused message says why, and can be retried or discarded", async () => {
  const { conversation } = await entered();
  conversation.send("no");
  FakeSocket.last.refuses("publish", { code: 103 });
  await settled();
  const [{ key, state, problem }] = conversation.room.outgoing;
  assert.deepEqual([state, problem], ["failed", "You may not write in this room."]);
  conversation.retry(key);
  assert.equal(FakeSocket.last.sent("publish").at(-1).publish.idempotency_key, key);
  FakeSocket.last.refuses("publish", { code: 103 });
  await settled();
  conversation.discard(key);
  assert.deepEqual(texts(conversation), []);
});

test("a history that was started afresh replaces what was known", async () => {
  const { gateway, conversation } = await entered(3);
  await returns(gateway, { recovered: false, epoch: "f", offset: 1 });
  FakeSocket.last.answers("history", { publications: [stored(1)], epoch: "f", offset: 1 });
  await settled();
  assert.deepEqual(texts(conversation), ["m1"]);
  assert.equal(conversation.room.epoch, "f");
});

test("messages that are no longer kept are admitted to", async () => {
  const { gateway, conversation } = await entered(3);
  await returns(gateway, { recovered: false, offset: 90, gap: { from: 4, to: 40 } });
  FakeSocket.last.answers("history", { publications: newestFirst(90, 41), epoch: "e", offset: 90 });
  await settled();
  const notes = conversation.room.rows(() => "today").flatMap((row) => (row.kind === "note" ? [row.text] : []));
  assert.deepEqual(notes, ["Some messages sent while you were away are no longer kept"]);
  assert.equal(conversation.room.oldest, 41);
});

test("a join that comes while the list of people is made isn't lost, a leave isn't undone", async () => {
  const { gateway, conversation } = await entered();
  await returns(gateway, { recovered: true, offset: 0 });
  const ben = { user: "ben", client: "b1" };
  FakeSocket.last.says({ push: { channel: CHANNEL, join: { info: ada } } }, { push: { channel: CHANNEL, leave: { info: ben } } });
  FakeSocket.last.answers("presence", { presence: { c1: me, b1: ben } });
  await settled();
  assert.deepEqual(conversation.room.people().map(({ user }) => user), ["me", "ada"]);
});

test("typing is told at intervals, its end once, and nothing of it is stored", async () => {
  const { conversation } = await entered();
  const signals = () => FakeSocket.last.sent("publish").map(({ publish }) => [publish.data.active, publish.ephemeral]);
  conversation.typing(false);
  conversation.typing(true);
  conversation.typing(true);
  assert.deepEqual(signals(), [[true, true]]);
  mock.timers.tick(2_500);
  conversation.typing(true);
  conversation.typing(false);
  conversation.typing(false);
  assert.deepEqual(signals(), [[true, true], [true, true], [false, true]]);
});

test("unread counts what others wrote since the end was on the screen", async () => {
  const { conversation } = await entered(3);
  FakeSocket.last.says({ push: { channel: CHANNEL, pub: stored(4) } }, { push: { channel: CHANNEL, pub: { ...stored(5), info: me } } });
  assert.equal(conversation.unread, 1);
  conversation.see();
  assert.equal(conversation.unread, 0);
});

test("a room that can't be entered says why and what to do", async () => {
  const { gateway } = await entered();
  const secret = new Conversation({ gateway, name: "secret", me: "me", onChange: () => {} });
  secret.enter();
  FakeSocket.last.refuses("subscribe", { code: 103 });
  assert.match(secret.problem, /You may not enter #secret/);
});

test("only so many messages are kept, and the rest can be loaded again", async () => {
  const { conversation } = await entered(10);
  conversation.limit = 5;
  FakeSocket.last.says({ push: { channel: CHANNEL, pub: stored(11) } });
  assert.equal(conversation.room.oldest, 7);
  assert.equal(conversation.past, "more");
});
