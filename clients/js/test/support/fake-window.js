// @ts-check
/** What a page tells of its device and its own life. */
export class FakeWindow extends EventTarget {
  document = Object.assign(new EventTarget(), { hidden: false });
  navigator = { onLine: true };
  location = { href: "https://chat.example/room" };

  /** @param {boolean} onLine */
  network(onLine) {
    this.navigator.onLine = onLine;
    this.dispatchEvent(new Event(onLine ? "online" : "offline"));
  }

  /** @param {boolean} hidden */
  visibility(hidden) {
    this.document.hidden = hidden;
    this.document.dispatchEvent(new Event("visibilitychange"));
  }

  /**
   * @param {"pagehide" | "pageshow"} type
   * @param {boolean} persisted
   */
  page(type, persisted) {
    this.dispatchEvent(Object.assign(new Event(type), { persisted }));
  }
}
