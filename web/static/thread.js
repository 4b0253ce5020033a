/**
 * The conversation on show: its turns in order, or a welcome, a wait, or why it cannot be shown.
 * @module
 */

import { explain } from "./errors.js";
import { TurnView } from "./turn_view.js";

/** @typedef {import("./conversation.js").Conversation} Conversation */
/** @typedef {import("./turns.js").Turn} Turn */

/** @param {string} id */
const byId = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

const OLDER_PROBLEMS = {
  unavailable: "Older questions and answers cannot be shown right now.",
  failed: "Older questions and answers could not be loaded.",
};

/** A conversation that is there sooner than this needs no word about it. */
const QUIET_MS = 400;

export class Thread {
  /** @type {Map<string, TurnView>} */
  #views = new Map();
  #loading = 0;

  /**
   * @param {import("./turn_view.js").Actions} actions
   * @param {{reload: () => void, startNew: () => void, loadOlder: () => void}} ways out of a conversation that cannot be
   *   shown, and back to its beginning
   */
  constructor(actions, { reload, startNew, loadOlder }) {
    this.actions = actions;
    this.list = byId("turns");
    this.template = /** @type {HTMLTemplateElement} */ (byId("turn-template"));
    byId("thread-again").addEventListener("click", reload);
    byId("thread-new").addEventListener("click", startNew);
    for (const id of ["older-more", "older-again"]) byId(id).addEventListener("click", loadOlder);
  }

  /** @param {Conversation} conversation */
  show(conversation) {
    const path = conversation.path;
    byId("welcome").hidden = conversation.state !== "new" && !(conversation.state === "ready" && !path.length);
    this.#showLoading(conversation.state === "loading" && !path.length);
    this.#showProblem(conversation);
    this.#showOlder(conversation);
    this.#arrange(conversation, path);
  }

  /** @param {Turn} turn */
  update(turn) {
    this.#views.get(turn.key)?.update();
  }

  /** The first turn on show. @returns {HTMLElement | null} */
  get first() {
    return [...this.#views.values()][0]?.element ?? null;
  }

  /** Open the last question for editing, if it can be. */
  editLast() {
    return [...this.#views.values()].at(-1)?.startEdit() ?? false;
  }

  /**
   * @param {Conversation} conversation
   * @param {{turn: Turn, beside: Turn[]}[]} path
   */
  #arrange(conversation, path) {
    const idle = !conversation.working && conversation.onNewest;
    const keys = new Set(path.map(({ turn }) => turn.key));
    for (const [key, view] of this.#views) {
      if (keys.has(key) && conversation.turns.includes(view.turn)) continue;
      view.remove();
      this.#views.delete(key);
    }
    path.forEach(({ turn, beside }, index) => {
      const view = this.#views.get(turn.key) ?? new TurnView(this.template, turn, this.actions);
      this.#views.delete(turn.key);
      this.#views.set(turn.key, view); // in the order of the branch
      if (this.list.children[index] !== view.element) this.list.insertBefore(view.element, this.list.children[index]);
      view.place({ beside, editable: idle && index === path.length - 1 });
    });
  }

  /** @param {Conversation} conversation */
  #showOlder({ state, older }) {
    const focused = byId("older").contains(document.activeElement);
    const problem = OLDER_PROBLEMS[/** @type {keyof typeof OLDER_PROBLEMS} */ (older)] ?? "";
    const more = /** @type {HTMLButtonElement} */ (byId("older-more"));
    byId("older").hidden = state !== "ready" || older === "none";
    more.hidden = problem !== "";
    more.textContent = older === "loading" ? "Loading earlier questions…" : "Show earlier questions";
    more.setAttribute("aria-busy", String(older === "loading"));
    byId("older-problem").hidden = problem === "";
    const words = /** @type {HTMLElement} */ (byId("older-problem").querySelector("span"));
    if (words.textContent !== problem) words.textContent = problem;
    // Whoever pressed a button that is gone stays where it was.
    if (!focused || document.activeElement?.checkVisibility()) return;
    if (byId("older").hidden) byId("scroller").focus({ preventScroll: true });
    else byId(problem ? "older-again" : "older-more").focus({ preventScroll: true });
  }

  /** @param {boolean} loading */
  #showLoading(loading) {
    clearTimeout(this.#loading);
    byId("thread-loading").hidden = true;
    if (loading) this.#loading = setTimeout(() => (byId("thread-loading").hidden = false), QUIET_MS);
  }

  /** @param {Conversation} conversation */
  #showProblem({ state, error }) {
    byId("thread-problem").hidden = state !== "failed";
    if (state !== "failed") return;
    const { title, advice } = explain(error);
    byId("thread-problem-title").textContent = title;
    byId("thread-problem-advice").textContent = advice;
  }
}
