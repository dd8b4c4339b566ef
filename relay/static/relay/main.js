// The chat page: puts stream, store, outbox and views together.

import { createApi } from "./api.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { Notices } from "./notices.js";
import { kept, readOptions } from "./options.js";
import { Canvas } from "./view-canvas.js";
import { ConnectionLine } from "./view-connection.js";
import { ConversationList } from "./view-list.js";
import { Transcript } from "./view-transcript.js";

const $ = (id) => document.getElementById(id);
const options = readOptions(location.search, document.body.dataset);
const api = createApi({ scope: options.scope, streamId: kept("backchannel.stream", () => crypto.randomUUID()) });

const chat = new Chat({ api, options });
const views = {
  list: new ConversationList($("conversations"), $("no-conversations")),
  connection: new ConnectionLine({
    element: $("connection"), words: $("connection-words"), countdown: $("countdown"), retry: $("reconnect"),
  }),
  notices: new Notices($("notices")),
  transcript: new Transcript({
    element: $("transcript"), scroller: $("scroller"), empty: $("empty"), latest: $("latest"), actions: chat,
  }),
  canvas: new Canvas({
    panel: $("canvas"), tabs: $("canvas-tabs"), body: $("canvas-body"), title: $("canvas-title"),
    close: $("canvas-close"), save: $("canvas-save"), source: $("canvas-source"),
  }),
  composer: new Composer({
    form: $("composer"), text: $("text"), files: $("files"), picker: $("picker"), dropZone: $("chat"),
    stop: $("stop"), interrupt: $("interrupt"), send: $("send"),
    onSend: (draft) => chat.send(draft), onStop: () => chat.stop(),
  }),
  heading: $("heading"),
  announcer: $("announcer"),
  who: $("who"),
};

$("attach").addEventListener("click", () => $("picker").click());
$("reconnect").addEventListener("click", () => chat.reconnect());
$("new").addEventListener("click", (event) => newConversation(event));
$("menu").addEventListener("click", () => toggleSidebar());
$("scroller").addEventListener("click", () => toggleSidebar(false));
$("sidebar").addEventListener("click", (event) => event.target.closest("a") && toggleSidebar(false));
$("sidebar").addEventListener("keydown", (event) => event.key === "Escape" && toggleSidebar(false));
window.addEventListener("hashchange", () => chat.openFromAddress());
window.addEventListener("online", () => chat.reconnect());
window.addEventListener("pagehide", () => chat.suspend());
window.addEventListener("pageshow", (event) => event.persisted && chat.resume());
document.addEventListener("visibilitychange", () => document.hidden || chat.reconnect());

function newConversation(event) {
  event.preventDefault();
  history.pushState(null, "", location.pathname + location.search);
  chat.openFromAddress();
  $("text").focus();
}

function toggleSidebar(open = !document.body.classList.contains("sidebar-open")) {
  document.body.classList.toggle("sidebar-open", open);
  $("menu").setAttribute("aria-expanded", String(open));
}

chat.start(views);
