// The transcript of the open conversation: its turns, and the messages that are still on their way.

import { h, show } from "./dom.js";
import { saidNodes } from "./view-parts.js";
import { TurnView } from "./view-turn.js";

const NEAR_END_PX = 120;

/**
 * Draws turns into `element`, at most once per frame, and keeps the end in view while the reader is there.
 * `actions` are TurnView's, and `resend(submission)`, `discard(submission)`.
 */
export class Transcript {
  constructor({ element, scroller, empty, latest, actions }) {
    Object.assign(this, { element, scroller, empty, latest, actions });
    this.turnList = h("div");
    this.pendingList = h("div");
    this.element.append(this.turnList, this.pendingList);
    this.views = new Map();
    this.frame = 0;
    this.following = true;
    this.scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.latest.addEventListener("click", () => this.toEnd());
  }

  /** Start over with another conversation; `source()` gives its turns and submissions. */
  show(source) {
    this.source = source;
    for (const view of this.views.values()) view.element.remove();
    this.views.clear();
    this.following = true;
    this.touch();
  }

  /** Something changed. */
  touch() {
    this.frame ||= requestAnimationFrame(() => this.#draw());
  }

  toEnd() {
    this.following = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
    show(this.latest, false);
  }

  #draw() {
    this.frame = 0;
    const { turns, submissions, ready } = this.source();
    this.#drawTurns(turns);
    this.#drawPending(submissions.filter((submission) => !isShown(submission, turns)));
    show(this.empty, ready && !turns.length && !submissions.length);
    if (this.following) this.toEnd();
    else show(this.latest, true);
  }

  #drawTurns(turns) {
    turns.forEach((turn, at) => {
      let view = this.views.get(turn.turnId);
      if (!view) {
        view = new TurnView(turn, this.actions);
        this.views.set(turn.turnId, view);
      }
      const here = this.turnList.children[at];
      if (here !== view.element) this.turnList.insertBefore(view.element, here ?? null);
      const isLast = turns.slice(at + 1).every((later) => later.status === "absorbed");
      view.update(isLast);
    });
  }

  #drawPending(submissions) {
    this.pendingList.replaceChildren(...submissions.map((submission) => this.#pending(submission)));
  }

  #pending(submission) {
    const { message, files, status, problem } = submission;
    const attachments = files.map((file) => ({ filename: file.name, size: file.size }));
    const failed = status === "failed";
    const words = { waiting: "Waiting…", sending: "Sending…" }[status] ?? problem;
    const note = h("p", { class: failed ? "problem" : "hint", role: failed ? "alert" : null }, words,
      status === "retrying" && " Trying again by itself.");
    const button = (text, act) =>
      h("button", { type: "button", class: "quiet", text, on: { click: () => act(submission) } });
    const buttons = [
      failed && button("Send again", (item) => this.actions.resend(item)),
      (failed || status === "retrying") && button("Back to the draft", (item) => this.actions.discard(item)),
    ];
    const said = h("div", { class: "said" }, saidNodes({ text: message.text, attachments }));
    return h("article", { class: "turn pending", data: { status } }, said, note, h("p", { class: "buttons" }, buttons));
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    this.following = scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
    if (this.following) show(this.latest, false);
  }
}

/** The stream is often faster than the acknowledgement: then the turn stands there already. */
function isShown(submission, turns) {
  const last = turns.at(-1);
  const isNew = last && !submission.seen?.has(last.turnId);
  return isNew && submission.status === "sending" && last.user?.text === submission.message.text;
}
