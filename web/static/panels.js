/**
 * What all panels need.
 * @module
 */

/**
 * Put the focus back into an open panel whose focused part is gone: Escape is heard only from within.
 * @param {HTMLDialogElement} panel
 * @param {HTMLElement} close
 */
export function keepFocus(panel, close) {
  if (panel.open && !panel.contains(document.activeElement)) close.focus();
}
