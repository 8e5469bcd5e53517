// @ts-check
/** Puts the page together: who speaks, which rooms are open, and what is on the screen. */

import { Conversation, LIMIT } from "./conversation.js";
import { Gateway } from "./gateway.js";
import {
  NoTokenRoute, forgetIdentity, rememberIdentity, rememberedIdentity, tokenSource,
} from "./identity.js";
import { JoinDialog } from "./join.js";
import { LogView } from "./log.js";
import { View } from "./view.js";
import { ResumableWebSocket } from "../client/index.js";

/** @typedef {import("./identity.js").Identity} Identity */

const DEFAULT_ROOM = "lobby";
/** More than that, and opening one leaves the one that was opened first. */
const ROOMS_MAX = 12;
const ROOM_LENGTH_MAX = 60;
/** How many messages are kept while somebody reads up. */
const LIMIT_READING = 5_000;
/** The device says that it has no network: what then doesn't answer soon is away. */
const OFFLINE_PATIENCE_MS = 1_000;
const COUNTDOWN_MS = 250;
const ROOMS_KEY = "capegate.rooms";

class Page {
  /** @type {Identity | null} */
  #identity = null;
  /** @type {Gateway | null} */
  #gateway = null;
  /** By room. @type {Map<string, Conversation>} */
  #conversations = new Map();
  /** Whether the last thing that the gateway heard was that a token has to be given by hand. */
  #tokenNeeded = false;
  #drawing = false;
  /** @type {ReturnType<typeof setInterval> | undefined} */
  #countdown = undefined;

  #join = new JoinDialog((identity) => this.#become(identity));

