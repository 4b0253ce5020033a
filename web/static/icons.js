/**
 * Icons from the one set of symbols in index.html.
 * @module
 */

const SVG = "http://www.w3.org/2000/svg";

/**
 * @param {string} name
 * @returns {SVGSVGElement}
 */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/**
 * @param {string} name the icon's
 * @param {string} label for the ear and the pointer
 * @param {() => void} onClick
 * @param {string} [caption] text shown beside the icon
 * @returns {HTMLButtonElement}
 */
export function iconButton(name, label, onClick, caption = "") {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet";
  button.title = label;
  if (caption) {
    const text = document.createElement("span");
    text.textContent = caption;
    button.append(icon(name), text);
  } else {
    button.setAttribute("aria-label", label);
    button.append(icon(name));
  }
  button.addEventListener("click", onClick);
  return button;
}
