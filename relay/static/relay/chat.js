// What the page does: opens conversations, sends, stops, and keeps what is shown true to stream and server.

import { count } from "./dom.js";
import { comparePositions } from "./position.js";
import { Sending } from "./sending.js";
import { Store } from "./store.js";
import { backoffMs, EventStream } from "./stream.js";

const NEW = "new";
const ANNOUNCED = { running: "Answering…", completed: "The answer is complete.", stopped: "Stopped." };
const HOLE_MS = 300;
const ELSEWHERE_MS = 1500;
const CAUGHT_UP_MS = 1500;
const RESET = "Some events could not be recovered. What the server has stored was loaded again.";

/** The page's behaviour; `start(views)` gives it something to show itself with. */
export class Chat {
  constructor({ api, options }) {
    Object.assign(this, { api, options });
    this.me = null;
    this.currentId = "";
    this.lostBefore = "";
    this.replay = null;
    this.store = new Store({
      onTurn: (turn) => turn.conversationId === this.currentId && this.views.transcript.touch(),
      onConversation: () => this.#drawList(),
      onHole: (id) => this.#reloadSoon(id),
      onService: (route, envelope) => this.#service(route, envelope),
    });
    api.onSession = (id) => this.#session(id);
    this.sending = new Sending({ api, options, store: this.store, page: this });
    this.stream = new EventStream({
      buildUrl: (position) => api.streamUrl(position),
      probe: (url) => api.probe(url),
      onEvent: (...event) => this.#event(...event),
      onReady: (ready, continuous) => this.#ready(ready, continuous),
      onState: (state) => this.views.connection.update(state),
    });
  }

  async start(views) {
    this.views = views;
    this.openFromAddress({ load: false });
    await this.#begin();
    this.sending.restore();
  }

  async #begin() {
    await this.#identify();
    await Promise.allSettled([this.#loadList(), this.#load(this.currentId)]);
    this.stream.open(this.from);
  }

  // --- who, and what is open --------------------------------------------------------------------------

  async #identify() {
    for (let attempt = 0; ; attempt++) {
      try {
        this.me = await this.api.profile();
        break;
      } catch (error) {
        const delay = backoffMs(attempt);
        const state = { phase: "waiting", reason: "refused", detail: error.message, retryAt: Date.now() + delay };
        this.views.connection.update(state);
        await new Promise((resolve) => setTimeout(resolve, delay));
      }
    }
    const anonymous = this.me.user_type === "ANONYMOUS";
    this.views.who.textContent = anonymous ? "Anonymous" : this.me.username || this.me.user_id || "";
  }

