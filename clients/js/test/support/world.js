// @ts-check
/**
 * A line and a server, joined by sockets that lose, cut, delay and stall. In virtual time, which
 * goes from one event to the next.
 */

import { BACKOFF } from "../../src/backoff.js";
import { Line, emptyMemory } from "../../src/line.js";
import { SessionServer } from "./session-server.js";

/**
 * @typedef {{at: number, deliver: () => void}} Parcel
 *
 * @typedef {"open" | "lost" | "closed"} LinkState
 */

const OPENING_TIMEOUT = 20_000;

/** One socket on its way through the network. */
class Link {
  /** @type {LinkState} */
  state = "open";
  isOpen = false;
  /** Nothing is delivered before. */
  stalledUntil = 0;
  /** Both directions, each in order. @type {Record<"up" | "down", Parcel[]>} */
  parcels = { up: [], down: [] };
  /** Whether either end still listens. */
  heard = { up: true, down: true };

  /**
   * @param {World} world
   * @param {number} id
   */
  constructor(world, id) {
    this.world = world;
    this.id = id;
    this.server = world.server.accept({
      send: (text) => this.post("down", () => this.#toClient((line, now) => line.socketMessage(id, now, text))),
      close: (code, reason) => {
        this.post("down", () => this.#toClient((line, now) => line.socketClosed(id, now, code, reason, true), true));
      },
    });
  }

  /**
   * @param {"up" | "down"} way
   * @param {() => void} deliver
   */
  post(way, deliver) {
    if (this.state !== "open") return;
    const { world, parcels } = this;
    const last = parcels[way].at(-1)?.at ?? 0;
    parcels[way].push({ at: Math.max(last, world.now + world.delay()), deliver });
  }

  open() {
    this.post("down", () => this.#toClient((line, now) => {
      this.isOpen = true;
      line.socketOpened(this.id, now);
    }));
  }

  /** @param {string} text */
  send(text) {
    if (!this.isOpen) throw new Error("sent before the socket was open");
    this.post("up", () => this.server.message(text, this.world.now));
  }

  /** The client closes. @param {number} code */
  drop(code) {
    this.heard.down = false;
    this.post("up", () => {
      this.heard.up = false;
      this.server.closed(code, this.world.now);
    });
  }

  /** Both ends hear a reset, at different moments, and what was under way is lost. */
  cut() {
    if (this.state !== "open") return;
    this.parcels = { up: [], down: [] };
    this.post("up", () => this.server.closed(1006, this.world.now));
    this.post("down", () => this.#toClient((line, now) => line.socketClosed(this.id, now, 1006, ""), true));
    this.state = "closed";
  }

  /** Nothing arrives any more, and nobody is told. */
  lose() {
    if (this.state !== "open") return;
    this.state = "lost";
    this.parcels = { up: [], down: [] };
  }

  /** The client has heard the last of it. */
  hushed() {
    this.heard.down = false;
    this.world.held.delete(this.id);
  }

  /** When something arrives next. */
  get due() {
    const { up, down } = this.parcels;
    const next = Math.min(up[0]?.at ?? Infinity, down[0]?.at ?? Infinity);
    return next === Infinity ? next : Math.max(next, this.stalledUntil);
  }

  deliver() {
    const { up, down } = this.parcels;
    const way = (up[0]?.at ?? Infinity) <= (down[0]?.at ?? Infinity) ? up : down;
    way.shift()?.deliver();
  }

  /**
   * @param {(line: Line, now: number) => void} happening
   * @param {boolean} [last]
   */
  #toClient(happening, last = false) {
    if (!this.heard.down) return;
    if (last) this.hushed();
    if (!this.world.asleep) this.world.happen(happening);
  }
}

export class World {
  now = 1_000;
  /** What each side has handed over: at the client, from its server, and the other way. */
  atClient = /** @type {string[]} */ ([]);
  atServer = /** @type {string[]} */ ([]);
  /** @type {import("../../src/line.js").Close | null} */
  closed = null;
  /** The longest time that the layer above has heard nothing while it was open. */
  silenceMax = 0;
  #told = 0;
  /** Sockets of earlier lines. */
  #former = 0;
  isOpen = false;
  memory = emptyMemory();
  /** @type {Link[]} */
  links = [];
  /** When sockets were opened. @type {number[]} */
  connects = [];
  /** New sockets don't get through. */
  unreachable = false;
  /** Sockets that the line holds. @type {Set<number>} */
  held = new Set();
  /** How often there were two sockets at once. */
  overlaps = 0;
  /** Everything that the client has sent, session frames too. @type {string[]} */
  told = [];
  /** The states that the line went through. @type {string[]} */
  states = [];
  /** Whether each socket was opened without a session. @type {boolean[]} */
  plain = [];
  /** Sockets left to the next line. @type {number[]} */
  parked = [];
  /** Pings that the layer above has heard. */
  pings = 0;
  /** How often it was told that it is open. */
  opens = 0;
  /** While it is, nothing reaches the line, not even time. */
  asleep = false;

