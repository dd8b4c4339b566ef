// What the page knows: conversations and their turns, from the server's rows and from the stream's events.

import { comparePositions, earlierPosition } from "./position.js";
import { Turn } from "./turn.js";

/**
 * `onTurn(turn)` and `onConversation(conversation)` are told what changed; `onHole(conversationId)` that
 * events of a turn came whose beginning the stream did not have.
 */
export class Store {
  constructor({ onTurn, onConversation, onHole, onService }) {
    Object.assign(this, { onTurn, onConversation, onHole, onService });
    this.conversations = new Map();
    this.high = "";
  }

  /** Forget everything: the session is another one now. */
  clear() {
    this.conversations.clear();
    this.high = "";
  }

  conversation(id) {
    let conversation = this.conversations.get(id);
    if (!conversation) {
      conversation = { id, title: "", state: "idle", lastActivity: "", turns: new Map(), loaded: false, known: false };
      this.conversations.set(id, conversation);
    }
    return conversation;
  }

  /** Conversations that exist on the server, the latest first. */
  list() {
    return [...this.conversations.values()]
      .filter((item) => item.known)
      .sort((a, b) => (a.lastActivity < b.lastActivity ? 1 : a.lastActivity > b.lastActivity ? -1 : 0));
  }

  /** The conversation's turns in the order in which they were accepted (their ids begin with the time). */
  turns(conversationId) {
    return [...this.conversation(conversationId).turns.values()].sort((a, b) => (a.turnId < b.turnId ? -1 : 1));
  }

  /** The turn that is running, if any. */
  running(conversationId) {
    return this.turns(conversationId).find((turn) => turn.status === "running" && !turn.replay) ?? null;
  }

  turn(conversationId, turnId) {
    const { turns } = this.conversation(conversationId);
    if (!turns.has(turnId)) turns.set(turnId, new Turn(turnId, conversationId));
    return turns.get(turnId);
  }

  loadList(items) {
    for (const item of items) {
      const conversation = this.conversation(item.conversation_id);
      conversation.known = true;
      conversation.title = item.title || conversation.title;
      conversation.lastActivity = item.last_activity_at ?? conversation.lastActivity;
      if (item.state) conversation.state = item.state;
    }
    this.onConversation(null);
  }

  /**
   * Take over one conversation as the server has it. Returns the position to read from so that every
   * unfinished turn is whole, or "" when what the stream has handed over since `coveredFrom` is enough.
   * What stands before `lostBefore` can't be read again: such a turn stays incomplete until its end.
   */
  loadConversation(row, { coveredFrom = "", lostBefore = "" } = {}) {
    const conversation = this.conversation(row.conversation_id);
    Object.assign(conversation, { known: true, loaded: true, state: row.state ?? "idle", title: row.title ?? "" });
    const said = new Map();
    const answered = new Map();
    for (const message of row.messages ?? []) (message.role === "user" ? said : answered).set(message.turn_id, message);
    let from = "";
    for (const item of row.turns ?? []) {
      const turn = this.turn(conversation.id, item.turn_id);
      if (!turn.sealed && !(turn.ended && turn.whole)) turn.load(item, answered.get(item.turn_id)?.content ?? "");
      const message = said.get(item.turn_id);
      if (message) turn.user = userOf(message);
      turn.revision++;
      const first = turn.ended ? "" : item.first_position;
      if (first && this.#lacksBeginning(turn, first, coveredFrom)) {
        if (lostBefore && comparePositions(first, lostBefore) < 0) turn.lose();
        else {
          turn.restart(first);
          from = earlierPosition(from, first);
        }
      }
      this.onTurn(turn);
    }
    this.onConversation(conversation);
    return from;
  }

  #lacksBeginning(turn, first, coveredFrom) {
    const covered = coveredFrom && comparePositions(first, coveredFrom) >= 0;
    return !covered && !(turn.whole && comparePositions(turn.applied, first) > 0);
  }

  /** Events were lost: no unfinished turn can be trusted to have them all. */
  doubt() {
    for (const conversation of this.conversations.values())
      for (const turn of conversation.turns.values()) if (!turn.ended) turn.whole = false;
  }

  /** The server accepted a message of ours. */
  accepted(acknowledgement, user, kind) {
    const conversation = this.conversation(acknowledgement.conversation_id);
    conversation.known = true;
    conversation.lastActivity = new Date().toISOString();
    if (acknowledgement.turn_id) {
      const turn = this.turn(conversation.id, acknowledgement.turn_id);
      turn.user = { ...turn.user, ...user };
      turn.kind = kind;
      turn.revision++;
      this.onTurn(turn);
    }
    this.onConversation(conversation);
  }

  /** Fold one event of the stream in; one that was seen before changes nothing. */
  fold(route, envelope, position) {
    const { conversation_id: conversationId, turn_id: turnId } = envelope.conversation ?? {};
    const isNew = !position || comparePositions(position, this.high) > 0;
    if (position && isNew) this.high = position;
    if (isNew && conversationId) this.#foldConversation(this.conversation(conversationId), route, envelope);
    if (route === "chat_service" || !turnId) {
      if (isNew) this.#foldService(route, envelope);
      return;
    }
    const turn = this.turn(conversationId, turnId);
    if (!turn.fold(route, envelope, position)) return;
    this.onTurn(turn);
    if (!turn.whole && !turn.lost) this.onHole(conversationId);
  }

  /**
   * Fold one event of a replay in: what was, shown again. It becomes a turn of its own in the conversation that is
   * open ("~" sorts behind every turn's id), and changes nothing of the turn that it replays. It has no position;
   * the start of a turn begins its replay anew.
   */
  foldReplay(conversationId, route, envelope) {
    const turnId = envelope.conversation?.turn_id;
    if (!turnId) return;
    const turn = this.turn(conversationId, `~replay ${turnId}`);
    if (!turn.replay || route === "chat_start") turn.beginReplay(turnId);
    if (turn.fold(route, envelope, "")) this.onTurn(turn);
  }

  #foldConversation(conversation, route, { type, data, timestamp }) {
    if (route === "conv_status" && data?.state) {
      conversation.state = data.state === "created" ? "in_progress" : data.state;
      conversation.known = true;
      conversation.lastActivity = data.updated_at ?? timestamp ?? conversation.lastActivity;
    } else if (type === "chat.conversation.title" && data?.title) {
      conversation.title = String(data.title);
    } else return;
    this.onConversation(conversation);
  }

  #foldService(route, envelope) {
    const { conversation_id: conversationId, turn_id: turnId } = envelope.conversation ?? {};
    const absorbed = envelope.data?.queued_turn_id;
    if (envelope.type === "queue.followup_absorbed" && absorbed && conversationId) {
      const turn = this.turn(conversationId, absorbed);
      turn.status = "absorbed";
      turn.absorbedBy = turnId ?? "";
      turn.revision++;
      this.onTurn(turn);
    }
    this.onService(route, envelope);
  }
}

function userOf(message) {
  return {
    text: message.content ?? "",
    author: message.author ?? "",
    attachments: message.attachments ?? [],
    at: message.created_at ?? "",
  };
}
