/**
 * What an answer names: `[1]` in its text becomes a button, and the passage that it stands for can be read.
 *
 * Titles and passages come from documents that anybody may have written, so they are only ever set as text.
 * @module
 */

/** @typedef {{n: number, document_id: string, title: string, url?: string | null, text: string}} Citation */

const MARK = /\[(\d{1,4}(?:\s?,\s?\d{1,4})*)\]/g;
/** Where a bracket is not a mark. */
const NOT_WITHIN = "code, pre, a, button";

/** @param {string} id */
const byId = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

/**
 * Turn the marks in a rendered answer into buttons. Numbers of no passage stay the text that they are.
 * @param {DocumentFragment} fragment
 * @param {Citation[]} citations
 * @param {(citation: Citation) => void} open
 */
export function linkMarks(fragment, citations, open) {
  if (!citations.length) return;
  const texts = document.createTreeWalker(fragment, NodeFilter.SHOW_TEXT);
  /** @type {Text[]} */
  const found = [];
  while (texts.nextNode()) {
    const text = /** @type {Text} */ (texts.currentNode);
    if (!text.parentElement?.closest(NOT_WITHIN)) found.push(text);
  }
  for (const text of found) linkIn(text, citations, open);
}

/**
 * @param {Text} text
 * @param {Citation[]} citations
 * @param {(citation: Citation) => void} open
 */
function linkIn(text, citations, open) {
  const parts = [];
  let end = 0;
  for (const mark of text.data.matchAll(MARK)) {
    const named = mark[1].split(",").map((number) => citations.find(({ n }) => n === Number(number)));
    if (named.some((citation) => !citation)) continue;
    parts.push(text.data.slice(end, mark.index));
    for (const citation of named) parts.push(markButton(/** @type {Citation} */ (citation), open));
    end = mark.index + mark[0].length;
  }
  if (end) text.replaceWith(...parts, text.data.slice(end));
}

/**
 * @param {Citation} citation
 * @param {(citation: Citation) => void} open
 */
function markButton(citation, open) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "mark";
  button.textContent = String(citation.n);
  button.title = citation.title;
  button.setAttribute("aria-label", `Source ${citation.n}: ${citation.title}`);
  button.addEventListener("click", () => open(citation));
  return button;
}

/**
 * @param {Citation[]} citations
 * @param {string} answer
 * @param {(citation: Citation) => void} open
 * @returns {HTMLElement[]} what stands below an answer: its sources, those that it names first
 */
export function sources(citations, answer, open) {
  const named = new Set([...answer.matchAll(MARK)].flatMap((mark) => mark[1].split(",").map(Number)));
  const label = document.createElement("span");
  label.textContent = citations.length === 1 ? "Source" : "Sources";
  const sorted = [...citations].sort((a, b) => Number(named.has(b.n)) - Number(named.has(a.n)) || a.n - b.n);
  const buttons = sorted.map((citation) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = named.has(citation.n) ? "source named" : "source";
    const number = document.createElement("b");
    number.textContent = String(citation.n);
    button.append(number, ` ${citation.title}`);
    button.addEventListener("click", () => open(citation));
    return button;
  });
  return [label, ...buttons];
}

/**
 * Show a passage. A turn of a conversation that was read again has only titles: the turn itself has the texts.
 * @param {Citation} citation
 * @param {() => Promise<Citation[]>} read
 */
export async function showPassage(citation, read) {
  const dialog = /** @type {HTMLDialogElement} */ (byId("passage"));
  byId("passage-title").textContent = citation.title;
  const text = byId("passage-text");
  text.textContent = citation.text || "Loading…";
  const link = /** @type {HTMLAnchorElement} */ (byId("passage-link"));
  link.hidden = !/^https?:\/\//i.test(citation.url ?? "");
  if (!link.hidden) link.href = citation.url ?? "";
  else link.removeAttribute("href");
  dialog.showModal();
  if (citation.text) return;
  try {
    citation.text = (await read()).find(({ n }) => n === citation.n)?.text ?? "";
    text.textContent = citation.text || "The passage is not kept any more.";
  } catch {
    text.textContent = "The passage cannot be shown right now. Close this and try again.";
  }
}
