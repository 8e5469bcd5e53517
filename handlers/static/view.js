// @ts-check
/** Everything on the page around the messages: connection, rooms, people, the message box. */

import { element, part, reconcile, setText, showAvatar, template } from "./dom.js";
import { indication } from "./indicator.js";
import { counted, peopleCount, typingPhrase } from "./words.js";

/** @typedef {import("./gateway.js").ConnectionState} ConnectionState */
/** @typedef {import("./conversation.js").Conversation} Conversation */
/** @typedef {import("./identity.js").Identity} Identity */
/** @typedef {import("./indicator.js").Indication} Indication */
/** @typedef {import("./room.js").Person} Person */

/**
 * @typedef {object} Model
 * @property {Identity} identity
 * @property {ConnectionState} connection
 * @property {Conversation} conversation The one on the screen.
 * @property {Conversation[]} conversations
 * @property {boolean} isOnline Whether the device has a network.
 * @property {number} now
 *
 * @typedef {object} Handlers
 * @property {(text: string) => void} onSend
 * @property {(active: boolean) => void} onTyping
 * @property {() => void} onReconnect Retry now, or connect again.
 * @property {() => void} onChangeName
 * @property {(room: string) => void} onOpenRoom
 * @property {(room: string) => void} onLeaveRoom
 */

/** The rest is announced when this little is left. */
const LEFT_SHOWN = 400;

export class View {
  #main = element("main", HTMLElement);
  #side = element("side", HTMLElement);
  #sideOpen = element("side-open", HTMLButtonElement);
  #sideBadge = element("side-badge", HTMLElement);
  #rooms = element("rooms", HTMLUListElement);
  #people = element("people", HTMLUListElement);
  #connection = element("connection", HTMLElement);
  #connectionLabel = element("connection-label", HTMLElement);
  #connectionDetail = element("connection-detail", HTMLElement);
  #connectionSpoken = element("connection-spoken", HTMLElement);
  #advice = element("advice", HTMLElement);
  #adviceText = element("advice-text", HTMLElement);
  #adviceButton = element("advice-button", HTMLButtonElement);
  #announcer = element("announcer", HTMLElement);
  #typing = element("typing", HTMLElement);
  #text = element("text", HTMLTextAreaElement);
  #counter = element("counter", HTMLElement);
  #newRoom = template("room-template");
  #newPerson = template("person-template");
  #handlers;
  /** The last worry about the connection that was read aloud, until it is over. */
  #announced = "";
  /** The room whose text is in the message box, and the unsent texts of the others. */
  #room = "";
  /** @type {Map<string, string>} */
  #drafts = new Map();

