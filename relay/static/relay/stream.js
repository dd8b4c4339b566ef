// The page's one event stream: opens an EventSource, remembers the position, and opens it again when it ends.

import { earlierPosition } from "./position.js";

const ROUTES = [
  "chat_start", "chat_step", "chat_delta", "chat_complete", "chat_error", "chat_service", "conv_status",
];
const LONGEST_DELAY_MS = 30_000;
const READY_TIMEOUT_MS = 20_000;
const QUIET_MS = 60_000;

/** min(30 s, 2^attempt + up to a second), so that many pages do not come back at the same moment. */
export function backoffMs(attempt, random = Math.random) {
  return Math.min(LONGEST_DELAY_MS, 1000 * (2 ** Math.min(attempt, 10) + random()));
}

/**
 * A stream that is kept open until `close()`.
 *
 * `buildUrl(position)` names the stream; `onEvent(route, envelope, position)` gets every event in order,
 * with "" for one that has no position; `onReady(ready, continuous)` tells whether nothing was missed;
 * `onState(state)` gets `{phase: "connecting" | "live" | "waiting" | "closed", reason, detail, retryAt}`;
 * `probe(url)` finds out why a stream would not open, which an EventSource does not tell.
 * Everything after `coveredFrom` and up to `cursor` has been handed to `onEvent`.
 */
export class EventStream {
  constructor({ buildUrl, onEvent, onReady, onState, probe }) {
    Object.assign(this, { buildUrl, onEvent, onReady, onState, probe });
    this.cursor = "";
    this.coveredFrom = "";
    this.source = null;
    this.timer = 0;
    this.attempt = 0;
    this.state = { phase: "closed" };
  }

  /** Open the stream after a position, or where the session's log ends now. */
  open(position = this.cursor) {
    this.#drop();
    const url = this.buildUrl(position);
    const source = new EventSource(url);
    this.source = source;
    this.sent = this.cursor = position;
    this.live = false;
    this.#tell({ phase: "connecting", reason: this.state.reason });
    this.timer = setTimeout(() => this.#failed(source, url), READY_TIMEOUT_MS);
    source.addEventListener("ready", (event) => this.#ready(event));
    source.addEventListener("server_shutdown", (event) => this.#shutdown(event));
    source.addEventListener("error", () => this.#failed(source, url));
    for (const route of ROUTES) source.addEventListener(route, (event) => this.#received(route, event));
  }

  /** Read again from an earlier position; whoever folds the events drops the ones it has. */
  rewind(position) {
    this.attempt = 0;
    if (this.state.phase === "waiting") this.cursor = earlierPosition(this.cursor, position);
    else this.open(position);
  }

  /**
   * Do not wait for the next attempt. A live stream that has been quiet for long is opened again as well: a
   * connection that died while the machine slept looks alive from here, and a resumed one loses nothing.
   */
  reconnectNow() {
    const quiet = this.state.phase === "live" && Date.now() - this.heardAt > QUIET_MS;
    if (this.state.phase === "waiting" || quiet) this.open();
  }

  /** Close, and remember nothing: what comes next is another session's. */
  forget() {
    this.close();
    this.cursor = this.coveredFrom = "";
  }

  close() {
    this.#drop();
    this.#tell({ phase: "closed" });
  }

  #drop() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
  }

  #tell(state) {
    this.state = state;
    this.onState(state);
  }

  #ready(event) {
    clearTimeout(this.timer);
    const ready = parse(event.data) ?? {};
    const continuous = Boolean(this.sent) && ready.resume?.outcome !== "reset";
    const start = event.lastEventId || this.sent;
    this.coveredFrom = continuous ? earlierPosition(this.coveredFrom, this.sent) : start;
    this.cursor = continuous ? this.sent : start;
    this.lastId = event.lastEventId;
    this.attempt = 0;
    this.heardAt = Date.now();
    this.live = true;
    this.#tell({ phase: "live" });
    this.onReady(ready, continuous);
  }

  #received(route, event) {
    this.heardAt = Date.now();
    const envelope = parse(event.data);
    if (!envelope) return;
    // An EventSource repeats the last id on an event that has none of its own.
    const position = event.lastEventId === this.lastId ? "" : event.lastEventId;
    this.lastId = event.lastEventId;
    if (position) this.cursor = position;
    this.onEvent(route, envelope, position);
  }

  #shutdown(event) {
    const { retry_after_ms: asked } = parse(event.data) ?? {};
    const delay = Number.isFinite(asked) ? asked : 1000 + 1000 * Math.random();
    this.attempt = 0;
    this.#wait(delay, { reason: "restarting" });
  }

  async #failed(source, url) {
    if (this.source !== source) return;
    const wasLive = this.live;
    this.#drop();
    const attempt = this.attempt++;
    const said = this.state.reason;
    if (wasLive) return this.#wait(backoffMs(attempt), { reason: "lost" });
    const marker = (this.source = { close() {} });
    const refusal = await this.probe(url);
    if (this.source !== marker) return;
    // A server that has said goodbye is not there for a while.
    const away = refusal.status === 503 || (!refusal.status && said === "restarting");
    const reason = away ? "restarting" : refusal.status ? "refused" : "lost";
    this.#wait(Math.max(backoffMs(attempt), refusal.retryAfterMs ?? 0), { reason, detail: refusal.detail });
  }

  #wait(delay, state) {
    this.#drop();
    this.timer = setTimeout(() => this.open(), delay);
    this.#tell({ phase: "waiting", retryAt: Date.now() + delay, ...state });
  }
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
