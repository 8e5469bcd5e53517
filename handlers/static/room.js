// @ts-check
/**
 * What is known about one room. Pure: no DOM, no socket, no clock; time comes in as an argument, in
 * milliseconds since 1970.
 *
 * Messages come by four ways: live, recovered, paged in from history, and written here. The first
 * three are identified by their offset, and each offset is kept once whatever way it comes. One
 * written here has no offset until it is stored; its key travels in the message, so whichever comes
 * first, the reply with the offset or the message itself, turns it from "sending" into "sent", and
 * the other changes nothing more.
 */

/** @typedef {import("./gateway.js").ClientInfo} ClientInfo */
/** @typedef {import("./gateway.js").Publication} Publication */

/**
 * @typedef {object} Message
 * @property {string} key Stays the same from "sending" to "sent".
 * @property {number} offset 0 until it is known.
 * @property {string} user
 * @property {string} name
 * @property {string} text
 * @property {number} time
 * @property {boolean} own
 * @property {"sending" | "sent" | "failed"} state
 * @property {string} [problem] Why it failed and what to do.
 *
 * @typedef {{key: string, after: number, time: number, text: string}} Note What happened, and behind
 *   which offset.
 *
 * @typedef {{user: string, name: string, own: boolean, connections: number}} Person
 *
 * @typedef {{kind: "day", key: string, time: number}
 *   | {kind: "note", key: string, text: string}
 *   | {kind: "message", key: string, message: Message, first: boolean, last: boolean}} Row
 *   `first` and `last`: of a run of messages that one person wrote in one go.
 */

/** How long one typing signal counts; they are repeated more often than that. */
export const TYPING_MS = 6_000;
/** Messages of one person further apart than this don't belong together. */
const RUN_MS = 5 * 60_000;
/** Who is back within this time never left: a reload, a change of network. */
const LEAVE_GRACE_MS = 8_000;
/** The same after this page lost its own connection, as everybody else may have. */
const RETURN_GRACE_MS = 45_000;
const NOTES_MAX = 30;

export class Room {
  /** Stored messages, by ascending offset, each once. @type {Message[]} */
  messages = [];
  /** Written here and not known to be stored, in the order of writing. @type {Message[]} */
  outgoing = [];
  /** @type {string | null} */
  epoch = null;
  /** Incremented by whatever can be seen. */
  version = 0;

  /** @type {Note[]} */
  #notes = [];
  #noteCount = 0;
  /** Client id to who it is. @type {Map<string, {user: string, name: string}>} */
  #clients = new Map();
  #presenceKnown = false;
  /** User to when the leave becomes certain. @type {Map<string, {name: string, at: number}>} */
  #leaving = new Map();
  /** Client id to who types until when. @type {Map<string, {user: string, name: string, until: number}>} */
  #typing = new Map();

  /**
   * @param {string} name
   * @param {string} me This user's id.
   */
  constructor(name, me) {
    this.name = name;
    this.me = me;
  }

  // Messages.

  /**
   * Takes a publication in, from wherever it comes.
   *
   * @param {Publication} publication
   * @param {number} now
   * @returns {Message | null} The message if it wasn't known before, not even as outgoing.
   */
  publication({ data, info, offset, time }, now) {
    if (!offset) {
      this.#signal(data, info, now);
      return null;
    }
    const text = textOf(data);
    if (text === null) return null;
    this.version += 1;
    const user = info?.user ?? "";
    const own = info !== undefined && user === this.me;
    const message = /** @type {Message} */ ({
      key: this.#keyFor(own ? data?.id : undefined, offset),
      offset,
      user,
      name: info ? nameOf(info) : "Server",
      text,
      time: time ?? now,
      own,
      state: "sent",
    });
    if (info) this.#typing.delete(info.client);
    const awaited = own && this.#removeOutgoing(message.key);
    const added = this.#insert(message);
    return added && !awaited ? message : null;
  }

  /**
   * Takes in a page of history, in any order.
   *
   * @param {Publication[]} publications
   * @param {number} now
   */
  page(publications, now) {
    for (const publication of publications) this.publication(publication, now);
  }

  /** The offset before which history hasn't been read; 0 when nothing has been. */
  get oldest() {
    return this.messages[0]?.offset ?? 0;
  }

  /**
   * Forgets what was stored, and keeps what wasn't: for when the log behind the room isn't the one
   * that was read before, or the part in between can't be had any more.
   */
  forget() {
    this.messages = [];
    this.#notes = [];
    this.version += 1;
  }

