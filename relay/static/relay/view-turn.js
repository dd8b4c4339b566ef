// One turn in the transcript: what the user said, and everything that came back.

import { artifactTitle } from "./artifact.js";
import { count, h, setText, show } from "./dom.js";
import { MarkdownView } from "./markdown.js";
import { card, customStream, disclosure, saidNodes, stepRow, stepState, widget } from "./view-parts.js";

const KNOWN = new Set(["answer", "thinking", "canvas", "timeline_text", "subsystem"]);
const NOTES = {
  stopped: "Stopped. What was said so far stays.",
  error: "This turn ended with an error.",
  interrupted: "The answer was interrupted. Nothing is run again by itself.",
};

/**
 * Draws a turn and keeps it up to date. `actions`: `openArtifact(turn, key)`, `followup(item)`,
 * `tryAgain(turn)`, `eventsUrl(turn)` ("" for who may not see them).
 */
export class TurnView {
  constructor(turn, actions) {
    this.turn = turn;
    this.actions = actions;
    this.element = h("article", { class: "turn", data: { turn: turn.turnId }, "aria-label": "Turn" });
    this.user = h("div", { class: "said", hidden: true });
    this.reply = h("div", { class: "reply" });
    if (turn.replay) {
      this.element.classList.add("replay");
      this.element.append(h("p", { class: "replay-note", text: `Replay of ${turn.replay}: this was, and is shown again.` }));
    }
    this.element.append(this.user, this.reply);
    this.#buildThinking();
    this.#buildSteps();
    this.#buildAnswer();
    this.#buildRest();
    this.drawn = new Map();
  }

