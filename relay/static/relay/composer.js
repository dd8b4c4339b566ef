// The form below the transcript: text, files, and what happens to them; a draft survives a reload.

import { formatBytes, h, show } from "./dom.js";

const DRAFT = "backchannel.draft.";

/** `onSend({text, files, interrupt})` and `onStop()` are told what the user wants. */
export class Composer {
  constructor({ form, text, files, picker, dropZone, stop, interrupt, send, onSend, onStop }) {
    Object.assign(this, { form, text, list: files, picker, stop, interrupt, send, onSend });
    this.files = [];
    this.conversationId = "";
    this.busy = false;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit(false);
    });
    text.addEventListener("keydown", (event) => this.#key(event));
    text.addEventListener("input", () => this.#changed());
    text.addEventListener("paste", (event) => this.#pasted(event));
    picker.addEventListener("change", () => {
      this.addFiles(picker.files);
      picker.value = "";
    });
    stop.addEventListener("click", () => onStop());
    interrupt.addEventListener("click", () => this.#submit(true));
    this.#acceptDrops(dropZone);
  }

  /** Turn to another conversation and its draft. */
  open(conversationId) {
    this.conversationId = conversationId;
    this.files = [];
    this.text.value = sessionStorage.getItem(DRAFT + conversationId) ?? "";
    this.#drawFiles();
    this.#changed();
  }

  /** Put a text (and files) here to be sent later. */
  fill(text, files = []) {
    this.text.value = [this.text.value, text].filter((part) => part.trim()).join("\n\n");
    this.#changed();
    this.addFiles(files);
    this.text.focus();
  }

  addFiles(files) {
    this.files.push(...files);
    this.#drawFiles();
    this.#changed();
  }

  setBusy(busy) {
    if (this.busy === busy) return;
    this.busy = busy;
    this.#changed();
  }

  #key(event) {
    // While an input method composes, Enter chooses a word.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.#submit(false);
  }

  #submit(interrupt) {
    const text = this.text.value.trim();
    if (!text && !this.files.length) return this.text.focus();
    const files = this.files;
    this.files = [];
    this.text.value = "";
    this.#drawFiles();
    this.#changed();
    this.text.focus();
    this.onSend({ text, files, interrupt });
  }

  #changed() {
    const { value } = this.text;
    if (value) sessionStorage.setItem(DRAFT + this.conversationId, value);
    else sessionStorage.removeItem(DRAFT + this.conversationId);
    const isEmpty = !value.trim() && !this.files.length;
    this.send.disabled = isEmpty;
    this.send.textContent = this.busy ? "Follow up" : "Send";
    show(this.stop, this.busy);
    show(this.interrupt, this.busy && !isEmpty);
    this.text.style.height = "auto";
    this.text.style.height = `${Math.min(this.text.scrollHeight + 2, 240)}px`;
  }

  #drawFiles() {
    this.list.replaceChildren(...this.files.map((file) => this.#chip(file)));
    show(this.list, this.files.length > 0);
  }

  #chip(file) {
    const remove = h("button", { type: "button", class: "quiet", "aria-label": `Remove ${file.name}`, text: "×" });
    remove.addEventListener("click", () => {
      this.files = this.files.filter((other) => other !== file);
      this.#drawFiles();
      this.#changed();
      this.text.focus();
    });
    return h("li", {}, h("span", { text: file.name }), h("small", { text: formatBytes(file.size) }), remove);
  }

  #pasted(event) {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    this.addFiles(files);
  }

  #acceptDrops(zone) {
    const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    let depth = 0;
    const mark = (change) => {
      depth = Math.max(0, change(depth));
      zone.classList.toggle("dropping", depth > 0);
    };
    zone.addEventListener("dragenter", (event) => carriesFiles(event) && mark((n) => n + 1));
    zone.addEventListener("dragleave", (event) => carriesFiles(event) && mark((n) => n - 1));
    zone.addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
    zone.addEventListener("drop", (event) => {
      if (!carriesFiles(event)) return;
      event.preventDefault();
      mark(() => 0);
      this.addFiles(event.dataTransfer.files);
      this.text.focus();
    });
  }
}
