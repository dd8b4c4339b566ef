// The line that tells how the page is connected.

import { setText, show } from "./dom.js";

const NOTE_MS = 8000;
const WORDS = {
  connecting: "Connecting…",
  live: "Live",
  closed: "Not connected",
  lost: "Connection lost; reconnecting",
  restarting: "The server is restarting; reconnecting",
  refused: "The stream was refused; trying again",
};

/** `retry` is the button that does not wait; its use is the caller's. */
export class ConnectionLine {
  constructor({ element, words, countdown, retry }) {
    Object.assign(this, { element, words, countdown, retry });
    this.timer = 0;
    this.noteTimer = 0;
  }

  update(state) {
    clearInterval(this.timer);
    clearTimeout(this.noteTimer);
    this.element.dataset.phase = state.phase;
    const waiting = state.phase === "waiting";
    const words = WORDS[waiting ? state.reason : state.phase] ?? WORDS.lost;
    setText(this.words, state.detail && state.reason === "refused" ? `${state.detail} Trying again` : words);
    show(this.retry, waiting);
    setText(this.countdown, "");
    if (!waiting) return;
    const tick = () => setText(this.countdown, ` in ${Math.max(0, Math.ceil((state.retryAt - Date.now()) / 1000))} s`);
    tick();
    this.timer = setInterval(tick, 500);
  }

  /** Say something for a moment beside "Live". */
  note(text) {
    clearTimeout(this.noteTimer);
    setText(this.words, `${WORDS.live} · ${text}`);
    this.noteTimer = setTimeout(() => setText(this.words, WORDS.live), NOTE_MS);
  }
}
