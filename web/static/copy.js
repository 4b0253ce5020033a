/**
 * Copy buttons, also where the clipboard API is missing (a page served over plain http on a local network).
 * @module
 */

import { icon } from "./icons.js";

const SHOWN_MS = 1600;

/** @param {string} text */
export async function copy(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "sr";
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("the browser did not let the page copy");
}

/**
 * @param {string} name what it copies, for the ear
 * @param {() => string} text
 * @param {string} [label] shown beside the icon
 * @returns {HTMLButtonElement}
 */
export function copyButton(name, text, label = "") {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet copy";
  button.title = name;
  const caption = document.createElement("span");
  caption.textContent = label;
  button.append(icon("copy"), caption);
  button.setAttribute("aria-label", name);
  button.addEventListener("click", async () => {
    const done = await copy(text()).then(
      () => true,
      () => false,
    );
    say(button, caption, done, name, label);
  });
  return button;
}

/**
 * @param {HTMLButtonElement} button
 * @param {HTMLElement} caption
 * @param {boolean} done
 * @param {string} name
 * @param {string} label
 */
function say(button, caption, done, name, label) {
  button.querySelector("svg")?.replaceWith(icon(done ? "check" : "warning"));
  button.setAttribute("aria-label", done ? "Copied" : "Not copied: select the text instead");
  if (label) caption.textContent = done ? "Copied" : "Not copied";
  setTimeout(() => {
    button.querySelector("svg")?.replaceWith(icon("copy"));
    button.setAttribute("aria-label", name);
    caption.textContent = label;
  }, SHOWN_MS);
}