  /** @param {Handlers} handlers */
  constructor(handlers) {
    this.#handlers = handlers;
    this.#setUpSide();
    this.#setUpComposer();
    this.#adviceButton.addEventListener("click", () => {
      if (this.#adviceButton.getAttribute("aria-disabled") !== "true") handlers.onReconnect();
    });
    element("change-name", HTMLButtonElement).addEventListener("click", () => {
      this.#closeSide();
      handlers.onChangeName();
    });
    element("skip", HTMLButtonElement).addEventListener("click", () => this.focusText());
  }

  focusText() {
    this.#text.focus();
  }

  /** @param {Model} model */
  render({ identity, connection, conversation, conversations, isOnline, now }) {
    const { name, room } = conversation;
    const people = room.people();
    this.#changeRoom(name);
    setText(element("room-name", HTMLElement), `#${name}`);
    setText(element("room-count", HTMLElement), people.length > 0 ? peopleCount(people.length) : "No one here yet");
    const indicated = indication(connection, { now, isOnline });
    this.#renderConnection(indicated, connection);
    this.#renderAdvice(indicated, conversation);
    this.#renderRooms(conversations, conversation);
    this.#renderPeople(people);
    this.#renderTyping(room.typing());
    showAvatar(element("me-avatar", HTMLElement), identity.user, identity.user);
    setText(element("me-name", HTMLElement), identity.user || "Anonymous");
  }

  // The connection.

  /**
   * @param {Indication} indicated
   * @param {ConnectionState} connection
   */
  #renderConnection({ kind, label, detail, spoken, advice }, { quality }) {
    this.#connection.dataset.kind = kind;
    this.#connection.dataset.quality = kind === "connected" ? (quality ?? "") : "";
    setText(this.#connectionLabel, label);
    setText(this.#connectionDetail, detail);
    setText(this.#connectionSpoken, spoken);
    // The indicator counts seconds, so it isn't read aloud by itself; what changed is, once.
    if (advice !== "" && advice !== this.#announced) {
      this.#announced = advice;
      setText(this.#announcer, advice);
    } else if (kind === "connected" && this.#announced !== "") {
      this.#announced = "";
      setText(this.#announcer, "Connected again.");
    }
  }

  /**
   * @param {Indication} indicated
   * @param {Conversation} conversation
   */
  #renderAdvice({ advice, button, isBusy }, { problem }) {
    const text = advice || problem;
    // Asked first: what is hidden loses the focus at once.
    const focused = document.activeElement === this.#adviceButton;
    setText(this.#adviceText, text);
    this.#adviceButton.hidden = button === "";
    // It keeps its place and the focus while it can't do anything.
    this.#adviceButton.setAttribute("aria-disabled", String(isBusy));
    setText(this.#adviceButton, button);
    this.#advice.hidden = text === "";
    if (focused && this.#adviceButton.hidden) this.focusText();
  }

  // Rooms and people.

  /**
   * @param {Conversation[]} conversations
   * @param {Conversation} current
   */
  #renderRooms(conversations, current) {
    const rows = conversations.map((conversation) => ({ key: conversation.name, conversation }));
    const make = () => {
      const child = this.#newRoom();
      part(child, "button", HTMLButtonElement).addEventListener("click", () => {
        this.#handlers.onLeaveRoom(child.dataset.key ?? "");
        part(this.#rooms, "a", HTMLAnchorElement).focus();
      });
      return child;
    };
    reconcile(this.#rooms, rows, make, (child, { conversation }) => {
      const { name, unread } = conversation;
      const link = part(child, "a", HTMLAnchorElement);
      link.href = `#${encodeURIComponent(name)}`;
      if (conversation === current) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
      setText(part(child, ".room-label", HTMLElement), name);
      showBadge(part(child, ".badge", HTMLElement), conversation === current ? 0 : unread);
      const leave = part(child, "button", HTMLButtonElement);
      leave.hidden = conversations.length < 2;
      leave.setAttribute("aria-label", `Leave #${name}`);
    });
    const elsewhere = conversations.reduce((sum, conversation) => sum + (conversation === current ? 0 : conversation.unread), 0);
    showBadge(this.#sideBadge, elsewhere);
  }

  /** @param {Person[]} people */
  #renderPeople(people) {
    const rows = people.map((person) => ({ key: person.user, person }));
    reconcile(this.#people, rows, () => this.#newPerson(), (child, { person }) => {
      showAvatar(part(child, ".avatar", HTMLElement), person.user, person.name);
      setText(part(child, ".person-name", HTMLElement), person.name);
      const details = [];
      if (person.own) details.push("you");
      if (person.connections > 1) details.push(counted(person.connections, "connection", "connections"));
      setText(part(child, ".person-detail", HTMLElement), details.length > 0 ? `(${details.join(", ")})` : "");
    });
  }

  #setUpSide() {
    const form = element("open-room", HTMLFormElement);
    const input = element("open-room-name", HTMLInputElement);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const name = input.value.trim().replace(/^#+/, "");
      if (name === "") {
        input.focus();
        return;
      }
      input.value = "";
      this.#closeSide();
      this.#handlers.onOpenRoom(name);
      this.focusText();
    });
    this.#rooms.addEventListener("click", ({ target }) => {
      if (target instanceof Element && target.closest("a")) this.#closeSide();
    });
    this.#sideOpen.addEventListener("click", () => {
      this.#side.classList.add("open");
      this.#sideOpen.setAttribute("aria-expanded", "true");
      this.#main.inert = true;
      element("side-close", HTMLButtonElement).focus();
    });
    element("side-close", HTMLButtonElement).addEventListener("click", () => this.#closeSide());
    element("veil", HTMLElement).addEventListener("click", () => this.#closeSide());
    document.addEventListener("keydown", ({ key }) => {
      if (key === "Escape") this.#closeSide();
    });
    // Turned or widened, the side is beside the room and covers nothing.
    matchMedia("(min-width: 48rem)").addEventListener("change", () => this.#closeSide());
  }

  #closeSide() {
    if (!this.#side.classList.contains("open")) return;
    this.#side.classList.remove("open");
    this.#sideOpen.setAttribute("aria-expanded", "false");
    this.#main.inert = false;
    this.#sideOpen.focus();
  }

  // The message box.

  #setUpComposer() {
    element("composer", HTMLFormElement).addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.#text.addEventListener("keydown", (event) => {
      // While an input method composes, Enter belongs to it.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#send();
    });
    this.#text.addEventListener("input", () => {
      this.#fitText();
      this.#handlers.onTyping(this.#text.value.trim() !== "");
    });
  }

  #send() {
    const text = this.#text.value.trim();
    this.focusText();
    if (text === "") return;
    this.#text.value = "";
    this.#fitText();
    this.#handlers.onSend(text);
  }

  #fitText() {
    if (!CSS.supports("field-sizing", "content")) {
      this.#text.style.height = "auto";
      this.#text.style.height = `${this.#text.scrollHeight}px`;
    }
    const left = this.#text.maxLength - this.#text.value.length;
    this.#counter.hidden = left > LEFT_SHOWN;
    setText(this.#counter, `${left} left`);
  }

  /** @param {string} name */
  #changeRoom(name) {
    if (name === this.#room) return;
    this.#drafts.set(this.#room, this.#text.value);
    this.#room = name;
    this.#text.value = this.#drafts.get(name) ?? "";
    this.#text.placeholder = `Message #${name}`;
    setText(element("text-label", HTMLElement), `Message #${name}`);
    this.#fitText();
  }

  /** @param {string[]} names */
  #renderTyping(names) {
    setText(element("typing-text", HTMLElement), typingPhrase(names));
    this.#typing.classList.toggle("active", names.length > 0);
  }
}

/**
 * @param {HTMLElement} badge
 * @param {number} count
 */
function showBadge(badge, count) {
  badge.hidden = count === 0;
  setText(badge, count > 99 ? "99+" : String(count));
}
