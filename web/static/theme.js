/**
 * Dark, light, or as the system has it: one button that goes round the three, and a choice that is kept.
 *
 * `boot.js` applies the kept choice before the first paint; this module only changes it.
 * @module
 */

/** @typedef {"system" | "light" | "dark"} Theme */

const KEY = "headrace.theme";
/** @type {Theme[]} */
const ROUND = ["system", "light", "dark"];
const NAMES = { system: "as the system", light: "light", dark: "dark" };

/** @returns {Theme} */
function current() {
  const set = document.documentElement.dataset.theme;
  return set === "light" || set === "dark" ? set : "system";
}

/** @param {Theme} theme */
function apply(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  try {
    if (theme === "system") localStorage.removeItem(KEY);
    else localStorage.setItem(KEY, theme);
  } catch {
    // Storage is switched off: the choice lasts until the page is closed.
  }
}

/** @param {HTMLElement} button */
export function mountTheme(button) {
  const show = () => {
    const theme = current();
    button.dataset.theme = theme;
    button.setAttribute("aria-label", `Theme: ${NAMES[theme]}. Change it`);
    button.title = `Theme: ${NAMES[theme]}`;
  };
  button.addEventListener("click", () => {
    apply(ROUND[(ROUND.indexOf(current()) + 1) % ROUND.length]);
    show();
  });
  show();
}
