// What the user says: messages, interruptions, stops; and what becomes of those that a reload cuts off.

import { Outbox } from "./outbox.js";

const UNSENT = "backchannel.unsent";
const KINDS = { followup_accepted: "followup", steer_accepted: "steer" };

/** `page` has `views` and `currentId`, and is told with `sendingChanged(conversationId)`. */
export class Sending {
  constructor({ api, options, store, page }) {
    Object.assign(this, { api, options, store, page });
    this.sentFiles = new Map();
    this.outbox = new Outbox({
      send: (message, files, key) => api.send(message, files, key),
      onChange: (submission) => this.#changed(submission),
      onAccepted: (acknowledgement, submission) => this.#accepted(acknowledgement, submission),
    });
  }

  /** Send a message to a conversation; `interrupt` ends the answer that is being given. */
  say(conversationId, { text, files, interrupt }) {
    const turns = this.store.turns(conversationId);
    const active = turns.find((turn) => !turn.ended);
    const message = { text, conversation_id: conversationId };
    if (this.options.bundleId) message.bundle_id = this.options.bundleId;
    if (this.options.config) message.config = this.options.config;
    if (interrupt && active) Object.assign(message, { message_kind: "steer", target_turn_id: active.turnId });
    this.outbox.add({ message, files, conversationId, seen: new Set(turns.map((turn) => turn.turnId)) });
  }

  /** Stop the answer that is being given, or the next one. */
  async stop(conversationId) {
    const turn = this.store.running(conversationId) ?? this.store.turns(conversationId).find((item) => !item.ended);
    if (!turn) return;
    const message = { text: "", message_kind: "steer", conversation_id: conversationId, target_turn_id: turn.turnId };
    try {
      await this.api.send(message, [], crypto.randomUUID());
    } catch (error) {
      this.page.views.notices.tell(`It could not be stopped. ${error.message}`, "error");
    }
  }

  /** Say again what a turn was asked. */
  again(turn) {
    const { text, attachments = [] } = turn.user;
    const files = this.sentFiles.get(turn.turnId) ?? [];
    if (files.length < attachments.length) this.#backToDraft(text);
    else this.say(turn.conversationId, { text, files });
  }

  /** What was on its way when the page was reloaded goes on, under the same key; files can't be kept. */
  restore() {
    const unsent = JSON.parse(sessionStorage.getItem(UNSENT) ?? "[]");
    for (const { hadFiles, ...submission } of unsent)
      if (!hadFiles) this.outbox.add(submission);
      else if (submission.conversationId === this.page.currentId) this.#backToDraft(submission.message.text);
  }

  discard(submission) {
    this.outbox.discard(submission);
    this.page.views.composer.fill(submission.message.text, submission.files);
  }

  #accepted(acknowledgement, { message, files, conversationId }) {
    const attachments = files.map((file) => ({ filename: file.name, size: file.size }));
    if (files.length) this.sentFiles.set(acknowledgement.turn_id, files);
    const accepted = { ...acknowledgement, conversation_id: conversationId };
    this.store.accepted(accepted, { text: message.text, attachments }, KINDS[acknowledgement.status] ?? "regular");
  }

  #changed({ conversationId, problem }) {
    if (problem) this.page.views.notices.known(problem);
    this.page.sendingChanged(conversationId);
    const unsent = this.outbox.submissions.map(({ message, files, key, conversationId: id }) =>
      ({ message, key, conversationId: id, hadFiles: files.length > 0 }));
    if (unsent.length) sessionStorage.setItem(UNSENT, JSON.stringify(unsent));
    else sessionStorage.removeItem(UNSENT);
  }

  #backToDraft(text) {
    this.page.views.composer.fill(text);
    this.page.views.notices.tell("Please attach the files again: the page no longer has them.", "warning");
  }
}