  #buildThinking() {
    this.thinking = disclosure("thinking", "Thinking");
    this.thinkingText = new MarkdownView(this.thinking.body);
    this.timeline = disclosure("timeline", "Timeline");
    this.timelineList = h("ul");
    this.timeline.body.append(this.timelineList);
  }

  #buildSteps() {
    this.steps = disclosure("steps", "Steps");
    this.stepList = h("ol");
    this.steps.body.append(this.stepList);
    this.stepRows = new Map();
    this.reply.append(this.thinking.element, this.steps.element, this.timeline.element);
  }

  #buildAnswer() {
    this.waiting = h("p", { class: "dots", hidden: true }, h("span", { class: "sr", text: "Working…" }));
    this.answer = h("div", { class: "answer md", "aria-live": "polite", "aria-busy": "true" });
    this.answerText = new MarkdownView(this.answer);
    this.reply.append(this.answer, this.waiting);
  }

  #buildRest() {
    this.artifacts = h("div", { class: "artifacts" });
    this.widgets = h("div", { class: "widgets" });
    this.cards = h("div", { class: "cards" });
    this.outcome = h("div", { class: "outcome", hidden: true });
    this.footer = h("p", { class: "usage", hidden: true });
    this.followups = h("div", { class: "followups", role: "group", "aria-label": "Suggested questions" });
    this.reply.append(this.artifacts, this.widgets, this.cards, this.outcome, this.footer, this.followups);
  }

  /** Draw what has changed. `isLast`: only there are suggestions of use. */
  update(last) {
    const { turn } = this;
    const isLast = last && !turn.replay;
    const version = `${turn.revision}|${turn.status}|${isLast}`;
    if (version === this.version) return;
    this.version = version;
    this.element.dataset.status = turn.status;
    this.#once("user", userVersion(turn), () => this.#drawUser());
    show(this.reply, turn.status !== "absorbed" && turn.status !== "accepted");
    this.#drawThinking();
    this.#drawSteps();
    this.#drawTimeline();
    this.#drawAnswer();
    this.#drawStreams();
    this.#once("cards", turn.cards.length, () => this.cards.replaceChildren(...turn.cards.map(card)));
    this.#once("outcome", `${turn.status}|${turn.lost}|${turn.error?.error ?? ""}`, () => this.#drawOutcome());
    this.#once("usage", `${turn.usage}|${turn.ended}`, () => this.#drawFooter());
    const offered = isLast && turn.ended ? turn.followups : [];
    this.#once("followups", JSON.stringify(offered), () => this.#drawFollowups(offered));
  }

  #once(part, version, draw) {
    if (this.drawn.get(part) === version) return;
    this.drawn.set(part, version);
    draw();
  }

  #drawUser() {
    const { user, kind, status } = this.turn;
    show(this.user, Boolean(user));
    if (user) this.user.replaceChildren(...saidNodes(user, badgeOf(kind, status)));
  }

  #drawThinking() {
    const text = this.turn.streams.get("thinking")?.text ?? "";
    show(this.thinking.element, Boolean(text.trim()));
    this.#once("thinking", text, () => this.thinkingText.update(text));
    const active = Boolean(text) && !this.turn.answer && !this.turn.ended;
    this.thinking.setOpen(active);
    this.thinking.setTitle(active ? "Thinking…" : "Thinking");
  }

  #drawSteps() {
    const { steps, ended } = this.turn;
    show(this.steps.element, steps.size > 0);
    let done = 0;
    for (const [name, step] of steps) {
      const state = stepState(step);
      done += state !== "running";
      let row = this.stepRows.get(name);
      if (!row) {
        row = stepRow();
        this.stepRows.set(name, row);
        this.stepList.append(row.element);
      }
      row.update(step, state);
    }
    for (const [name, row] of this.stepRows)
      if (!steps.has(name)) {
        row.element.remove();
        this.stepRows.delete(name);
      }
    this.steps.setOpen(!ended);
    this.steps.setTitle(ended ? count(steps.size, "step") : `Steps: ${done} of ${steps.size}`);
  }

  #drawTimeline() {
    const text = this.turn.streams.get("timeline_text")?.text ?? "";
    this.#once("timeline", text, () => {
      const lines = text.split("\n").filter((line) => line.trim());
      show(this.timeline.element, lines.length > 0);
      this.timeline.setTitle(`Timeline: ${count(lines.length, "entry").replace(/entrys$/, "entries")}`);
      while (this.timelineList.children.length > lines.length) this.timelineList.lastChild.remove();
      lines.forEach((line, at) => {
        const item = this.timelineList.children[at] ?? this.timelineList.appendChild(h("li"));
        setText(item, line);
      });
    });
  }

  #drawAnswer() {
    const { turn } = this;
    const text = turn.answer;
    show(this.answer, Boolean(text));
    this.#once("answer", `${turn.ended}|${text}`, () => this.answerText.update(text, !turn.ended));
    const busy = String(!turn.ended);
    if (this.answer.getAttribute("aria-busy") !== busy) this.answer.setAttribute("aria-busy", busy);
    show(this.waiting, turn.status === "running");
  }

  #drawStreams() {
    for (const stream of this.turn.streams.values()) {
      if (stream.marker === "canvas") this.#drawStream(this.artifacts, stream, () => this.#artifactButton(stream));
      else if (stream.marker === "subsystem") this.#drawStream(this.widgets, stream, () => widget(stream));
      else if (!KNOWN.has(stream.marker)) this.#drawStream(this.widgets, stream, () => customStream(stream));
    }
    for (const [key, place] of this.drawn)
      if (key.startsWith("stream ") && !this.turn.streams.has(key.slice(7))) {
        place.node.remove();
        this.drawn.delete(key);
      }
  }

  #drawStream(parent, stream, make) {
    const key = `stream ${stream.key}`;
    const version = `${stream.text.length}|${stream.completed}|${stream.title}`;
    const before = this.drawn.get(key);
    if (before?.version === version) return;
    const node = make();
    if (before) before.node.replaceWith(node);
    else parent.append(node);
    this.drawn.set(key, { version, node });
  }

  #artifactButton(stream) {
    const state = stream.completed ? "Show" : "Being written…";
    return h(
      "button",
      { type: "button", class: "artifact", on: { click: () => this.actions.openArtifact(this.turn, stream.key) } },
      h("span", { class: "artifact-title", text: artifactTitle(stream) }),
      h("small", { text: `${state} · ${stream.format || "text"}` }),
    );
  }

  #drawOutcome() {
    const { turn } = this;
    const note = NOTES[turn.status];
    show(this.outcome, Boolean(note || (turn.lost && !turn.ended)));
    this.outcome.className = `outcome ${turn.status}`;
    this.outcome.setAttribute("role", turn.status === "stopped" ? "status" : "alert");
    const lost = "The beginning of this answer could not be recovered; the whole answer is shown when it is complete.";
    const words = turn.error?.error ?? note ?? lost;
    const tryAgain = (failed) => this.actions.tryAgain(failed);
    const again = turn.status === "interrupted" || turn.status === "error";
    const button = again && turn.user?.text &&
      h("button", { type: "button", class: "again", text: "Try again", on: { click: () => tryAgain(turn) } });
    this.outcome.replaceChildren(h("p", { text: words }), ...(button ? [button] : []));
  }

  #drawFooter() {
    const { turn } = this;
    const url = turn.ended && turn.status !== "absorbed" ? this.actions.eventsUrl(turn) : "";
    show(this.footer, Boolean(turn.usage || url));
    const link = url && h("a", { href: url, text: "Events of this turn" });
    this.footer.replaceChildren(...[turn.usage && h("span", { text: turn.usage }), link].filter(Boolean));
  }

  #drawFollowups(items) {
    const button = (item) =>
      h("button", { type: "button", text: item.label, on: { click: () => this.actions.followup(item) } });
    this.followups.replaceChildren(...items.map(button));
    show(this.followups, items.length > 0);
  }
}

function userVersion({ user, kind, status }) {
  return user ? `${user.text}|${user.attachments?.length}|${badgeOf(kind, status)}` : "";
}

function badgeOf(kind, status) {
  if (status === "absorbed") return "Read by the answer above";
  if (status === "accepted") return kind === "followup" ? "Followup, waiting" : "Waiting";
  return kind === "followup" ? "Followup" : kind === "steer" ? "Interruption" : "";
}
