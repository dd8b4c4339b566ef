// Messages on their way: one request at a time, repeated under the same key while the server is away.

import { backoffMs } from "./stream.js";

const ATTEMPTS = 6;
const NOTHING_TO_STEER = new Set(["active_turn_control_no_active_turn", "active_turn_control_target_mismatch"]);

/**
 * Sends submissions `{message, files, conversationId}` in order. `onChange(submission)` follows its
 * `status`: "waiting", "sending", "retrying" (until `retryAt`, because of `problem`), "failed", "sent".
 * A message goes out again by itself only while its request failed to reach the server or the server said 503;
 * the Idempotency-Key makes sure that it is accepted once.
 */
export class Outbox {
  constructor({ send, onChange, onAccepted }) {
    Object.assign(this, { send, onChange, onAccepted });
    this.submissions = [];
    this.last = Promise.resolve();
  }

  /** Put a message in the queue; resolves when it was accepted or has failed. */
  add({ message, files = [], conversationId, seen = null, key = crypto.randomUUID() }) {
    const submission = { message, files, conversationId, seen, key, status: "waiting" };
    this.submissions.push(submission);
    return this.#enqueue(submission);
  }

  /** Send a failed one again, by the user's wish. */
  retry(submission) {
    return this.#enqueue(submission);
  }

  /** Forget one that is not on its way. */
  discard(submission) {
    submission.status = "discarded";
    submission.wake?.();
    this.#remove(submission);
  }

  /** Do not wait for the next attempt: the server is there again. */
  hurry() {
    for (const submission of this.submissions) submission.wake?.();
  }

  of(conversationId) {
    return this.submissions.filter((submission) => submission.conversationId === conversationId);
  }

  #enqueue(submission) {
    this.#set(submission, { status: "waiting", problem: "" });
    this.last = this.last.then(() => this.#deliver(submission));
    return this.last;
  }

  async #deliver(submission) {
    for (let attempt = 0; submission.status !== "discarded"; attempt++) {
      this.#set(submission, { status: "sending" });
      try {
        return await this.#post(submission);
      } catch (error) {
        const away = error.status === 0 || error.status === 503;
        if (submission.status === "discarded") return;
        const problem = error.message;
        if (!away || attempt + 1 >= ATTEMPTS) return this.#set(submission, { status: "failed", problem });
        const delay = Math.max(backoffMs(attempt), error.retryAfterMs ?? 0);
        await this.#pause(submission, delay, problem);
      }
    }
  }

  async #post(submission) {
    const acknowledgement = await this.send(submission.message, submission.files, submission.key);
    const said = submission.message.text.trim() || submission.files.length;
    if (said && NOTHING_TO_STEER.has(acknowledgement.status)) {
      // The answer ended before we could interrupt it: what was said is a message like any other.
      const { message_kind: _kind, target_turn_id: _target, ...message } = submission.message;
      Object.assign(submission, { message, key: crypto.randomUUID() });
      return this.#post(submission);
    }
    this.onAccepted(acknowledgement, submission);
    this.#set(submission, { status: "sent" });
    this.#remove(submission);
  }

  #pause(submission, delay, problem) {
    this.#set(submission, { status: "retrying", retryAt: Date.now() + delay, problem });
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, delay);
      submission.wake = () => {
        clearTimeout(timer);
        resolve();
      };
    }).finally(() => (submission.wake = null));
  }

  #set(submission, changes) {
    if (submission.status === "discarded") return;
    Object.assign(submission, changes);
    this.onChange(submission);
  }

  #remove(submission) {
    this.submissions = this.submissions.filter((other) => other !== submission);
    this.onChange(submission);
  }
}