  /**
   * @param {object} options
   * @param {() => number} options.random
   * @param {() => number} [options.delay] Of the next parcel.
   * @param {ConstructorParameters<typeof SessionServer>[0]} [options.server]
   * @param {number} [options.unackedBytesMax]
   */
  constructor({ random, delay = () => 10, server = {}, unackedBytesMax = 2 ** 20 }) {
    this.delay = delay;
    this.random = random;
    this.unackedBytesMax = unackedBytesMax;
    this.server = new SessionServer({ onPayload: (_, text) => this.atServer.push(text), ...server });
    this.line = this.#newLine();
  }

  /** Another line, after the former was closed. */
  renew() {
    this.line = this.#newLine();
    this.closed = null;
    this.isOpen = false;
  }

  #newLine() {
    const { unackedBytesMax, random, memory } = this;
    this.#former = this.links.length;
    return new Line({ backoff: BACKOFF, unackedBytesMax, random, memory });
  }

  get session() {
    return this.server.all[0];
  }

  /** @param {(line: Line, now: number) => void} happening */
  happen(happening) {
    happening(this.line, this.now);
    this.#look();
    for (let actions = this.line.take(); actions.length > 0; actions = this.line.take()) {
      for (const action of actions) this.#perform(action);
    }
    if (this.held.size > 2) throw new Error("more than two sockets at once");
    if (this.held.size > 1) this.overlaps += 1;
  }

  #look() {
    if (this.states.at(-1) !== this.line.state) this.states.push(this.line.state);
  }

  /** @param {import("../../src/line.js").Action} action */
  #perform(action) {
    switch (action.type) {
      case "connect":
        this.connects.push(this.now);
        this.plain.push(action.plain);
        this.held.add(action.socket);
        this.#connect(action.socket);
        break;
      case "send":
        this.told.push(action.data);
        this.link(action.socket).send(action.data);
        break;
      case "drop":
      case "park":
        if (action.type === "park") this.parked.push(action.socket);
        this.held.delete(action.socket);
        this.link(action.socket).drop(action.type === "drop" ? action.code : 1000);
        break;
      case "open":
        this.isOpen = true;
        this.opens += 1;
        this.#told = this.now;
        break;
      case "message":
        this.silenceMax = Math.max(this.silenceMax, this.now - this.#told);
        this.#told = this.now;
        if (action.data !== "{}") {
          this.atClient.push(action.data);
        } else {
          this.pings += 1;
          this.happen((line, now) => line.send("{}", now)); // as the SDK answers
        }
        break;
      case "close":
        if (this.closed) throw new Error("closed twice");
        this.closed = action;
        break;
    }
  }

  /** @param {number} id */
  link(id) {
    const link = this.links[this.#former + id - 1];
    if (!link) throw new Error(`no socket ${id}`);
    return link;
  }

  /** The newest socket. */
  get last() {
    return this.link(this.links.length - this.#former);
  }

  /** @param {number} id */
  #connect(id) {
    const link = new Link(this, id);
    this.links.push(link);
    if (!this.unreachable) {
      link.open();
      return;
    }
    const at = this.now + Math.min(this.delay() * 10, OPENING_TIMEOUT);
    link.parcels.down.push({
      at,
      deliver: () => {
        if (!link.heard.down) return;
        link.hushed();
        this.happen((line, now) => line.socketClosed(id, now, 1006, ""));
      },
    });
  }

  /** @param {string} text */
  clientSends(text) {
    this.happen((line, now) => line.send(text, now));
  }

  /** @param {string} text */
  serverSends(text) {
    if (this.session) this.server.publish(this.session, text);
  }

  /**
   * Lets time pass.
   *
   * @param {number} duration
   */
  run(duration) {
    const until = this.now + duration;
    for (;;) {
      const link = this.links.reduce((a, b) => (b.due < a.due ? b : a), /** @type {any} */ ({ due: Infinity }));
      const awakeAt = this.asleep ? Infinity : this.line.deadline;
      const next = Math.min(link.due, awakeAt, this.server.deadline);
      if (next > until) break;
      this.now = Math.max(this.now, next);
      if (link.due <= this.now) link.deliver();
      else if (awakeAt <= this.now) this.#tick();
      else this.server.tick(this.now);
    }
    this.now = until;
  }

  #tick() {
    this.happen((line, now) => line.tick(now));
    if (this.line.deadline <= this.now) throw new Error("the same deadline again: it would be busy for nothing");
  }

  /** With a session on a socket, after the first answer. */
  begin() {
    this.happen((line, now) => line.start(now, false));
    this.#runUntil(() => this.isOpen);
    this.clientSends("connect");
    this.#runUntil(() => this.atServer.length > 0);
    this.serverSends("connected");
    this.#runUntil(() => this.atClient.length > 0);
    return this;
  }

  /** @param {() => boolean} condition */
  #runUntil(condition) {
    for (let step = 0; !condition(); step += 1) {
      if (step > 1_000) throw new Error("it doesn't begin");
      this.run(10);
    }
  }
}
