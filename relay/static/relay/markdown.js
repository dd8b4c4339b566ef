// Markdown as DOM nodes, block by block; nothing of the source is ever parsed as HTML.

import { h } from "./dom.js";
import { renderInline } from "./inline.js";

const DEEPEST = 8;
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^\s`]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})(?:\s+(.*?))?(?:\s+#+)?\s*$/;
const RULE = /^ {0,3}(?:(?:\*\s*){3,}|(?:-\s*){3,}|(?:_\s*){3,})$/;
const QUOTE = /^ {0,3}>\s?/;
const ITEM = /^(\s*)(?:([-*+])|(\d{1,9})[.)])(?:\s+|$)/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;

/**
 * Render Markdown into an element, again and again while the text grows: a block whose source has not
 * changed keeps its nodes, so that selections stay and a long answer costs no more than its last block.
 */
export class MarkdownView {
  constructor(element) {
    this.element = element;
    this.sources = [];
  }

  /** `growing`: more is to come, so the first line of a table waits for the one that makes it a table. */
  update(text, growing = false) {
    const blocks = splitBlocks(text);
    if (growing && isTableHead(blocks.at(-1) ?? "")) blocks.pop();
    let same = 0;
    while (same < blocks.length && same < this.sources.length && blocks[same] === this.sources[same]) same++;
    while (this.element.childNodes.length > same) this.element.lastChild.remove();
    this.element.append(...blocks.slice(same).map((source) => renderBlock(source, 0)));
    this.sources = blocks;
  }
}

/** Render a whole text at once. */
export function renderMarkdown(text, depth = 0) {
  const fragment = document.createDocumentFragment();
  fragment.append(...splitBlocks(text).map((source) => renderBlock(source, depth)));
  return fragment;
}

/** Cut a text into the sources of its top-level blocks; each is not empty. */
export function splitBlocks(text) {
  const lines = text.replace(/\r\n?/g, "\n").replace(/\0/g, "\ufffd").split("\n");
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (!lines[at].trim()) {
      at++;
      continue;
    }
    const end = endOfBlock(lines, at);
    blocks.push(lines.slice(at, end).join("\n"));
    at = end;
  }
  return blocks;
}

function endOfBlock(lines, at) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return endOfFence(lines, at, fence[1]);
  if (HEADING.test(line) || RULE.test(line)) return at + 1;
  if (QUOTE.test(line)) return advance(lines, at + 1, (next) => next.trim() && !startsBlock(next, { quote: false }));
  if (ITEM.test(line)) return endOfList(lines, at);
  if (/^(?: {4}|\t)/.test(line)) return endOfIndented(lines, at);
  if (isTable(lines, at)) return advance(lines, at + 2, (next) => next.includes("|") && next.trim());
  return advance(lines, at + 1, (next, i) => next.trim() && !startsBlock(next, {}) && !isTable(lines, i));
}

function advance(lines, at, goesOn) {
  while (at < lines.length && goesOn(lines[at], at)) at++;
  return at;
}

function startsBlock(line, { quote = true }) {
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line)) return true;
  if (QUOTE.test(line)) return quote;
  const item = ITEM.exec(line);
  // In the middle of a paragraph only "1." begins a list: a year at the start of a line does not.
  return Boolean(item && item[1].length < 4 && line.trim().length > 1 && (item[2] || Number(item[3]) === 1));
}

function endOfFence(lines, at, mark) {
  const closing = new RegExp(`^ {0,3}${mark[0] === "`" ? "`" : "~"}{${mark.length},}\\s*$`);
  const end = advance(lines, at + 1, (line) => !closing.test(line));
  return Math.min(end + 1, lines.length);
}

function endOfIndented(lines, at) {
  let end = at;
  for (let i = at; i < lines.length && (/^(?: {4}|\t)/.test(lines[i]) || !lines[i].trim()); i++)
    if (lines[i].trim()) end = i + 1;
  return end;
}

function endOfList(lines, at) {
  const ordered = ITEM.exec(lines[at])[3] !== undefined;
  const indent = indentOf(lines[at]);
  let end = at + 1;
  for (let i = at + 1; i < lines.length; i++) {
    const line = lines[i];
    if (!line.trim()) continue;
    const afterBlank = !lines[i - 1].trim();
    const item = ITEM.exec(line);
    const isSibling = item && (item[3] !== undefined) === ordered && !RULE.test(line);
    const inside = indentOf(line) > indent + 1 || isSibling || (!afterBlank && !startsBlock(line, {}));
    if (!inside) break;
    end = i + 1;
  }
  return end;
}

function indentOf(line) {
  return line.replace(/\t/g, "    ").search(/\S|$/);
}

function isTable(lines, at) {
  const [head, divider] = [lines[at], lines[at + 1]];
  if (divider === undefined || !head.includes("|") || !DIVIDER.test(divider) || !divider.includes("-")) return false;
  return cells(head).length === cells(divider).length;
}

/** A first line with bars, and at most a part of the line that would make it a table. */
function isTableHead(source) {
  return /^\s*\|[^\n]*(?:\n[\s|:-]*)?$/.test(source) && !isTable(source.split("\n"), 0);
}

// --- rendering ---------------------------------------------------------------------------------------

function renderBlock(source, depth) {
  const lines = source.split("\n");
  const fence = FENCE.exec(lines[0]);
  if (fence) return codeBlock(fencedText(lines, fence[1]), fence[2]);
  const heading = HEADING.exec(lines[0]);
  // The page's own headings are h1 and h2.
  if (heading) return h(`h${Math.min(6, heading[1].length + 2)}`, {}, renderInline(heading[2] ?? ""));
  if (RULE.test(lines[0])) return h("hr");
  if (QUOTE.test(lines[0])) {
    const inner = lines.map((line) => line.replace(QUOTE, "")).join("\n");
    return h("blockquote", {}, depth < DEEPEST ? renderMarkdown(inner, depth + 1) : inner);
  }
  if (ITEM.test(lines[0])) return depth < DEEPEST ? list(lines, depth) : h("p", { text: source });
  if (/^(?: {4}|\t)/.test(lines[0])) return codeBlock(lines.map((line) => line.replace(/^(?: {4}|\t)/, "")).join("\n"));
  if (isTable(lines, 0)) return table(lines);
  return h("p", {}, renderInline(lines.map((line) => line.trimStart()).join("\n").trimEnd()));
}

function fencedText(lines, mark) {
  const last = lines.length > 1 && lines.at(-1).trim();
  const closed = last && last.length >= mark.length && [...last].every((sign) => sign === mark[0]);
  return lines.slice(1, closed ? -1 : undefined).join("\n");
}

/** Code with its language and a button that copies it. */
export function codeBlock(text, language = "") {
  const copy = h("button", { type: "button", class: "quiet copy", text: "Copy" });
  copy.addEventListener("click", async () => {
    await navigator.clipboard?.writeText(text).catch(() => {});
    copy.textContent = "Copied";
  });
  const head = h("div", { class: "code-head" }, h("span", { text: language || "code" }), copy);
  return h("div", { class: "code" }, head, h("pre", { tabindex: "0" }, h("code", { text })));
}

function list(lines, depth) {
  const first = ITEM.exec(lines[0]);
  const ordered = first[3] !== undefined;
  const items = [];
  const indent = indentOf(lines[0]);
  let content = 0;
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && indentOf(line) <= indent + 1 && (item[3] !== undefined) === ordered) {
      content = item[0].length;
      items.push([line.slice(content)]);
    } else items.at(-1).push(line.slice(Math.min(content, indentOf(line))));
  }
  const loose = lines.some((line) => !line.trim());
  const start = ordered && Number(first[3]) !== 1 ? Number(first[3]) : null;
  return h(ordered ? "ol" : "ul", { start }, items.map((item) => listItem(item.join("\n"), loose, depth)));
}

function listItem(source, loose, depth) {
  const task = /^\[([ xX])\]\s+/.exec(source);
  const item = h("li", { class: task ? "task" : null });
  if (task) item.append(h("input", { type: "checkbox", disabled: true, checked: task[1] !== " " }));
  const body = renderMarkdown(task ? source.slice(task[0].length) : source, depth + 1);
  if (!loose) for (const node of [...body.children]) if (node.tagName === "P") node.replaceWith(...node.childNodes);
  item.append(body);
  return item;
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(^|[^\\])\|$/, "$1");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function table(lines) {
  const aligned = cells(lines[1]).map((cell) => {
    const right = cell.endsWith(":");
    return cell.startsWith(":") && right ? "center" : right ? "right" : "left";
  });
  const row = (line, tag) => {
    const found = cells(line);
    return h("tr", {}, aligned.map((side, i) => h(tag, { class: `to-${side}` }, renderInline(found[i] ?? ""))));
  };
  const head = h("thead", {}, row(lines[0], "th"));
  const body = h("tbody", {}, lines.slice(2).map((line) => row(line, "td")));
  return h("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" }, h("table", {}, head, body));
}
