// Notices of the server that belong to no turn: limits, refusals, what could not be recovered.

import { h } from "./dom.js";

const SAME_MS = 10_000;
const STAYS_MS = 20_000;

/** Shows each sentence once in a while, however many ways it came. */
export class Notices {
  constructor(element) {
    this.element = element;
    this.recent = new Map();
  }

  /** The sentence has been shown elsewhere: do not show it here as well. */
  known(text) {
    this.recent.set(text, Date.now());
  }

  /** `kind`: "error", "warning" or "info"; an error stays until it is closed. */
  tell(text, kind = "info") {
    if (!text || Date.now() - (this.recent.get(text) ?? -Infinity) < SAME_MS) return;
    this.known(text);
    const close = h("button", { type: "button", class: "quiet", "aria-label": "Close this notice", text: "×" });
    const role = kind === "info" ? "status" : "alert";
    const notice = h("div", { class: `notice ${kind}`, role }, h("p", { text }), close);
    close.addEventListener("click", () => notice.remove());
    if (kind !== "error") setTimeout(() => notice.remove(), STAYS_MS);
    this.element.append(notice);
    while (this.element.children.length > 4) this.element.firstChild.remove();
  }
}
