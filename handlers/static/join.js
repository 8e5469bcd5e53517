// @ts-check
/** The dialog that asks who is coming in. */

import { element, setText } from "./dom.js";
import { NoTokenRoute, fetchToken, suggestedName, userOf } from "./identity.js";
import { GatewayError } from "./errors.js";

/** @typedef {import("./identity.js").Identity} Identity */

const NAME_LENGTH_MAX = 64;

export class JoinDialog {
  #dialog = element("join", HTMLDialogElement);
  #form = element("join-form", HTMLFormElement);
  #name = element("join-name", HTMLInputElement);
  #nameField = element("join-name-field", HTMLElement);
  #token = element("join-token", HTMLTextAreaElement);
  #tokenField = element("join-token-field", HTMLElement);
  #error = element("join-error", HTMLElement);
  #submit = element("join-submit", HTMLButtonElement);
  #cancel = element("join-cancel", HTMLButtonElement);
  #onJoin;

  /** @param {(identity: Identity) => void} onJoin */
  constructor(onJoin) {
    this.#onJoin = onJoin;
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#try();
    });
    this.#cancel.addEventListener("click", () => this.#dialog.close());
    this.#dialog.addEventListener("cancel", (event) => {
      // Without an identity there is nothing behind the dialog to go back to.
      if (this.#cancel.hidden) event.preventDefault();
    });
  }

  /**
   * @param {object} options
   * @param {string} options.room
   * @param {Identity | null} options.current Who this tab is now, and may remain.
   * @param {boolean} [options.token] A token has to be given by hand.
   * @param {string} [options.problem] Why the last one isn't good enough.
   */
  open({ room, current, token = false, problem = "" }) {
    this.#cancel.hidden = current === null;
    this.#submit.disabled = false;
    this.#name.value = current?.user ?? suggestedName();
    setText(element("join-title", HTMLElement), current ? "Come in as someone else" : "Come in");
    this.showRoom(room);
    if (!this.#dialog.open) this.#dialog.showModal();
    this.#askFor(token ? this.#token : this.#name);
    this.#say(problem, token ? this.#token : this.#name);
  }

  /** @param {string} room */
  showRoom(room) {
    setText(element("join-room", HTMLElement), `#${room}`);
  }

  /** @param {HTMLInputElement | HTMLTextAreaElement} input */
  #askFor(input) {
    this.#tokenField.hidden = input !== this.#token;
    this.#nameField.hidden = input !== this.#name;
    input.focus();
    input.select();
  }

  async #try() {
    this.#say("", null);
    const identity = this.#tokenField.hidden ? await this.#byName() : this.#byToken();
    if (identity === null) return;
    this.#dialog.close();
    this.#token.value = "";
    this.#onJoin(identity);
  }

  /** @returns {Promise<Identity | null>} */
  async #byName() {
    const user = this.#name.value.trim();
    if (user === "" || user.length > NAME_LENGTH_MAX) {
      this.#say(user === "" ? "Please enter a name." : "Please choose a shorter name.", this.#name);
      return null;
    }
    this.#submit.disabled = true;
    try {
      // The gateway gets its own later; this one tells whether the name is good.
      await fetchToken(user);
      return { user, token: null };
    } catch (error) {
      if (error instanceof NoTokenRoute) this.#askFor(this.#token);
      else if (error instanceof GatewayError) {
        this.#say(error.temporary ? "The server can't be reached. Is it running? Try again in a moment." : error.message, this.#name);
      } else throw error;
      return null;
    } finally {
      this.#submit.disabled = false;
    }
  }

  /** @returns {Identity | null} */
  #byToken() {
    const token = this.#token.value.trim();
    const user = userOf(token);
    if (user === null) {
      this.#say("This isn't a connection token. It is one long line with two dots in it; copy all of it.", this.#token);
      return null;
    }
    return { user, token };
  }

  /**
   * @param {string} problem
   * @param {HTMLElement | null} input
   */
  #say(problem, input) {
    setText(this.#error, problem);
    for (const field of [this.#name, this.#token]) {
      if (problem && field === input) field.setAttribute("aria-invalid", "true");
      else field.removeAttribute("aria-invalid");
    }
    input?.focus();
  }
}