  #log = new LogView({
    onRetry: (key) => this.#conversation?.retry(key),
    onDiscard: (key) => this.#conversation?.discard(key),
    onOlder: () => this.#conversation?.loadOlder(),
    onSeen: () => this.#draw(),
  });

  #view = new View({
    onSend: (text) => {
      this.#conversation?.send(text);
      this.#log.follow();
    },
    onTyping: (active) => this.#conversation?.typing(active),
    onReconnect: () => {
      if (this.#gateway?.state.phase === "waiting") this.#gateway.retryNow();
      else this.#gateway?.connect();
    },
    onChangeName: () => this.#ask(),
    onOpenRoom: (room) => {
      location.hash = encodeURIComponent(room);
    },
    onLeaveRoom: (room) => this.#leave(room),
  });

  start() {
    addEventListener("hashchange", () => this.#roomChanged());
    addEventListener("online", () => this.#gateway?.probe());
    addEventListener("pageshow", () => this.#gateway?.probe());
    addEventListener("offline", () => this.#doubt(OFFLINE_PATIENCE_MS));
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.#doubt();
    });
    addEventListener("beforeunload", (event) => {
      const unsent = [...this.#conversations.values()].some(({ room }) => room.outgoing.length > 0);
      if (unsent) event.preventDefault();
    });
    const identity = rememberedIdentity();
    if (identity) this.#become(identity);
    else this.#ask();
  }

  get #conversation() {
    return this.#conversations.get(roomInAddress());
  }

  /**
   * What looks connected may be long dead: the device was asleep, or has lost its network.
   *
   * @param {number} [patienceMs]
   */
  #doubt(patienceMs) {
    if (this.#gateway?.state.phase === "connected") this.#gateway.probe(patienceMs);
    this.#draw();
  }

  /** @param {string} [problem] */
  #ask(problem) {
    const token = this.#tokenNeeded || this.#identity?.token != null;
    this.#join.open({ room: roomInAddress(), current: this.#identity, token, problem });
  }

  /**
   * Starts afresh as somebody: everything that belonged to the former identity goes.
   *
   * @param {Identity} identity
   */
  #become(identity) {
    for (const conversation of this.#conversations.values()) conversation.leave();
    this.#conversations.clear();
    this.#gateway?.disconnect();
    this.#tokenNeeded = false;
    this.#identity = identity;
    rememberIdentity(identity);
    const getToken = tokenSource(identity);
    const gateway = new Gateway(gatewayUrl(), {
      getToken: async () => {
        try {
          return await getToken();
        } catch (error) {
          this.#tokenNeeded = error instanceof NoTokenRoute;
          throw error;
        }
      },
      onState: () => {
        if (gateway === this.#gateway) this.#connectionChanged();
      },
      websocket: ResumableWebSocket,
    });
    this.#gateway = gateway;
    for (const room of rememberedRooms()) this.#open(room);
    this.#roomChanged();
    gateway.connect();
    this.#view.focusText();
  }

  #connectionChanged() {
    const state = this.#gateway?.state;
    if (!state) return;
    if (!state.alive && (state.phase === "waiting" || state.phase === "disconnected")) {
      for (const conversation of this.#conversations.values()) conversation.hold();
    }
    clearInterval(this.#countdown);
    // Seconds are counted, and what lasts is said.
    if (state.phase !== "connected" && state.phase !== "disconnected") {
      this.#countdown = setInterval(() => this.#draw(), COUNTDOWN_MS);
    }
    if (state.phase === "disconnected" && this.#tokenNeeded) {
      const problem = this.#identity?.token ? "The token isn't good any more. Please enter a new one." : "";
      this.#identity = null;
      forgetIdentity();
      this.#ask(problem);
    }
    this.#draw();
  }

  // Rooms.

  #roomChanged() {
    const room = roomInAddress();
    this.#join.showRoom(room);
    if (!this.#identity || !this.#gateway) return;
    this.#open(room);
    rememberRooms([...this.#conversations.keys()]);
    // At once: what is typed next belongs to this room, and the draft before it to the other.
    this.#showTitle();
    this.#drawNow();
  }

  /** @param {string} room */
  #open(room) {
    const { user } = this.#identity ?? {};
    if (!this.#gateway || user === undefined || this.#conversations.has(room)) return;
    const conversation = new Conversation({
      gateway: this.#gateway, name: room, me: user, onChange: () => this.#draw(),
    });
    this.#conversations.set(room, conversation);
    conversation.enter();
    if (this.#conversations.size <= ROOMS_MAX) return;
    const idle = [...this.#conversations.values()].find((other) => other !== conversation && other.room.outgoing.length === 0);
    if (idle) this.#close(idle.name);
  }

  /** @param {string} room */
  #leave(room) {
    this.#close(room);
    rememberRooms([...this.#conversations.keys()]);
    const [next = DEFAULT_ROOM] = this.#conversations.keys();
    if (room === roomInAddress()) location.hash = encodeURIComponent(next);
    this.#draw();
  }

  /** @param {string} room */
  #close(room) {
    this.#conversations.get(room)?.leave();
    this.#conversations.delete(room);
  }

  // The screen.

  /** Soon, once for however many changes. */
  #draw() {
    this.#showTitle();
    if (this.#drawing) return;
    this.#drawing = true;
    requestAnimationFrame(() => {
      this.#drawing = false;
      this.#drawNow();
    });
  }

  #drawNow() {
    const conversation = this.#conversation;
    if (!conversation || !this.#gateway || !this.#identity) return;
    const now = Date.now();
    this.#log.render(conversation, now);
    conversation.limit = this.#log.pinned ? LIMIT : LIMIT_READING;
    if (this.#log.pinned && !document.hidden) conversation.see();
    this.#view.render({
      identity: this.#identity,
      connection: this.#gateway.state,
      conversation,
      conversations: [...this.#conversations.values()],
      isOnline: navigator.onLine,
      now,
    });
    this.#showTitle();
    // Until the screen is full there is nothing to scroll that would ask for more.
    if (conversation.past === "more" && this.#log.short) conversation.loadOlder();
  }

  /** Apart from drawing, because a page in the background isn't drawn. */
  #showTitle() {
    const unread = [...this.#conversations.values()].reduce((sum, conversation) => sum + conversation.unread, 0);
    const title = `${unread > 0 ? `(${unread}) ` : ""}#${roomInAddress()} · capegate`;
    if (document.title !== title) document.title = title;
  }
}

function roomInAddress() {
  let room = location.hash.slice(1);
  try {
    room = decodeURIComponent(room);
  } catch {
    // A lone "%": then it is what was meant.
  }
  return room.trim().slice(0, ROOM_LENGTH_MAX) || DEFAULT_ROOM;
}

function gatewayUrl() {
  const url = new URL("connection/websocket", document.baseURI);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  url.hash = "";
  return url.href;
}

/** @returns {string[]} */
function rememberedRooms() {
  try {
    const rooms = JSON.parse(sessionStorage.getItem(ROOMS_KEY) ?? "[]");
    return Array.isArray(rooms) ? rooms.filter((room) => typeof room === "string").slice(0, ROOMS_MAX) : [];
  } catch {
    return [];
  }
}

/** @param {string[]} rooms */
function rememberRooms(rooms) {
  try {
    sessionStorage.setItem(ROOMS_KEY, JSON.stringify(rooms));
  } catch {
    // Storage may be forbidden; then a reload opens only the room in the address.
  }
}

new Page().start();
