// A turn as the page shows it: envelopes of its conversation are folded in, one after the other.

import { comparePositions } from "./position.js";

const ENDED = new Set(["completed", "stopped", "error", "interrupted", "absorbed"]);
const FIELDS = { format: "format", title: "title", subType: "sub_type", language: "language" };
const ARTIFACT_MARKERS = new Set(["canvas", "subsystem"]);

/**
 * One turn. `streams` are texts by marker and artifact, `steps` by name, in the order of arrival.
 * `applied` is the position up to which events are folded in; `whole` tells that none before it is missing;
 * a `sealed` turn was read from the server at its end, and takes no events any more.
 */
export class Turn {
  constructor(turnId, conversationId) {
    this.turnId = turnId;
    this.conversationId = conversationId;
    this.kind = "regular";
    this.user = null;
    this.status = "accepted";
    this.absorbedBy = "";
    this.error = null;
    this.replay = "";
    this.#empty();
  }

  #empty() {
    this.streams = new Map();
    this.steps = new Map();
    this.cards = [];
    this.followups = [];
    this.usage = "";
    this.finalAnswer = "";
    this.applied = "";
    this.whole = false;
    this.lost = false;
    this.sealed = false;
    this.revision = 0;
  }

  get ended() {
    return ENDED.has(this.status);
  }

  /** The answer: what was streamed, or what the end said where the stream has a hole or nothing. */
  get answer() {
    const streamed = this.streams.get("answer")?.text ?? "";
    return this.finalAnswer && (!streamed || !this.whole) ? this.finalAnswer : streamed;
  }

  /** Forget what was folded in, to read it again from a position before its first event. */
  restart(position) {
    this.#empty();
    this.applied = position;
    this.whole = true;
    this.revision++;
  }

  /** It shows a turn that was, from its beginning. */
  beginReplay(turnId) {
    this.#empty();
    this.replay = turnId;
    this.status = "accepted";
    this.error = null;
    this.whole = true;
  }

  /** Its beginning can't be read any more; the end will bring the whole answer. */
  lose() {
    this.whole = false;
    this.lost = true;
    this.revision++;
  }

  /** Take over what the server has stored of it: its row, and the answer as far as it got. */
  load(row, answer = "") {
    this.kind = row.kind ?? this.kind;
    this.absorbedBy = row.absorbed_by ?? this.absorbedBy;
    if (!ENDED.has(row.status)) return this.#loadUnfinished(row);
    const outcome = row.outcome ?? {};
    this.status = row.status;
    this.error = row.error && Object.keys(row.error).length ? row.error : null;
    if (!outcome.markers?.length && this.streams.size) this.#loadInterrupted(answer);
    else this.#loadOutcome(outcome, answer);
    this.sealed = true;
  }

  /** Nobody could store what was streamed last: keep what is shown, where it is more. */
  #loadInterrupted(answer) {
    this.whole = false;
    this.finalAnswer = answer.length > this.answer.length ? answer : "";
    this.#close();
  }

  #loadOutcome(outcome, answer) {
    this.#empty();
    this.whole = true;
    for (const item of outcome.markers ?? []) this.#stream(item.marker, item).text = item.text ?? "";
    for (const stream of this.streams.values()) stream.completed = true;
    for (const step of outcome.steps ?? []) this.steps.set(step.step, step);
    this.followups = followupItems(outcome.followups);
    this.usage = usageLine(outcome.usage);
    this.finalAnswer = outcome.final_answer || answer;
  }

  #loadUnfinished(row) {
    if (!this.ended) this.status = row.status ?? this.status;
    if (!this.applied && row.first_position) this.restart(row.first_position);
  }

  /** Fold one event in; false when it is old. */
  fold(route, envelope, position) {
    if (this.sealed) return false;
    if (position) {
      if (this.applied && comparePositions(position, this.applied) <= 0) return false;
      this.applied = position;
    }
    this.revision++;
    const handler = HANDLERS[route];
    if (handler) handler.call(this, envelope);
    return true;
  }

  #stream(marker, extra) {
    const artifact = extra.artifact_name || (ARTIFACT_MARKERS.has(marker) ? extra.sub_type : "") || "";
    const key = artifact ? `${marker}:${artifact}` : marker;
    let stream = this.streams.get(key);
    if (!stream) {
      stream = { key, marker, name: artifact, text: "", indexes: new Map(), completed: false };
      this.streams.set(key, stream);
    }
    for (const [field, name] of Object.entries(FIELDS))
      stream[field] ||= typeof extra[name] === "string" ? extra[name] : "";
    return stream;
  }

  _delta({ delta, extra, event }) {
    if (!delta) return;
    const stream = this.#stream(delta.marker || "answer", extra ?? {});
    const agent = event?.agent ?? "";
    if (delta.completed) stream.completed = true;
    if (!delta.text) return;
    const last = stream.indexes.get(agent);
    // Index 0 again means "from the beginning"; plain text of producers that never count goes on.
    const again = last !== undefined && delta.index === 0 && (stream.key !== stream.marker || last > 0);
    if (again) [stream.text, stream.completed] = ["", Boolean(delta.completed)];
    stream.indexes.set(agent, (delta.index ?? 0) + Math.max(0, (extra?.merged ?? 1) - 1));
    stream.text += delta.text;
    if (this.status === "accepted") this.status = "running";
  }

  _start({ data }) {
    this.whole = true;
    if (!this.ended) this.status = "running";
    const text = data?.message;
    if (typeof text === "string") this.user = { attachments: [], ...this.user, text };
  }

  _step({ type, event, data }) {
    if (type === "accounting.usage") this.usage = usageLine({ ...data, markdown: event?.markdown });
    else if (type === "chat.followups") this.followups = followupItems(data?.items ?? data?.followups ?? data);
    else if (type === "chat.attachments") this.user = { text: "", ...this.user, attachments: data?.items ?? [] };
    else if (type === "chat.step") this.steps.set(event?.step || event?.title, { ...event, data });
    else if (type !== "chat.conversation.title") this.cards.push({ type, event: event ?? {}, data: data ?? {} });
  }

  _complete({ data }) {
    this.status = data?.stopped || data?.steered ? "stopped" : "completed";
    this.steered = Boolean(data?.steered);
    this.finalAnswer = typeof data?.final_answer === "string" ? data.final_answer : "";
    if (data?.followups) this.followups = followupItems(data.followups);
    this.#close();
  }

  _error({ data }) {
    this.error = data ?? {};
    this.status = data?.error_type === "turn_interrupted" ? "interrupted" : "error";
    this.#close();
  }

  _status({ data }) {
    const { state, completion } = data ?? {};
    if (state === "created" || state === "in_progress") this.whole = true;
    if (state === "in_progress" && !this.ended) this.status = "running";
    if (completion === "interrupted") this.status = "interrupted";
    else if (completion && !this.ended) this.status = completion === "success" ? "completed" : "error";
    if (completion) this.#close();
  }

  #close() {
    for (const stream of this.streams.values()) stream.completed = true;
    for (const [name, step] of this.steps)
      if (step.status === "running" || step.status === "started")
        this.steps.set(name, { ...step, status: this.status === "completed" ? "completed" : "skipped" });
  }
}

