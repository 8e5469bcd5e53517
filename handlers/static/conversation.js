// @ts-check
/**
 * One room that this page takes part in: its state (room.js), what is still to be sent (outbox.js)
 * and its subscription (gateway.js), kept in step. No DOM.
 */

import { GatewayError } from "./errors.js";
import { Outbox } from "./outbox.js";
import { Room } from "./room.js";
import { roomAdvice, sendingAdvice } from "./words.js";

/** @typedef {import("./gateway.js").Gateway} Gateway */
/** @typedef {import("./gateway.js").Subscribed} Subscribed */

/**
 * @typedef {"more" | "loading" | "failed" | "complete" | "unkept"} Past What is known about earlier
 *   messages: there are more; they are coming; they didn't come; these are all; none are kept.
 */

export const LIMIT = 300;
const PAGE = 50;
/** A typing signal is repeated this often while the person goes on typing. */
const TYPING_INTERVAL_MS = 2_500;
const NOT_AVAILABLE = 108;

/** @param {string} room */
export const channelOf = (room) => `chat:${encodeURIComponent(room)}`;

export class Conversation {
  /** @type {Past} */
  past = "loading";
  /** Why this page isn't in the room, and what to do; empty while it is or tries to be. */
  problem = "";
  /** Everything up to this offset has been on the screen. */
  seen = 0;
  /** How many messages are kept; older ones can be loaded again. */
  limit = LIMIT;

  #gateway;
  #onChange;
  #now;
  #channel;
  /** Whether the newest page of history has been read since the room was last forgotten. */
  #read = false;
  /** Numbers subscriptions; an answer to an earlier one's question is stale. */
  #visit = 0;
  #typedAt = 0;
  /** Joins and leaves that came while the server made its list. @type {(() => void)[] | null} */
  #present = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer = undefined;