  async #loadList() {
    this.store.loadList(await this.api.conversations());
  }

  /** Show the conversation that the address names, or a new one. */
  openFromAddress({ load = true } = {}) {
    const named = decode(location.hash.slice(1));
    this.currentId = named || crypto.randomUUID();
    this.isNew = !named;
    const conversation = this.store.conversation(this.currentId);
    conversation.loaded ||= this.isNew;
    this.views.canvas.close();
    this.views.composer.open(named || NEW);
    this.views.transcript.show(() => this.#shown());
    this.#drawList();
    if (load && !conversation.loaded) this.#load(this.currentId);
  }

  #shown() {
    const turns = this.store.turns(this.currentId);
    const submissions = this.sending.outbox.of(this.currentId);
    const active = turns.filter((turn) => !turn.ended);
    this.views.composer.setBusy(active.length > 0);
    this.#announce(turns.findLast((turn) => turn.status !== "absorbed" && turn.status !== "accepted"));
    const drawn = turns.findLast((turn) => turn.status === "running") ?? this.views.canvas.turn;
    if (drawn) this.views.canvas.follow(drawn);
    return { turns, submissions, ready: this.store.conversation(this.currentId).loaded };
  }

  #announce(turn) {
    const words = ANNOUNCED[turn?.status] ?? "";
    const key = `${turn?.turnId}|${turn?.status}`;
    if (key === this.announced) return;
    const first = this.announced === undefined || !turn;
    this.announced = key;
    if (!first) this.views.announcer.textContent = words;
  }

  #drawList() {
    this.views?.list.update(this.store.list(), this.currentId);
    const { title } = this.store.conversation(this.currentId);
    this.views.heading.textContent = title || (this.isNew ? "New conversation" : "Conversation");
    document.title = title ? `${title} · Backchannel` : "Backchannel";
  }

  // --- reading ------------------------------------------------------------------------------------------

  /** Load a conversation; when its running turn began before what the stream has, read from there. */
  async #load(id) {
    if (this.isNew && id === this.currentId) return;
    const conversation = this.store.conversation(id);
    try {
      const row = await this.api.conversation(id);
      const from = this.store.loadConversation(row, {
        coveredFrom: this.stream.coveredFrom,
        lostBefore: this.lostBefore,
      });
      if (from && this.stream.coveredFrom) this.stream.rewind(from);
      else if (from) this.from = from;
    } catch (error) {
      const words = `The conversation could not be loaded. ${error.message}`;
      if (error.status !== 404) return this.views.notices.tell(words, "error");
      conversation.loaded = true;
    }
    this.views.transcript.touch();
  }

  #reloadSoon(id) {
    if (id !== this.currentId || this.reloading) return;
    this.reloading = setTimeout(async () => {
      await this.#load(id);
      this.reloading = 0;
    }, HOLE_MS);
  }

  async #ready(ready, continuous) {
    this.sending.outbox.hurry();
    if (this.#session(ready.session_id)) return;
    if (continuous) return this.#countReplay(ready.resume);
    if (ready.resume?.outcome === "reset") {
      this.lostBefore = this.stream.coveredFrom;
      this.store.doubt();
      this.views.notices.tell(RESET, "warning");
    }
    // What happened before the stream began is in the rows; what happens from now on comes by the stream.
    await Promise.allSettled([this.#loadList(), this.#load(this.currentId)]);
  }

  /** Somebody may have logged in or out in another tab: then nothing that is shown here is theirs. */
  #session(id) {
    if (!this.me || id === this.me.session_id) return false;
    this.me = null;
    this.store.clear();
    this.lostBefore = this.from = "";
    this.stream.forget();
    this.#begin();
    return true;
  }

  #countReplay(resume) {
    if (!resume?.to || resume.from === resume.to) return;
    const replay = (this.replay = { to: resume.to, events: 0 });
    setTimeout(() => this.#caughtUp(replay), CAUGHT_UP_MS);
  }

  #caughtUp(replay) {
    if (this.replay !== replay) return;
    this.replay = null;
    if (replay.events) this.views.connection.note(`resumed ${count(replay.events, "event")}`);
  }

  #event(route, envelope, position) {
    if (envelope.extra?.replay) {
      this.store.foldReplay(this.currentId, route, envelope);
      this.views.notices.tell("A replay is being shown. It is not happening now.");
      return;
    }
    this.store.fold(route, envelope, position);
    if (!this.replay || !position) return;
    this.replay.events += envelope.extra?.merged ?? 1;
    if (comparePositions(position, this.replay.to) >= 0) this.#caughtUp(this.replay);
  }

  #service(route, { type, data, event, conversation }) {
    const isLimit = /^(?:gateway|rate_limit)\./.test(type);
    const isRefusal = route === "chat_error" && !conversation?.turn_id;
    if (!isLimit && !isRefusal) return;
    const words = data?.rate_limit?.user_message ?? data?.user_message ?? data?.error ?? event?.markdown;
    // A refused message tells it where it stands; this is for a reply that never arrived.
    setTimeout(() => this.views.notices.tell(words, isRefusal ? "error" : "warning"), ELSEWHERE_MS);
  }

  reconnect() {
    this.stream.reconnectNow();
    this.sending.outbox.hurry();
  }

  suspend() {
    this.stream.close();
  }

  resume() {
    this.stream.open();
  }

  // --- what the composer's and the transcript's buttons do ------------------------------------------------

  send(draft) {
    if (this.isNew) this.#settle();
    this.views.transcript.toEnd();
    this.sending.say(this.currentId, draft);
  }

  stop() {
    return this.sending.stop(this.currentId);
  }

  followup({ text }) {
    this.send({ text, files: [] });
  }

  tryAgain(turn) {
    this.sending.again(turn);
  }

  resend(submission) {
    this.sending.outbox.retry(submission);
  }

  discard(submission) {
    this.sending.discard(submission);
  }

  openArtifact(turn, key) {
    this.views.canvas.open(turn, key);
  }

  sendingChanged(conversationId) {
    if (conversationId === this.currentId) this.views.transcript.touch();
  }

  /** A new conversation gets its place in the address before its first message is sent: a reload finds it. */
  #settle() {
    this.isNew = false;
    history.replaceState(null, "", `#${encodeURIComponent(this.currentId)}`);
    this.views.composer.conversationId = this.currentId;
  }

  /** Where the turn's recorded events are, for those who may see them. */
  eventsUrl(turn) {
    const { adminUrl } = this.options;
    if (this.me?.user_type !== "PRIVILEGED" || !adminUrl) return "";
    return `${adminUrl}recorder/recordedenvelope/?${new URLSearchParams({ turn_id: turn.turnId })}`;
  }
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return "";
  }
}
