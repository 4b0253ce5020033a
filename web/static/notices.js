/**
 * What the page says beside the conversation: short notices with an undo, the spoken status, and the key dialog.
 * @module
 */

import { iconButton } from "./icons.js";

const SHOWN_MS = 6000;

/** @param {string} id */
const byId = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

/**
 * Say something to a screen reader, once. Tokens are never said: the answer is read by going to it.
 * @param {string} text
 */
export function announce(text) {
  byId("announcer").textContent = text;
}

/**
 * Show a notice for a few seconds.
 * @param {string} text
 * @param {{action?: {label: string, run: () => void}, onGone?: () => void}} [more] `onGone` runs when the notice goes
 *   without its action having been taken
 * @returns {() => void} takes it away, as if its time were over
 */
export function notice(text, { action, onGone } = {}) {
  const box = document.createElement("div");
  box.className = "notice";
  const words = document.createElement("span");
  words.textContent = text;
  box.append(words);
  const close = (/** @type {(() => void) | undefined} */ then) => {
    if (!box.isConnected) return;
    clearTimeout(timer);
    box.remove();
    then?.();
  };
  if (action) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "link";
    button.textContent = action.label;
    button.addEventListener("click", () => close(action.run));
    box.append(button);
  }
  box.append(iconButton("close", "Dismiss", () => close(onGone)));
  const timer = setTimeout(() => close(onGone), SHOWN_MS);
  byId("notices").append(box);
  return () => close(onGone);
}

/**
 * Ask for an access key.
 * @returns {Promise<{key: string, keep: boolean} | null>} null when the user does not give one
 */
export function askForKey() {
  const dialog = /** @type {HTMLDialogElement} */ (byId("key-dialog"));
  const form = /** @type {HTMLFormElement} */ (dialog.querySelector("form"));
  const field = /** @type {HTMLInputElement} */ (byId("key"));
  const keep = /** @type {HTMLInputElement} */ (byId("keep-key"));
  form.reset();
  byId("key-cancel").onclick = () => dialog.close();
  dialog.returnValue = "";
  dialog.showModal();
  field.focus();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        const key = field.value.trim();
        field.value = "";
        resolve(dialog.returnValue === "ok" && key ? { key, keep: keep.checked } : null);
      },
      { once: true },
    );
  });
}
