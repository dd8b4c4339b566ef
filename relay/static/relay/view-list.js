// The list of conversations.

import { h } from "./dom.js";

const STATES = { in_progress: "answering", error: "ended with an error" };

/** Draws the conversations into a `<ul>`; each is a link, so that it can be opened in a tab of its own. */
export class ConversationList {
  constructor(element, empty) {
    Object.assign(this, { element, empty });
    this.version = "";
  }

  update(conversations, openId) {
    const version = JSON.stringify([openId, conversations.map((item) => [item.id, item.title, item.state])]);
    if (version === this.version) return;
    this.version = version;
    const focused = this.element.contains(document.activeElement) && document.activeElement.hash;
    this.element.replaceChildren(...conversations.map((item) => entry(item, item.id === openId)));
    if (focused) this.element.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
    this.empty.hidden = conversations.length > 0;
  }
}

function entry({ id, title, state }, isOpen) {
  const link = h("a", { href: `#${encodeURIComponent(id)}`, "aria-current": isOpen ? "page" : null, data: { state } },
    h("span", { class: "title", text: title || "Untitled" }),
    STATES[state] && h("span", { class: "sr", text: `, ${STATES[state]}` }));
  return h("li", {}, link);
}
