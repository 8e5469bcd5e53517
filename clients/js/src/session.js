// @ts-check
/**
 * The client's half of a session: what was sent, received and acknowledged, for as long as the
 * session lives, over however many sockets. Knows neither sockets nor time.
 *
 * Both ends number payload frames 1, 2, 3, … in each direction without writing the numbers down.
 * Frames that the server hasn't acknowledged are kept, to be sent again on the next socket.
 */

import { ProtocolError } from "./frames.js";

/** After so much the server is told at once what arrived, not only with the next pong. */
const ACK_FRAMES = 32;
const ACK_CHARACTERS = 32 * 1024;

const utf8 = new TextEncoder();

/** @typedef {{text: string, bytes: number}} Kept */

export class Session {
  /** How many payload frames the server has sent that were handed over. */
  received = 0;
  /** How many the layer above has sent. */
  sent = 0;
  /** Bytes of those that the server hasn't acknowledged. */
  unackedBytes = 0;
  /** @type {Kept[]} The oldest first. */
  #unacked = [];
  #unackedBytesMax;
  /** What the last request to resume has said to be received. */
  #asked = 0;
  /** Whether that request is without an answer. */
  #isAsking = false;
  /** Frames that come again, because they arrived on the old socket after that request. */
  #duplicates = 0;
  #framesUnsaid = 0;
  #charactersUnsaid = 0;

  /** @param {number} unackedBytesMax */
  constructor(unackedBytesMax) {
    this.#unackedBytesMax = unackedBytesMax;
  }

  /** Frames that the server hasn't acknowledged, the oldest first. */
  get unacked() {
    return this.#unacked.map(({ text }) => text);
  }

  /**
   * Counts a frame that is to be sent, and keeps it.
   *
   * @param {string} text
   * @returns {boolean} Whether the limit still holds. Otherwise the session can't go on.
   */
  send(text) {
    const { length: bytes } = utf8.encode(text);
    this.sent += 1;
    this.#unacked.push({ text, bytes });
    this.unackedBytes += bytes;
    return this.unackedBytes <= this.#unackedBytesMax;
  }

  /**
   * The server has processed so many frames. Less than it said before changes nothing: an `ack` and
   * a ping may cross.
   *
   * @param {number} received
   */
  acknowledge(received) {
    if (received > this.sent) {
      throw new ProtocolError(`${received} frames acknowledged of ${this.sent}`);
    }
    const done = received - (this.sent - this.#unacked.length);
    if (done <= 0) return;
    for (const { bytes } of this.#unacked.splice(0, done)) this.unackedBytes -= bytes;
  }

  /**
   * Counts a frame that has arrived.
   *
   * @param {string} text
   * @returns {boolean} Whether it is new.
   */
  receive(text) {
    if (this.#duplicates > 0) {
      this.#duplicates -= 1;
      return false;
    }
    this.received += 1;
    this.#framesUnsaid += 1;
    this.#charactersUnsaid += text.length;
    return true;
  }

  /** Whether the server should be told now how much arrived; then call `say()`. */
  get ackDue() {
    return !this.#isAsking && (this.#framesUnsaid >= ACK_FRAMES || this.#charactersUnsaid >= ACK_CHARACTERS);
  }

  /**
   * How much arrived, as it is told to the server now. While a request to resume is on its way it is
   * what that says, since the server can't resume from before what was acknowledged.
   */
  say() {
    if (this.#isAsking) return this.#asked;
    this.#framesUnsaid = 0;
    this.#charactersUnsaid = 0;
    return this.received;
  }

  /**
   * A ping says what both sides must have counted alike.
   *
   * @param {{received: number, sent: number}} counts The server's.
   */
  compare({ received, sent }) {
    this.acknowledge(received);
    if (sent !== this.received || this.#duplicates > 0) {
      throw new ProtocolError(`${this.received} frames received of ${sent}`);
    }
  }

  /** What a request to resume says to be received. The old socket may go on serving. */
  ask() {
    this.#isAsking = false;
    this.#asked = this.say();
    this.#isAsking = true;
    return this.#asked;
  }

  /** The request was refused: the old socket goes on. */
  withdraw() {
    this.#isAsking = false;
  }

  /**
   * The server resumes, from what it was asked for.
   *
   * @param {number} received How many frames it has processed.
   * @returns {string[]} Those to be sent again.
   */
  resumed(received) {
    if (received < this.sent - this.#unacked.length) {
      throw new ProtocolError(`${received} frames processed, fewer than were acknowledged`);
    }
    this.acknowledge(received);
    this.#duplicates = this.received - this.#asked;
    this.#isAsking = false;
    return this.unacked;
  }
}
