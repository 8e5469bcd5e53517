// @ts-check
/** The list of messages: rows into elements, and the place where the reader is. */

import { element, part, reconcile, setText, showAvatar, template } from "./dom.js";
import { clockTime, counted, dayName, fullTime } from "./words.js";

/** @typedef {import("./room.js").Row} Row */
/** @typedef {import("./room.js").Message} Message */
/** @typedef {import("./conversation.js").Conversation} Conversation */

/** Closer to the end than this, the reader follows the conversation. */
const PINNED_PX = 48;
/** Closer to the beginning than this, earlier messages are asked for. */
const NEAR_TOP_PX = 300;
/** More than this at once is a page of the past, not something to read aloud. */
const ANNOUNCED_MAX = 5;

const LINK = /https?:\/\/[^\s<>"]*[^\s<>"'.,;:!?)\]}]/g;

const STATE_WORDS = { sending: "Sending", sent: "Sent", failed: "Not sent" };

export class LogView {
  /** Whether the end is on the screen and stays there. */
  pinned = true;

  #log = element("log", HTMLElement);
  #list = element("messages", HTMLOListElement);
  #past = element("past", HTMLElement);
  #pastText = element("past-text", HTMLElement);
  #pastButton = element("past-button", HTMLButtonElement);
  #latest = element("latest", HTMLButtonElement);
  #latestText = element("latest-text", HTMLElement);
  #newMessage = template("message-template");
  /** What each element shows, to leave alone what hasn't changed. @type {WeakMap<HTMLElement, Row>} */
  #shown = new WeakMap();
  /** @type {Conversation | null} */
  #conversation = null;
  /** The part of the state that the list was last made from. */
  #drawn = "";
  #onSeen;

  /**
   * @param {object} handlers
   * @param {(key: string) => void} handlers.onRetry
   * @param {(key: string) => void} handlers.onDiscard
   * @param {() => void} handlers.onOlder The reader comes to the beginning of what is there.
   * @param {() => void} handlers.onSeen The reader has come to the end.
   */
  constructor({ onRetry, onDiscard, onOlder, onSeen }) {
    this.#onSeen = onSeen;
    this.#log.addEventListener("scroll", () => this.#scrolled(onOlder), { passive: true });
    this.#latest.addEventListener("click", () => {
      this.follow();
      this.#log.focus({ preventScroll: true });
    });
    this.#pastButton.addEventListener("click", onOlder);
    this.#list.addEventListener("click", ({ target }) => {
      const button = target instanceof Element ? target.closest("button") : null;
      const key = button?.closest("li")?.dataset.key;
      if (!button || key === undefined) return;
      if (button.classList.contains("retry")) onRetry(key);
      if (button.classList.contains("discard")) onDiscard(key);
      this.#log.focus({ preventScroll: true });
    });
    // The frame shrinks when a keyboard or a second line of text appears: the end stays in sight.
    new ResizeObserver(() => {
      if (this.pinned) this.#toEnd();
    }).observe(this.#log);
  }

  /** Goes to the end and stays there. */
  follow() {
    this.pinned = true;
    this.#toEnd();
    this.#onSeen();
  }

  /** Whether there is room left that earlier messages could fill. */
  get short() {
    return this.#log.scrollHeight <= this.#log.clientHeight + NEAR_TOP_PX;
  }

  /**
   * @param {Conversation} conversation
   * @param {number} now
   */
  render(conversation, now) {
    const changedRoom = conversation !== this.#conversation;
    this.#conversation = conversation;
    if (changedRoom) this.pinned = true;
    this.#renderPast(conversation);
    // Days are named after the present one, so midnight changes the list too.
    const drawing = `${conversation.room.version} ${new Date(now).toDateString()}`;
    if (changedRoom || drawing !== this.#drawn) {
      this.#drawn = drawing;
      const keepPlace = this.pinned ? () => this.#toEnd() : this.#place();
      this.#renderRows(conversation.room.rows((time) => dayName(time, now)), changedRoom);
      keepPlace();
    }
    this.#renderLatest(conversation);
  }

  /** @param {Conversation} conversation */
  #renderPast({ past, name, problem }) {
    const texts = {
      more: "",
      loading: "Loading messages…",
      failed: "Earlier messages couldn't be loaded.",
      complete: `This is the beginning of #${name}.`,
      unkept: "This room keeps no messages: you see what is written while you are here.",
    };
    setText(this.#pastText, problem ? "" : texts[past]);
    const canAsk = !problem && (past === "more" || past === "failed");
    if (!canAsk && document.activeElement === this.#pastButton) this.#log.focus({ preventScroll: true });
    this.#pastButton.hidden = !canAsk;
    // Coming by in the focus order would take the reader up here; scrolling loads just as well.
    this.#pastButton.tabIndex = past === "failed" ? 0 : -1;
    setText(this.#pastButton, past === "failed" ? "Try again" : "Load earlier messages");
    this.#past.setAttribute("aria-busy", String(past === "loading"));
  }

  /**
   * @param {Row[]} rows
   * @param {boolean} changedRoom
   */
  #renderRows(rows, changedRoom) {
    const present = new Set([...this.#list.children].map((child) => /** @type {HTMLElement} */ (child).dataset.key));
    const lastKept = changedRoom ? -1 : rows.findLastIndex(({ key }) => present.has(key));
    const added = rows.filter(({ key }, index) => index > lastKept && !present.has(key)).length;
    const inserted = rows.some(({ key }, index) => index < lastKept && !present.has(key));
    // A page of the past, or a whole room, isn't read aloud; what arrives is.
    const announce = lastKept >= 0 && !inserted && added <= ANNOUNCED_MAX;
    this.#log.setAttribute("aria-live", announce ? "polite" : "off");
    if (changedRoom) this.#list.replaceChildren();
    reconcile(this.#list, rows, (row) => this.#make(row, announce), (child, row) => this.#update(child, row));
  }

  /**
   * @param {Row} row
   * @param {boolean} arriving
   */
  #make(row, arriving) {
    if (row.kind === "message") {
      const child = this.#newMessage();
      child.dataset.arriving = String(arriving);
      return child;
    }
    const child = document.createElement("li");
    child.className = row.kind;
    return child;
  }

  /**
   * @param {HTMLElement} child
   * @param {Row} row
   */
  #update(child, row) {
    const shown = this.#shown.get(child);
    this.#shown.set(child, row);
    if (row.kind === "note") setText(child, row.text);
    else if (row.kind === "day") setText(child, dayName(row.time, Date.now()));
    else if (shown?.kind !== "message" || shown.message !== row.message || shown.first !== row.first || shown.last !== row.last) {
      this.#updateMessage(child, row.message, row.first, row.last);
    }
  }

  /**
   * @param {HTMLElement} child
   * @param {Message} message
   * @param {boolean} first
   * @param {boolean} last
   */
  #updateMessage(child, { user, name, text, time, own, state, offset, problem }, first, last) {
    const classes = { own, first, last, [state]: true, arriving: child.dataset.arriving === "true" };
    child.className = ["message", ...Object.entries(classes).filter(([, on]) => on).map(([word]) => word)].join(" ");
    if (offset > 0) child.dataset.offset = String(offset);
    showAvatar(part(child, ".avatar", HTMLElement), user, name);
    setText(part(child, ".author", HTMLElement), own ? "You" : name);
    const body = part(child, ".text", HTMLElement);
    if (body.textContent !== text) body.replaceChildren(...linked(text));
    const stamp = part(child, "time", HTMLTimeElement);
    stamp.dateTime = new Date(time).toISOString();
    stamp.title = fullTime(time);
    setText(stamp, clockTime(time));
    const mark = part(child, ".state", HTMLElement);
    mark.hidden = !own;
    part(mark, "use", SVGUseElement).setAttribute("href", `#icon-${state}`);
    setText(part(mark, ".unseen", HTMLElement), STATE_WORDS[state]);
    const trouble = part(child, ".problem", HTMLElement);
    trouble.hidden = state !== "failed";
    setText(part(trouble, "p", HTMLElement), problem ?? "");
  }

  /** @param {Conversation} conversation */
  #renderLatest({ unread }) {
    this.#latest.hidden = this.pinned;
    setText(this.#latestText, unread > 0 ? counted(unread, "new message", "new messages") : "Newest messages");
  }

  /** @param {() => void} onOlder */
  #scrolled(onOlder) {
    const { scrollTop, scrollHeight, clientHeight } = this.#log;
    const pinned = scrollHeight - scrollTop - clientHeight < PINNED_PX;
    // After a failure it takes the button: scrolling would ask again and again.
    if (scrollTop < NEAR_TOP_PX && this.#conversation?.past === "more") onOlder();
    if (pinned === this.pinned) return;
    this.pinned = pinned;
    if (pinned) this.#onSeen();
    if (this.#conversation) this.#renderLatest(this.#conversation);
  }

  #toEnd() {
    this.#log.scrollTop = this.#log.scrollHeight;
  }

  /** Remembers the first message in sight; the function it returns puts it back where it was. */
  #place() {
    const top = this.#log.getBoundingClientRect().top;
    // Not a day's name: it stays above whatever is put in under it.
    const anchor = [...this.#list.querySelectorAll(".message")].find((child) => child.getBoundingClientRect().bottom > top);
    const before = anchor?.getBoundingClientRect().top ?? 0;
    return () => {
      if (anchor?.isConnected) this.#log.scrollTop += anchor.getBoundingClientRect().top - before;
    };
  }
}

/**
 * The text with its web addresses as links.
 *
 * @param {string} text
 * @returns {(string | HTMLElement)[]}
 */
function linked(text) {
  /** @type {(string | HTMLElement)[]} */
  const nodes = [];
  let end = 0;
  for (const { 0: address, index } of text.matchAll(LINK)) {
    const link = document.createElement("a");
    link.href = address;
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
    link.textContent = address;
    nodes.push(text.slice(end, index), link);
    end = index + address.length;
  }
  return [...nodes, text.slice(end)];
}
