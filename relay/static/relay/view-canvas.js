// The canvas: a panel beside the transcript with the artifacts of one turn.

import { artifactFile, artifactTitle, renderArtifact } from "./artifact.js";
import { codeBlock } from "./markdown.js";
import { h, setText, show } from "./dom.js";

/** Draws into the elements of the page's `aside`; `follow(turn)` opens it for a turn that is writing one. */
export class Canvas {
  constructor({ panel, tabs, body, title, close, save, source }) {
    Object.assign(this, { panel, tabs, body, title, save, source });
    this.turn = null;
    this.key = "";
    this.version = "";
    this.dismissed = new Set();
    close.addEventListener("click", () => this.close(true));
    save.addEventListener("click", () => this.#save());
    source.addEventListener("click", () => {
      source.setAttribute("aria-pressed", String(source.getAttribute("aria-pressed") !== "true"));
      this.#draw();
    });
    panel.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.close(true);
    });
  }

  /** Show one artifact, by the user's wish. */
  open(turn, key) {
    this.turn = turn;
    this.key = key;
    this.version = "";
    this.dismissed.delete(turn.turnId);
    this.panel.hidden = false;
    this.#draw();
    this.title.focus({ preventScroll: true });
  }

  /** Show what a running turn writes, unless somebody has closed the panel, or has no room beside it. */
  follow(turn) {
    const streams = artifactsOf(turn);
    if (!streams.length) return;
    if (this.turn === turn && !this.panel.hidden) return this.#draw();
    if (turn.ended || this.dismissed.has(turn.turnId) || !matchMedia("(min-width: 70rem)").matches) return;
    this.turn = turn;
    this.key = streams[0].key;
    this.version = "";
    this.panel.hidden = false;
    this.#draw();
  }

  close(byUser = false) {
    if (byUser && this.turn) this.dismissed.add(this.turn.turnId);
    this.panel.hidden = true;
    this.turn = null;
  }

  #draw() {
    const streams = artifactsOf(this.turn);
    const stream = streams.find((item) => item.key === this.key) ?? streams[0];
    if (!stream) return this.close();
    const raw = this.source.getAttribute("aria-pressed") === "true";
    const version = [stream.key, stream.text.length, stream.completed, raw, streams.length].join("|");
    if (version === this.version) return;
    this.version = version;
    setText(this.title, artifactTitle(stream));
    this.save.disabled = !stream.completed;
    this.tabs.replaceChildren(...streams.map((item) => this.#tab(item, item === stream)));
    show(this.tabs, streams.length > 1);
    this.body.replaceChildren(raw ? codeBlock(stream.text, stream.format) : renderArtifact(stream));
  }

  #tab(item, isCurrent) {
    return h("button", {
      type: "button",
      "aria-pressed": String(isCurrent),
      text: item.name || artifactTitle(item),
      title: artifactTitle(item),
      on: { click: () => this.open(this.turn, item.key) },
    });
  }

  #save() {
    const stream = this.turn?.streams.get(this.key);
    if (!stream) return;
    const { name, blob } = artifactFile(stream);
    const url = URL.createObjectURL(blob);
    h("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }
}

function artifactsOf(turn) {
  return turn ? [...turn.streams.values()].filter((stream) => stream.marker === "canvas") : [];
}
