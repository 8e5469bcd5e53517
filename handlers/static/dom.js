// @ts-check
/** The few helpers that everything on the page shares. */

/**
 * An element that index.html has.
 *
 * @template {Element} T
 * @param {string} id
 * @param {new (...args: any[]) => T} type
 * @returns {T}
 */
export function element(id, type) {
  const found = document.getElementById(id);
  if (!(found instanceof type)) throw new Error(`index.html has no ${type.name} with the id ${id}`);
  return found;
}

/**
 * @template {Element} T
 * @param {ParentNode} parent
 * @param {string} selector
 * @param {new (...args: any[]) => T} type
 * @returns {T}
 */
export function part(parent, selector, type) {
  const found = parent.querySelector(selector);
  if (!(found instanceof type)) throw new Error(`no ${type.name} matches ${selector}`);
  return found;
}

/**
 * A function that makes copies of what a template holds.
 *
 * @param {string} id
 * @returns {() => HTMLElement}
 */
export function template(id) {
  const first = element(id, HTMLTemplateElement).content.firstElementChild;
  return () => /** @type {HTMLElement} */ (first?.cloneNode(true));
}

/**
 * Only touches the document when something differs, so that nothing is announced or laid out for
 * nothing.
 *
 * @param {Element} target
 * @param {string} text
 */
export function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/**
 * Makes a list's children what `rows` says, by key: what stays isn't moved, so that focus,
 * selection and screen readers aren't disturbed.
 *
 * @template {{key: string}} Row
 * @param {Element} list
 * @param {Row[]} rows With distinct keys.
 * @param {(row: Row) => HTMLElement} make
 * @param {(child: HTMLElement, row: Row) => void} update
 */
export function reconcile(list, rows, make, update) {
  const wanted = new Set(rows.map(({ key }) => key));
  /** @type {Map<string, HTMLElement>} */
  const present = new Map();
  for (const child of /** @type {HTMLElement[]} */ ([...list.children])) {
    const key = child.dataset.key ?? "";
    if (wanted.has(key)) present.set(key, child);
    else child.remove();
  }
  let next = list.firstElementChild;
  for (const row of rows) {
    let child = present.get(row.key);
    if (!child) {
      child = make(row);
      child.dataset.key = row.key;
    }
    update(child, row);
    if (child === next) next = next.nextElementSibling;
    else list.insertBefore(child, next);
  }
}

/**
 * Shows a person's initials on a colour that stays theirs.
 *
 * @param {HTMLElement} avatar
 * @param {string} user
 * @param {string} name
 */
export function showAvatar(avatar, user, name) {
  avatar.className = `avatar hue-${hueOf(user)}`;
  setText(avatar, initials(name));
}

/**
 * FNV-1a, down to the eight colours of style.css.
 *
 * @param {string} user
 */
function hueOf(user) {
  let hash = 0x811c9dc5;
  for (const char of user) hash = Math.imul(hash ^ (char.codePointAt(0) ?? 0), 0x01000193);
  return (hash ^ (hash >>> 18)) & 7;
}

/** @param {string} name */
function initials(name) {
  const words = name.split(/[\s._-]+/).filter(Boolean);
  const ends = words.length > 1 ? [words[0], words[words.length - 1]] : words;
  return ends.map((word) => [...word][0]).join("") || "?";
}
