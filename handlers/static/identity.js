// @ts-check
/** Who is speaking: a name with tokens from the development route, or a token given by hand. */

import { Code, GatewayError } from "./errors.js";

/**
 * @typedef {{user: string, token: string | null}} Identity `token` is null where the server gives
 *   them out (development).
 */

/** The server has no token route: this isn't a development server. */
export class NoTokenRoute extends GatewayError {
  constructor() {
    super(Code.TOKEN_UNAVAILABLE, "This server needs a connection token. Enter one to go on.", false);
  }
}

const NAME_KEY = "capegate.name";
const TOKEN_KEY = "capegate.token";
const TIMEOUT_MS = 10_000;

/**
 * Gets a token from the development route.
 *
 * @param {string} user
 * @returns {Promise<string>}
 * @throws {NoTokenRoute}
 * @throws {GatewayError} With a message to show; temporary when the server can't be reached.
 */
export async function fetchToken(user) {
  let response;
  let answer;
  try {
    response = await fetch(`dev/token?${new URLSearchParams({ user })}`, {
      method: "POST",
      cache: "no-store",
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    answer = response.status === 404 ? {} : await response.json();
  } catch {
    throw new GatewayError(Code.TOKEN_UNAVAILABLE, "the server can't be reached", true);
  }
  if (response.status === 404) throw new NoTokenRoute();
  if (!response.ok) {
    const why = answer.detail ?? `The server gives out no token (status ${response.status}).`;
    throw new GatewayError(Code.TOKEN_UNAVAILABLE, why, response.status >= 500);
  }
  return answer.token;
}

/**
 * How the gateway gets the tokens of an identity. A token given by hand can be used once more only
 * by giving it again: the gateway asks a second time when the first wasn't good any more.
 *
 * @param {Identity} identity
 * @returns {() => Promise<string>}
 */
export function tokenSource({ user, token }) {
  let given = token;
  return async () => {
    if (token === null) return fetchToken(user);
    if (given === null) throw new NoTokenRoute();
    const once = given;
    given = null;
    return once;
  };
}

/**
 * The user that a token was made for. Only to know which messages are one's own: the server is who
 * verifies it.
 *
 * @param {string} token
 * @returns {string | null} null when it isn't a token.
 */
export function userOf(token) {
  try {
    const [, payload, signature] = token.split(".");
    if (!signature) return null;
    const bytes = Uint8Array.from(atob(payload.replace(/-/g, "+").replace(/_/g, "/")), (char) => char.charCodeAt(0));
    const claims = JSON.parse(new TextDecoder().decode(bytes));
    return typeof claims.sub === "string" ? claims.sub : "";
  } catch {
    return null;
  }
}

/**
 * A tab keeps its identity over reloads; another tab may be another person, and so is asked, with
 * the last name as a suggestion.
 *
 * @returns {Identity | null}
 */
export function rememberedIdentity() {
  const token = read("sessionStorage", TOKEN_KEY);
  const user = token === null ? read("sessionStorage", NAME_KEY) : userOf(token);
  return user === null ? null : { user, token };
}

export const suggestedName = () => read("localStorage", NAME_KEY) ?? "";

/** @param {Identity} identity */
export function rememberIdentity({ user, token }) {
  write("sessionStorage", TOKEN_KEY, token);
  write("sessionStorage", NAME_KEY, user);
  if (token === null) write("localStorage", NAME_KEY, user);
}

export function forgetIdentity() {
  write("sessionStorage", TOKEN_KEY, null);
  write("sessionStorage", NAME_KEY, null);
}

// Storage may be forbidden altogether; then nothing is remembered, and everything else works.

/**
 * @param {"sessionStorage" | "localStorage"} storage
 * @param {string} key
 */
function read(storage, key) {
  try {
    return window[storage].getItem(key);
  } catch {
    return null;
  }
}

/**
 * @param {"sessionStorage" | "localStorage"} storage
 * @param {string} key
 * @param {string | null} value
 */
function write(storage, key, value) {
  try {
    if (value === null) window[storage].removeItem(key);
    else window[storage].setItem(key, value);
  } catch {
    // See above.
  }
}
