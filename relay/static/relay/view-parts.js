// The parts of a turn's view: what was said, disclosures, steps, widgets and cards.

import { artifactTitle, renderArtifact, renderValue } from "./artifact.js";
import { formatBytes, h, setText, show } from "./dom.js";
import { renderMarkdown } from "./markdown.js";

const STATES = { running: "running", started: "running", completed: "done", error: "failed", skipped: "skipped" };

/** "running", "done", "failed" or "skipped". */
export function stepState(step) {
  return STATES[step.status] ?? "running";
}

/** A file's name; a link to it where the server has told one. */
function fileName({ filename, url }) {
  return url ? h("a", { href: url, download: filename, text: filename }) : h("span", { text: filename });
}

/** Nodes of what a user said: text, files, and a badge. */
export function saidNodes(user, badge = "") {
  const files = (user.attachments ?? []).map((file) =>
    h("li", {}, fileName(file), h("small", { text: formatBytes(file.size) })));
  return [
    badge && h("span", { class: "badge", text: badge }),
    user.text && h("p", { class: "said-text", text: user.text }),
    files.length > 0 && h("ul", { class: "files", "aria-label": "Attachments" }, files),
  ].filter(Boolean);
}

/** A `<details>` that opens and closes by itself until somebody does. */
export function disclosure(name, title) {
  const summary = h("summary", { text: title });
  const body = h("div", { class: "body" });
  const element = h("details", { class: name, hidden: true }, summary, body);
  let touched = false;
  summary.addEventListener("click", () => (touched = true));
  return {
    element,
    body,
    setTitle: (text) => setText(summary, text),
    setOpen: (open) => {
      if (!touched && element.open !== open) element.open = open;
    },
  };
}

/** One step: its title, its state, its progress and its note. */
export function stepRow() {
  const title = h("span", { class: "step-title" });
  const state = h("span", { class: "sr" });
  const bar = h("progress", { max: "1", hidden: true });
  const note = h("div", { class: "step-note md" });
  const element = h("li", {}, title, state, bar, note);
  let markdown = "";
  return {
    element,
    update(step, name) {
      element.dataset.state = name;
      setText(title, step.title || step.step || "");
      setText(state, `, ${name}`);
      const progress = Number(step.data?.progress);
      show(bar, name === "running" && Number.isFinite(progress));
      if (Number.isFinite(progress)) bar.value = progress > 1 ? progress / 100 : progress;
      if ((step.markdown ?? "") === markdown) return;
      markdown = step.markdown ?? "";
      note.replaceChildren(renderMarkdown(markdown));
    },
  };
}

/** A subsystem's JSON, folded away. */
export function widget(stream) {
  const heading = h("summary", { text: artifactTitle(stream) });
  return h("details", { class: "widget", data: { kind: stream.subType || stream.name } }, heading, renderArtifact({
    ...stream, format: stream.format || "json",
  }));
}

/** A stream of a marker that this page does not know. */
export function customStream(stream) {
  const summary = h("summary", { text: stream.title || stream.name || stream.marker.replaceAll("_", " ") });
  return h("details", { class: "widget" }, summary, renderArtifact(stream));
}

/** An event of a type of its own. */
export function card({ type, event, data }) {
  const body = event.markdown
    ? h("div", { class: "md" }, renderMarkdown(event.markdown))
    : Object.keys(data).length ? renderValue(data) : null;
  return h("section", { class: "card" }, h("h3", { text: event.title || type }), body);
}
