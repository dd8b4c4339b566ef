// What is drawn for an artifact or a widget, by its format; unknown ones are shown as text.

import { h } from "./dom.js";
import { codeBlock, renderMarkdown } from "./markdown.js";

const MOST_ROWS = 500;
const EXTENSIONS = { svg: "svg", markdown: "md", md: "md", json: "json", csv: "csv", html: "html" };
const TYPES = { svg: "image/svg+xml", json: "application/json", csv: "text/csv" };

/** Nodes that show a stream's text: `{text, format, title, name, language, completed}`. */
export function renderArtifact(stream) {
  const draw = DRAWN[formatOf(stream)];
  return draw ? draw(stream) : codeBlock(stream.text, stream.language || stream.format);
}

/** The words that name it. */
export function artifactTitle(stream) {
  return stream.title || stream.name || stream.subType || "Artifact";
}

/** A file for saving it: `{name, blob}`. */
export function artifactFile(stream) {
  const format = formatOf(stream);
  const base = (stream.name || "artifact").replace(/[^\p{L}\p{N}._-]+/gu, "-").slice(0, 80);
  const extension = EXTENSIONS[format] ?? "txt";
  const name = base.toLowerCase().endsWith(`.${extension}`) ? base : `${base}.${extension}`;
  return { name, blob: new Blob([stream.text], { type: TYPES[format] ?? "text/plain" }) };
}

function formatOf({ format, text }) {
  const known = (format ?? "").toLowerCase().replace(/^(?:image|text|application)\//, "").replace("+xml", "");
  if (known) return known;
  return text.trimStart().startsWith("<svg") ? "svg" : "markdown";
}

const DRAWN = { svg: drawing, markdown: markdown, md: markdown, json: json, csv: csv };

function drawing(stream) {
  if (!stream.completed) return h("p", { class: "hint", text: "Drawing…" });
  // As an image, no script of the drawing runs and nothing is loaded from elsewhere.
  const source = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(stream.text)}`;
  const image = h("img", { src: source, alt: artifactTitle(stream), class: "drawing" });
  image.addEventListener("error", () => image.replaceWith(codeBlock(stream.text, "svg")), { once: true });
  return image;
}

function markdown(stream) {
  return h("div", { class: "md" }, renderMarkdown(stream.text));
}

function json(stream) {
  try {
    return renderValue(JSON.parse(stream.text));
  } catch {
    return codeBlock(stream.text, "json");
  }
}

function csv(stream) {
  const rows = parseCsv(stream.text);
  if (rows.length < 2) return codeBlock(stream.text, "csv");
  return table(rows[0], rows.slice(1));
}

/** A JSON value as nested lists and tables. */
export function renderValue(value, depth = 0) {
  if (value === null || typeof value !== "object") return h("span", { text: value === null ? "–" : shown(value) });
  if (depth > 6) return codeBlock(JSON.stringify(value), "json");
  if (!Array.isArray(value)) return fields(Object.entries(value), depth);
  const rows = value.length && value.every((item) => item && typeof item === "object" && !Array.isArray(item));
  if (!rows && value.every((item) => item === null || typeof item !== "object"))
    return h("span", { text: value.slice(0, MOST_ROWS).map(shown).join(", ") || "–" });
  const heads = rows ? [...new Set(value.slice(0, 50).flatMap(Object.keys))] : [];
  const isFlat = (item) => heads.every((head) => typeof item[head] !== "object");
  if (rows && heads.length <= 8 && value.every(isFlat))
    return table(heads, value.map((item) => heads.map((head) => shown(item[head] ?? ""))));
  const items = value.slice(0, MOST_ROWS).map((item) => h("li", {}, renderValue(item, depth + 1)));
  return h("ol", { class: "values" }, items);
}

function fields(entries, depth) {
  const parts = entries.slice(0, MOST_ROWS).map(([name, value]) => {
    const inner = renderValue(value, depth + 1);
    const nested = value && typeof value === "object" && Object.keys(value).length > 0 && !isPlainList(value);
    if (!nested) return h("div", { class: "field" }, h("dt", { text: label(name) }), h("dd", {}, inner));
    const summary = h("summary", {}, h("span", { text: label(name) }), h("small", { text: ` ${extent(value)}` }));
    return h("div", { class: "field wide" }, h("details", { open: depth < 1 }, summary, inner));
  });
  return h("dl", { class: "fields" }, parts);
}

function isPlainList(value) {
  return Array.isArray(value) && value.length <= 12 && value.every((item) => item === null || typeof item !== "object");
}

function extent(value) {
  return Array.isArray(value) ? `(${value.length})` : "";
}

function label(name) {
  return name.replaceAll("_", " ");
}

function shown(value) {
  if (typeof value === "number") return value.toLocaleString(undefined, { maximumFractionDigits: 4 });
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

function table(heads, rows) {
  const line = (cells, tag) => h("tr", {}, cells.map((cell) => h(tag, { text: cell })));
  const body = h("tbody", {}, rows.slice(0, MOST_ROWS).map((row) => line(row, "td")));
  const more = rows.length - MOST_ROWS;
  return h(
    "div",
    { class: "table md", tabindex: "0", role: "region", "aria-label": "Table" },
    h("table", {}, h("thead", {}, line(heads, "th")), body),
    more > 0 && h("p", { class: "hint", text: `and ${more.toLocaleString()} more rows` }),
  );
}

/** Rows of comma-separated text; quotes as RFC 4180 has them. */
function parseCsv(text) {
  const rows = [[""]];
  let quoted = false;
  for (let at = 0; at < text.length; at++) {
    const [sign, row] = [text[at], rows.at(-1)];
    if (quoted) {
      if (sign !== '"') row[row.length - 1] += sign;
      else if (text[at + 1] === '"') row[row.length - 1] += text[at++];
      else quoted = false;
    } else if (sign === '"') quoted = true;
    else if (sign === ",") row.push("");
    else if (sign === "\n") rows.push([""]);
    else if (sign !== "\r") row[row.length - 1] += sign;
  }
  return rows.filter((row) => row.length > 1 || row[0]);
}
