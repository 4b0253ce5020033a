/**
 * What the assistant remembers of its user: theirs to read, to correct, to erase and to switch off.
 * @module
 */

import { explain } from "./errors.js";
import { iconButton } from "./icons.js";
import { announce, notice } from "./notices.js";
import { keepFocus } from "./panels.js";
import { patiently } from "./patience.js";

/** @typedef {{id: string, text: string, source?: {conversation_id: string} | null}} Memory */
/** @typedef {{data: Memory[], enabled: boolean, switchable: boolean}} MemoryPage */

/** @param {string} id */
const byId = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

export class Memories {
  /** @type {MemoryPage | null} */
  #page = null;
  #dialog = /** @type {HTMLDialogElement} */ (byId("memories"));

  /**
   * @param {import("./api.js").Api} api
   * @param {(conversation: string) => void} go
   */
  constructor(api, go) {
    this.api = api;
    this.go = go;
    byId("memories-open").addEventListener("click", () => this.open());
    byId("memories-close").addEventListener("click", () => this.#dialog.close());
    byId("memories-again").addEventListener("click", () => this.open());
    byId("memories-all").addEventListener("click", () => this.#do(() => this.api.forgetMemories(), "Everything is forgotten."));
    byId("memories-on").addEventListener("change", (event) => {
      const enabled = /** @type {HTMLInputElement} */ (event.target).checked;
      this.#do(() => this.api.switchMemory(enabled), enabled ? "Memory is on." : "Memory is off.");
    });
  }

  /** Show the panel, with what is remembered now. */
  async open() {
    if (!this.#dialog.open) this.#dialog.showModal();
    await this.#read();
  }

  async #read() {
    byId("memories-problem").hidden = true;
    byId("memories-loading").hidden = this.#page !== null;
    try {
      this.#page = await patiently(() => this.api.memories());
    } catch (error) {
      const { title, advice } = explain(error);
      byId("memories-problem").hidden = false;
      byId("memories-problem-text").textContent = `What is remembered cannot be shown. ${title} ${advice}`;
    }
    byId("memories-loading").hidden = true;
    this.#render();
  }

  /**
   * Change something, and show what is remembered then.
   * @param {() => Promise<unknown>} change
   * @param {string} said
   */
  async #do(change, said) {
    try {
      await patiently(change);
      announce(said);
    } catch (error) {
      const { title, advice } = explain(error);
      notice(`Not changed. ${title} ${advice}`);
    }
    await this.#read();
  }

  #render() {
    const page = this.#page ?? { data: [], enabled: true, switchable: false };
    const on = /** @type {HTMLInputElement} */ (byId("memories-on"));
    on.checked = page.enabled;
    on.disabled = !page.switchable;
    byId("memories-list").replaceChildren(...page.data.map((memory) => this.#item(memory)));
    byId("memories-all").hidden = page.data.length === 0;
    const empty = byId("memories-empty");
    empty.hidden = page.data.length > 0 || !byId("memories-problem").hidden;
    if (page.enabled) {
      empty.textContent = "Nothing yet. Say “My name is …” or “I prefer short answers”, and the next conversation knows it.";
    } else {
      empty.textContent = page.switchable ? "Memory is off: nothing is kept." : "Memory is switched off on this server.";
    }
    keepFocus(this.#dialog, byId("memories-close"));
  }

  /** @param {Memory} memory */
  #item(memory) {
    const item = document.createElement("li");
    const words = document.createElement("div");
    const text = document.createElement("span");
    text.className = "name";
    text.textContent = memory.text;
    words.append(text);
    const conversation = memory.source?.conversation_id;
    if (conversation) {
      const from = document.createElement("button");
      from.type = "button";
      from.className = "link state";
      from.textContent = "From this conversation";
      from.addEventListener("click", () => (this.#dialog.close(), this.go(conversation)));
      words.append(from);
    }
    item.append(
      words,
      iconButton("edit", `Change “${memory.text}”`, () => this.#edit(memory, item)),
      iconButton("delete", `Forget “${memory.text}”`, () => this.#do(() => this.api.forgetMemory(memory.id), "Forgotten.")),
    );
    return item;
  }

  /**
   * @param {Memory} memory
   * @param {HTMLElement} item
   */
  #edit(memory, item) {
    const form = document.createElement("form");
    const field = document.createElement("input");
    field.value = memory.text;
    field.maxLength = 500;
    field.setAttribute("aria-label", "What is remembered");
    const save = document.createElement("button");
    save.className = "primary";
    save.textContent = "Save";
    form.append(field, save);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const text = field.value.trim();
      if (text && text !== memory.text) this.#do(() => this.api.changeMemory(memory.id, text), "Changed.");
      else this.#render();
    });
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.preventDefault();
      event.stopPropagation();
      this.#render();
    });
    item.replaceChildren(form);
    field.focus();
  }
}