  /**
   * @param {object} options
   * @param {Gateway} options.gateway
   * @param {string} options.name The room's.
   * @param {string} options.me This user's id.
   * @param {() => void} options.onChange Something that can be seen has changed.
   * @param {() => number} [options.now]
   */
  constructor({ gateway, name, me, onChange, now = Date.now }) {
    this.name = name;
    this.room = new Room(name, me);
    this.#gateway = gateway;
    this.#channel = channelOf(name);
    this.#onChange = onChange;
    this.#now = now;
    this.outbox = new Outbox({
      publish: (key, text) => gateway.publish(this.#channel, { type: "message", id: key, text }, key),
      onAccepted: (key, offset) => {
        this.room.accepted(key, offset);
        this.#changed();
      },
      onRefused: (key, error) => {
        this.room.failed(key, sendingAdvice(error));
        this.#changed();
      },
    });
  }

  enter() {
    this.problem = "";
    this.#gateway.subscribe(this.#channel, {
      onSubscribed: (subscribed) => this.#entered(subscribed),
      onPublication: (publication) => {
        this.room.publication(publication, this.#now());
        if (typeof publication.data?.id === "string") this.#settle(publication.data.id);
        this.#changed();
      },
      onJoin: (info) => {
        this.room.joined(info, this.#now());
        this.#present?.push(() => this.room.joined(info, this.#now()));
        this.#changed();
      },
      onLeave: (info) => {
        this.room.left(info, this.#now());
        this.#present?.push(() => this.room.left(info, this.#now()));
        this.#changed();
      },
      onEnded: (error) => {
        this.hold();
        this.problem = roomAdvice(error, this.name);
        this.#changed();
      },
    });
  }

  /** The connection is lost; what is written meanwhile waits. */
  hold() {
    this.#visit += 1;
    this.outbox.hold();
  }

  leave() {
    this.hold();
    this.outbox.close();
    clearTimeout(this.#timer);
    this.#gateway.unsubscribe(this.#channel);
  }

  /** How many messages of others came after the last one seen. */
  get unread() {
    let count = 0;
    for (let index = this.room.messages.length - 1; index >= 0; index -= 1) {
      const { offset, own } = this.room.messages[index];
      if (offset <= this.seen) break;
      if (!own) count += 1;
    }
    return count;
  }

  /** Everything is on the screen. */
  see() {
    this.seen = Math.max(this.seen, this.room.messages.at(-1)?.offset ?? 0);
  }

  /** @param {string} text */
  send(text) {
    const key = newKey();
    this.room.sending(key, text, this.#now());
    this.outbox.add(key, text);
    this.#typedAt = 0;
    this.#changed();
  }

  /** @param {string} key */
  retry(key) {
    const message = this.room.retried(key, this.#now());
    if (message) this.outbox.add(key, message.text);
    this.#changed();
  }

  /** @param {string} key */
  discard(key) {
    this.outbox.settle(key);
    this.room.discarded(key);
    this.#changed();
  }

  /**
   * The person is typing, or has emptied what was typed. Tells the others, now and then.
   *
   * @param {boolean} active
   */
  typing(active) {
    const now = this.#now();
    if (active ? now - this.#typedAt < TYPING_INTERVAL_MS : this.#typedAt === 0) return;
    this.#typedAt = active ? now : 0;
    // Nobody misses a typing signal, so nobody needs to hear that it failed.
    this.#gateway.publishEphemeral(this.#channel, { type: "typing", active }).catch(() => {});
  }

  /** Reads the page before the oldest message known, unless it is on its way or there is none. */
  async loadOlder() {
    if (this.past !== "more" && this.past !== "failed") return;
    await this.#load();
  }

  async #load() {
    const visit = this.#visit;
    const { oldest, epoch } = this.room;
    this.past = "loading";
    this.#changed();
    try {
      const since = oldest > 0 ? { offset: oldest, epoch: epoch ?? "" } : undefined;
      const { publications } = await this.#gateway.history(this.#channel, { limit: PAGE, reverse: true, since });
      if (visit !== this.#visit) return;
      for (const { data } of publications) if (typeof data?.id === "string") this.#settle(data.id);
      const complete = publications.length < PAGE || publications.at(-1)?.offset === 1;
      this.room.page(publications, this.#now());
      this.past = complete ? "complete" : "more";
      if (!this.#read) this.see();
      this.#read = true;
    } catch (error) {
      if (!(error instanceof GatewayError)) throw error;
      if (visit !== this.#visit) return;
      this.past = error.code === NOT_AVAILABLE ? "unkept" : "failed";
    }
    this.#changed();
  }

  /** @param {Subscribed} subscribed */
  #entered({ wasRecovering, recovered, gap, epoch }) {
    const visit = ++this.#visit;
    if (wasRecovering && !recovered) this.#startOver(epoch, gap !== undefined);
    this.room.epoch = epoch;
    if (!this.#read) this.#load();
    else if (this.past === "loading") this.past = "more";
    this.#askPresence();
    // What was missed is handed over right after this: a message of one's own may be among it.
    queueMicrotask(() => {
      if (visit === this.#visit) this.outbox.flush();
    });
    this.#changed();
  }

  /**
   * What was missed can't be had message by message.
   *
   * @param {string} epoch
   * @param {boolean} gap
   */
  #startOver(epoch, gap) {
    const same = epoch === this.room.epoch;
    this.room.forget();
    this.#read = false;
    if (!same) this.seen = 0;
    if (!same) this.room.remark("The history of this room was started afresh", this.#now());
    else if (gap) this.room.remark("Some messages sent while you were away are no longer kept", this.#now());
  }

  async #askPresence() {
    const visit = this.#visit;
    /** @type {(() => void)[]} */
    const meanwhile = [];
    this.#present = meanwhile;
    try {
      const infos = Object.values(await this.#gateway.presence(this.#channel));
      if (visit !== this.#visit) return;
      this.room.presence(infos, this.#now());
      // The list may be from before them; applied again, they change nothing or put it right.
      for (const apply of meanwhile) apply();
      this.#changed();
    } catch (error) {
      // Without presence the room works; its list of people stays empty.
      if (!(error instanceof GatewayError)) throw error;
    } finally {
      if (this.#present === meanwhile) this.#present = null;
    }
  }

  /**
   * A message with this key is in the room, so it need not be sent (again).
   *
   * @param {string} key
   */
  #settle(key) {
    if (!this.room.outgoing.some((message) => message.key === key)) this.outbox.settle(key);
  }

  #changed() {
    if (this.room.trim(this.limit) && this.past === "complete") this.past = "more";
    clearTimeout(this.#timer);
    const deadline = this.room.expire(this.#now());
    if (deadline !== null) this.#timer = setTimeout(() => this.#changed(), deadline - this.#now());
    this.#onChange();
  }
}

/** Random enough to be unique; crypto.randomUUID exists only in secure contexts, this everywhere. */
function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