const HANDLERS = {
  chat_start: Turn.prototype._start,
  chat_step: Turn.prototype._step,
  chat_delta: Turn.prototype._delta,
  chat_complete: Turn.prototype._complete,
  chat_error: Turn.prototype._error,
  conv_status: Turn.prototype._status,
};

/** Followups as `{text, label}`, from strings or objects. */
function followupItems(items) {
  if (!Array.isArray(items)) return [];
  return items.map((item) => {
    if (typeof item === "string") return { text: item, label: item };
    const text = item?.text ?? item?.message ?? item?.prompt ?? item?.title ?? item?.label ?? "";
    return { text: String(text), label: String(item?.label ?? item?.title ?? text) };
  }).filter((item) => item.text);
}

function usageLine(usage) {
  if (!usage) return "";
  const cost = Number(usage.cost_total_usd);
  const words = typeof usage.markdown === "string" ? usage.markdown : countTokens(usage.breakdown);
  return [words, cost > 0 ? `$${cost.toFixed(4)}` : ""].filter(Boolean).join(" · ");
}

function countTokens(breakdown) {
  if (!Array.isArray(breakdown) || !breakdown.length) return "";
  const first = (row, names) => names.map((name) => row?.[name]).find(Number.isFinite) ?? 0;
  const sum = (...names) => breakdown.reduce((all, row) => all + first(row, names), 0);
  const [read, written] = [sum("input_tokens", "tokens_in", "in"), sum("output_tokens", "tokens_out", "out")];
  return read + written ? `Token usage: ${read.toLocaleString()} in / ${written.toLocaleString()} out` : "";
}