  /**
   * Lets go of the oldest messages; they can be paged in again.
   *
   * @param {number} max
   * @returns {boolean} Whether there were more than that.
   */
  trim(max) {
    if (this.messages.length <= max) return false;
    this.messages = this.messages.slice(-max);
    this.#notes = this.#notes.filter((note) => note.after >= this.oldest);
    this.version += 1;
    return true;
  }

  /**
   * @param {string} key
   * @param {string} text
   * @param {number} now
   */
  sending(key, text, now) {
    this.outgoing.push({
      key, offset: 0, user: this.me, name: this.me, text, time: now, own: true, state: "sending",
    });
    this.version += 1;
  }

  /**
   * The server has stored it.
   *
   * @param {string} key
   * @param {number} offset
   */
  accepted(key, offset) {
    const message = this.#removeOutgoing(key);
    if (!message) return;
    this.#insert({ ...message, offset, state: "sent", problem: undefined });
    this.version += 1;
  }

  /**
   * @param {string} key
   * @param {string} problem
   */
  failed(key, problem) {
    this.#changeOutgoing(key, { state: "failed", problem });
  }

  /**
   * Moves it behind whatever was written since, as that is the order in which they will arrive.
   *
   * @param {string} key
   * @param {number} now
   * @returns {Message | null}
   */
  retried(key, now) {
    const message = this.#removeOutgoing(key);
    if (!message) return null;
    this.outgoing.push({ ...message, state: "sending", problem: undefined, time: now });
    this.version += 1;
    return message;
  }

  /** @param {string} key */
  discarded(key) {
    this.#removeOutgoing(key);
    this.version += 1;
  }

