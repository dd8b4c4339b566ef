// Inline Markdown: emphasis, code, links; every link is checked, every other character is text.

import { h } from "./dom.js";

const DEEPEST = 12;
const SAFE_LINK = /^(?:https?:\/\/|mailto:)/i;
const BARE_LINK = /^https?:\/\/[^\s<>"'`*]+/;
const MARKS = { "**": "strong", "__": "strong", "~~": "del", "*": "em", _: "em" };
const LONGEST_LINK = 2000;

/** Render one paragraph's worth of Markdown as nodes. */
export function renderInline(text, depth = 0) {
  const fragment = document.createDocumentFragment();
  const reader = new Inline(text, depth, fragment);
  reader.read();
  return fragment;
}

/** Reads a text from left to right; what closes nothing stays text. */
class Inline {
  constructor(text, depth, out) {
    Object.assign(this, { text, depth, out });
    this.at = 0;
    this.plain = "";
    // Searching for a closing mark again and again would make "[[[[…" quadratic.
    this.absent = new Set();
  }

  read() {
    while (this.at < this.text.length) {
      const sign = this.text[this.at];
      if (!this.#construct(sign)) {
        this.plain += sign;
        this.at++;
      }
    }
    this.#flush();
  }

  #construct(sign) {
    if (sign === "\\") return this.#escape();
    if (sign === "`") return this.#code();
    if (sign === "\n") return this.#lineBreak();
    if (sign === "[" || (sign === "!" && this.text[this.at + 1] === "[")) return this.#link(sign === "!");
    if (sign === "<") return this.#autolink();
    if (sign === "h") return this.#bareLink();
    if (sign === "*" || sign === "_" || sign === "~") return this.#emphasis(sign);
    return false;
  }

  #push(node, end) {
    this.#flush();
    this.out.append(node);
    this.at = end;
    return true;
  }

  #flush() {
    if (this.plain) this.out.append(this.plain);
    this.plain = "";
  }

  #find(mark, from) {
    if (this.absent.has(mark)) return -1;
    const found = this.text.indexOf(mark, from);
    if (found < 0) this.absent.add(mark);
    return found;
  }

  #escape() {
    const next = this.text[this.at + 1];
    if (next === "\n") return this.#push(h("br"), this.at + 2);
    if (!next || !/[!-/:-@[-`{-~]/.test(next)) return false;
    this.plain += next;
    this.at += 2;
    return true;
  }

  #lineBreak() {
    if (!this.plain.endsWith("  ")) return false;
    this.plain = this.plain.trimEnd();
    return this.#push(h("br"), this.at + 1);
  }

  #code() {
    const mark = /^`+/.exec(this.text.slice(this.at, this.at + 20))[0];
    let end = this.#find(mark, this.at + mark.length);
    while (end >= 0 && (this.text[end + mark.length] === "`" || this.text[end - 1] === "`"))
      end = this.text.indexOf(mark, end + mark.length + 1);
    if (end < 0) {
      this.plain += mark;
      this.at += mark.length;
      return true;
    }
    const inner = this.text.slice(this.at + mark.length, end).replaceAll("\n", " ");
    const trimmed = /^ .*\S.* $/.test(inner) ? inner.slice(1, -1) : inner;
    return this.#push(h("code", { text: trimmed }), end + mark.length);
  }

  #link(isImage) {
    const open = this.at + (isImage ? 2 : 1);
    const middle = this.#find("](", open);
    if (middle < 0) return false;
    const label = this.text.slice(open, middle);
    if (label.includes("[") && !isImage) return false;
    const target = /^\(\s*<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?(?:\s+"[^"]*"|\s+'[^']*')?\s*\)/.exec(
      this.text.slice(middle + 1, middle + 1 + LONGEST_LINK),
    );
    if (!target || this.depth >= DEEPEST) return false;
    const words = isImage ? document.createTextNode(label || "image") : renderInline(label, this.depth + 1);
    // A picture from elsewhere would tell its host who reads this: it is a link here.
    return this.#push(link(target[1], words), middle + 1 + target[0].length);
  }

  #autolink() {
    const found = /^<((?:https?:\/\/|mailto:)[^\s<>]+)>/i.exec(this.text.slice(this.at, this.at + LONGEST_LINK));
    if (!found) return false;
    return this.#push(link(found[1], document.createTextNode(found[1])), this.at + found[0].length);
  }

  #bareLink() {
    if (this.at && /\w/.test(this.text[this.at - 1])) return false;
    const found = BARE_LINK.exec(this.text.slice(this.at, this.at + LONGEST_LINK));
    if (!found) return false;
    const url = withoutTail(found[0]);
    return this.#push(link(url, document.createTextNode(url)), this.at + url.length);
  }

  #emphasis(sign) {
    const mark = this.text.startsWith(sign + sign, this.at) ? sign + sign : sign;
    const tag = MARKS[mark];
    const start = this.at + mark.length;
    if (!tag || this.depth >= DEEPEST || /\s|^$/.test(this.text[start] ?? "")) return false;
    if (sign === "_" && /\w/.test(this.text[this.at - 1] ?? "")) return false;
    const end = this.#closing(mark, sign, start);
    if (end < 0) {
      this.plain += mark;
      this.at = start;
      return true;
    }
    return this.#push(h(tag, {}, renderInline(this.text.slice(start, end), this.depth + 1)), end + mark.length);
  }

  #closing(mark, sign, start) {
    for (let tries = 0, end = this.#find(mark, start + 1); end >= 0 && tries < 50; tries++) {
      const run = /^[*_~]+/.exec(this.text.slice(end, end + 20))[0].length;
      const fits = mark.length === 2 || run !== 2;
      const word = sign === "_" && /\w/.test(this.text[end + mark.length] ?? "");
      if (fits && !word && !/[\s\\]/.test(this.text[end - 1])) return run === 3 && mark.length === 2 ? end + 1 : end;
      end = this.text.indexOf(mark, end + Math.max(run, 1));
    }
    return -1;
  }
}

function link(url, words) {
  if (!SAFE_LINK.test(url)) return words;
  return h("a", { href: url, target: "_blank", rel: "noopener noreferrer nofollow" }, words);
}

/** A full stop or bracket after a bare link belongs to the sentence. */
function withoutTail(url) {
  let end = url.length;
  while (end > 0 && /[.,;:!?)\]]/.test(url[end - 1])) {
    if (url[end - 1] === ")" && url.slice(0, end).split("(").length >= url.slice(0, end).split(")").length) break;
    end--;
  }
  return url.slice(0, end);
}
