/**
 * The box at the bottom: writing, sending and stopping.
 * @module
 */

/** @param {string} id */
const byId = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

const DRAFT = "headrace.draft.";

export class Composer {
  #working = false;
  #draftKey = DRAFT;

  /** @param {{send: (text: string) => void, stop: () => void, editLast: () => boolean}} on */
  constructor(on) {
    this.on = on;
    this.form = /** @type {HTMLFormElement} */ (byId("composer"));
    this.field = /** @type {HTMLTextAreaElement} */ (byId("question"));
    this.sendButton = /** @type {HTMLButtonElement} */ (byId("send"));
    this.stopButton = /** @type {HTMLButtonElement} */ (byId("stop"));
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.stopButton.addEventListener("click", () => this.on.stop());
    this.field.addEventListener("input", () => this.#changed());
    this.field.addEventListener("keydown", (event) => this.#key(event));
  }

  /** Change to another conversation's draft. @param {string} conversation */
  draftOf(conversation) {
    this.#draftKey = DRAFT + conversation;
    this.field.value = storedDraft(this.#draftKey);
    this.#changed();
  }

  /** The conversation has its id now: what is being written moves along. @param {string} conversation */
  moveDraft(conversation) {
    sessionStorage.removeItem(this.#draftKey);
    this.#draftKey = DRAFT + conversation;
    this.#changed();
  }

  /** @param {string} text */
  fill(text) {
    this.field.value = text;
    this.#changed();
    this.focus();
  }

  focus() {
    this.field.focus();
    this.field.setSelectionRange(this.field.value.length, this.field.value.length);
  }

  /** @param {{working: boolean, stopping: boolean}} state */
  show({ working, stopping }) {
    const focused = document.activeElement;
    this.#working = working;
    this.form.dataset.working = String(working);
    // Not disabled, which would take the keyboard's focus away from it.
    this.stopButton.setAttribute("aria-disabled", String(stopping));
    this.#buttons();
    const gone = (focused === this.stopButton || focused === this.sendButton) && /** @type {HTMLElement} */ (focused).hidden;
    // On a phone, focus would open the keyboard over the answer.
    if (gone && !matchMedia("(pointer: coarse)").matches) this.field.focus();
  }

  #buttons() {
    this.stopButton.hidden = !this.#working;
    this.sendButton.hidden = this.#working;
    this.sendButton.disabled = !this.field.value.trim();
  }

  #changed() {
    this.field.style.height = "auto";
    this.field.style.height = `${this.field.scrollHeight}px`;
    this.#buttons();
    try {
      if (this.field.value) sessionStorage.setItem(this.#draftKey, this.field.value);
      else sessionStorage.removeItem(this.#draftKey);
    } catch {
      // Storage is full or switched off: the draft lives as long as the page.
    }
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      this.#send();
    } else if (event.key === "ArrowUp" && !this.field.value && !event.altKey && this.on.editLast()) {
      event.preventDefault();
    }
  }

  #send() {
    const text = this.field.value.trim();
    if (!text || this.#working) return;
    this.field.value = "";
    this.#changed();
    this.on.send(text);
  }
}

/** @param {string} key */
function storedDraft(key) {
  try {
    return sessionStorage.getItem(key) ?? "";
  } catch {
    return "";
  }
}