  /**
   * The key that the message was written under, or one made of the offset. A foreign program may
   * use a key twice, and rows need different ones.
   *
   * @param {unknown} id
   * @param {number} offset
   */
  #keyFor(id, offset) {
    const usable = typeof id === "string" && !this.messages.some(({ key, offset: other }) => key === id && other !== offset);
    return usable ? id : `#${offset}`;
  }

  /**
   * @param {Message} message
   * @returns {boolean} Whether it is new.
   */
  #insert(message) {
    // Nearly always the newest; a search from the end is then one step.
    let index = this.messages.length;
    while (index > 0 && this.messages[index - 1].offset > message.offset) index -= 1;
    if (index > 0 && this.messages[index - 1].offset === message.offset) {
      this.messages[index - 1] = message;
      return false;
    }
    this.messages.splice(index, 0, message);
    return true;
  }

  /** @param {string} key */
  #removeOutgoing(key) {
    const index = this.outgoing.findIndex((message) => message.key === key);
    return index < 0 ? null : this.outgoing.splice(index, 1)[0];
  }

  /**
   * @param {string} key
   * @param {Partial<Message>} change
   */
  #changeOutgoing(key, change) {
    this.outgoing = this.outgoing.map((message) => (message.key === key ? { ...message, ...change } : message));
    this.version += 1;
  }

  // People.

  /**
   * Everybody who is here, as the server says after a (re)subscription.
   *
   * @param {ClientInfo[]} infos
   * @param {number} now
   */
  presence(infos, now) {
    const before = this.#users();
    this.#clients = new Map(infos.map((info) => [info.client, { user: info.user, name: nameOf(info) }]));
    const after = this.#users();
    if (this.#presenceKnown) {
      for (const [user, name] of before) if (!after.has(user)) this.#leaves(user, name, now + RETURN_GRACE_MS);
      for (const [user, name] of after) if (!before.has(user)) this.#arrives(user, name, now);
    }
    this.#presenceKnown = true;
    this.version += 1;
  }

  /**
   * @param {ClientInfo} info
   * @param {number} now
   */
  joined(info, now) {
    const known = this.#users().has(info.user);
    this.#clients.set(info.client, { user: info.user, name: nameOf(info) });
    if (this.#presenceKnown && !known) this.#arrives(info.user, nameOf(info), now);
    this.version += 1;
  }

  /**
   * @param {ClientInfo} info
   * @param {number} now
   */
  left(info, now) {
    this.#clients.delete(info.client);
    this.#typing.delete(info.client);
    if (!this.#users().has(info.user)) this.#leaves(info.user, nameOf(info), now + LEAVE_GRACE_MS);
    this.version += 1;
  }

  /** This user first, then by name. @returns {Person[]} */
  people() {
    /** @type {Map<string, Person>} */
    const people = new Map();
    for (const { user, name } of this.#clients.values()) {
      const person = people.get(user);
      if (person) person.connections += 1;
      else people.set(user, { user, name, own: user === this.me, connections: 1 });
    }
    return [...people.values()].sort(
      (a, b) => Number(b.own) - Number(a.own) || a.name.localeCompare(b.name) || (a.user < b.user ? -1 : 1),
    );
  }

  /** Names of the others who are typing. @returns {string[]} */
  typing() {
    const names = new Map([...this.#typing.values()].map(({ user, name }) => [user, name]));
    return [...names.values()];
  }

  /**
   * Lets time pass.
   *
   * @param {number} now
   * @returns {number | null} When to come back, null if nothing is waiting.
   */
  expire(now) {
    for (const [client, { until }] of this.#typing) {
      if (until > now) continue;
      this.#typing.delete(client);
      this.version += 1;
    }
    for (const [user, { name, at }] of this.#leaving) {
      if (at > now) continue;
      this.#leaving.delete(user);
      this.#note(`${name} left`, at);
    }
    const deadlines = [...this.#typing.values()].map(({ until }) => until);
    deadlines.push(...[...this.#leaving.values()].map(({ at }) => at));
    return deadlines.length === 0 ? null : Math.min(...deadlines);
  }

  #users() {
    return new Map([...this.#clients.values()].map(({ user, name }) => [user, name]));
  }

  /**
   * @param {string} user
   * @param {string} name
   * @param {number} now
   */
  #arrives(user, name, now) {
    if (this.#leaving.delete(user) || user === this.me) return;
    this.#note(`${name} joined`, now);
  }

  /**
   * @param {string} user
   * @param {string} name
   * @param {number} at
   */
  #leaves(user, name, at) {
    if (user !== this.me) this.#leaving.set(user, { name, at });
  }

  /**
   * @param {string} text
   * @param {number} time
   */
  #note(text, time) {
    this.#noteCount += 1;
    const after = this.messages.at(-1)?.offset ?? 0;
    this.#notes = [...this.#notes, { key: `note-${this.#noteCount}`, after, time, text }].slice(-NOTES_MAX);
    this.version += 1;
  }

  /**
   * @param {any} data
   * @param {ClientInfo | undefined} info
   * @param {number} now
   */
  #signal(data, info, now) {
    if (data?.type !== "typing" || !info || info.user === this.me) return;
    if (data.active === false) this.#typing.delete(info.client);
    else this.#typing.set(info.client, { user: info.user, name: nameOf(info), until: now + TYPING_MS });
    this.version += 1;
  }

  /**
   * Something that the person should know stands at this place in the conversation.
   *
   * @param {string} text
   * @param {number} now
   */
  remark(text, now) {
    this.#note(text, now);
  }

  // What to show.

  /**
   * @param {(time: number) => string} dayOf Two times of one day give the same text.
   * @returns {Row[]}
   */
  rows(dayOf) {
    /** @type {Row[]} */
    const rows = [];
    const notes = [...this.#notes];
    /** @type {Set<string>} */
    const days = new Set();
    /** @type {Message | null} */
    let previous = null;
    const dayRow = (/** @type {number} */ time) => {
      const today = dayOf(time);
      // Each day once, even where clocks differ and times run backwards.
      if (days.has(today)) return;
      days.add(today);
      previous = null;
      rows.push({ kind: "day", key: `day-${today}`, time });
    };
    const noteRows = (/** @type {number} */ before) => {
      while (notes.length > 0 && notes[0].after < before) {
        const { key, text, time } = /** @type {Note} */ (notes.shift());
        dayRow(time);
        const last = rows.at(-1);
        // Side by side they are one line: "Ada joined · Ben left".
        if (last?.kind === "note") last.text += ` · ${text}`;
        else rows.push({ kind: "note", key, text });
        previous = null;
      }
    };
    for (const message of [...this.messages, ...this.outgoing]) {
      noteRows(message.offset || Infinity);
      dayRow(message.time);
      const first = previous === null || previous.user !== message.user || previous.name !== message.name
        || message.time - previous.time > RUN_MS;
      const last = rows.at(-1);
      if (!first && last?.kind === "message") last.last = false;
      rows.push({ kind: "message", key: message.key, message, first, last: true });
      previous = message;
    }
    noteRows(Infinity);
    return rows;
  }
}

/**
 * @param {ClientInfo} info
 * @returns {string}
 */
export function nameOf({ user, conn_info: conn }) {
  return (typeof conn?.name === "string" && conn.name) || user || "Anonymous";
}

/**
 * The text to show for a publication's data, null when it isn't something to show. The server's API
 * may publish anything, so plain strings and unknown objects are shown for what they are.
 *
 * @param {any} data
 * @returns {string | null}
 */
export function textOf(data) {
  if (typeof data === "string") return data;
  if (typeof data?.text === "string") return data.text;
  if (data?.type !== undefined) return null;
  return JSON.stringify(data) ?? null;
}
