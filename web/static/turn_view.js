/**
 * One turn in the page: the question, the answer as it grows, what is going on, and what can be done with it.
 * @module
 */

import { linkMarks, showPassage, sources } from "./citations.js";
import { copyButton } from "./copy.js";
import { ApiError, explain, sentence } from "./errors.js";
import { Thumbs } from "./feedback.js";
import { iconButton } from "./icons.js";
import { LiveMarkdown } from "./markdown.js";
import { inWork } from "./turns.js";

/** @typedef {import("./turns.js").Turn} Turn */
/**
 * @typedef {object} Actions what a turn's buttons do
 * @property {(turn: Turn) => void} regenerate
 * @property {(turn: Turn, input: string) => void} edit
 * @property {(turn: Turn) => void} resend
 * @property {(turn: Turn) => void} reconnect
 * @property {(turn: Turn) => void} takeBack put the question back into the composer
 * @property {(turn: Turn) => void} show
 * @property {(turn: Turn, said: {rating: number, comment?: string}) => Promise<import("./feedback.js").Feedback>} rate
 * @property {(turn: Turn) => Promise<import("./citations.js").Citation[]>} citations its passages, with their texts
 */
/** @typedef {{beside: Turn[], editable: boolean}} Place where the turn stands in the branch on show */

/** A wait shorter than this is no news. */
const QUIET_MS = 1000;
/** Silence in mid-answer. A worker that dies is replaced within these seconds, and a reader need not hear of it. */
const CONTINUING_AFTER_MS = 5000;
const RECONNECTING_AFTER_MS = 10_000;
const TICK_MS = 250;
/** Rendering may take this share of the time; a slow machine shows fewer, larger steps. */
const RENDER_SHARE = 1 / 4;

export class TurnView {
  #lostSince = 0;
  #seen = -1;
  #heardAt = Date.now();
  #shownAt = Date.now();
  #frame = 0;
  #ticker = 0;
  #rendered = "";
  #footer = "";
  #sources = "";
  #open = (/** @type {import("./citations.js").Citation} */ citation) => {
    showPassage(citation, () => this.actions.citations(this.turn));
  };
  #problem = "";
  /** @type {Thumbs | null} */
  #thumbs = null;
  /** @type {Place} */
  #place = { beside: [], editable: false };

  /**
   * @param {HTMLTemplateElement} template
   * @param {Turn} turn
   * @param {Actions} actions
   */
  constructor(template, turn, actions) {
    this.turn = turn;
    this.actions = actions;
    this.element = /** @type {HTMLElement} */ (
      /** @type {DocumentFragment} */ (template.content.cloneNode(true)).firstElementChild
    );
    this.#part("question-text").textContent = turn.input;
    this.answer = new LiveMarkdown(this.#part("prose"), (fragment) => linkMarks(fragment, this.turn.citations, this.#open));
    this.update();
  }

  /** @param {string} name @returns {HTMLElement} */
  #part(name) {
    return /** @type {HTMLElement} */ (this.element.querySelector(`.${name}`));
  }

  /** @param {Place} place */
  place(place) {
    this.#place = place;
    this.update();
  }

  /** Show the turn as it is now. */
  update() {
    const working = inWork(this.turn) && !this.turn.error;
    this.element.dataset.status = this.turn.status;
    if (!this.turn.lost) this.#lostSince = 0;
    else this.#lostSince ||= Date.now();
    if (this.turn.seen !== this.#seen) this.#heardAt = Date.now();
    this.#seen = this.turn.seen;
    this.#tick(working);
    this.#showStatus();
    this.#showProblem();
    this.#showSources(working);
    this.#showFooter(working);
    this.#render();
    this.#showBusy();
  }

  /** An answer is busy until all of it is on the screen. */
  #showBusy() {
    const working = inWork(this.turn) && !this.turn.error;
    this.#part("answer").setAttribute("aria-busy", String(working || this.#wanted !== this.#rendered));
  }

  /** What is to be on the screen, as far as Markdown makes it. */
  get #wanted() {
    return `${inWork(this.turn)}${this.turn.answer}`;
  }

  remove() {
    clearInterval(this.#ticker);
    cancelAnimationFrame(this.#frame);
    this.element.remove();
  }

  /** Render in the next frame, and not more often than the machine can bear. */
  #render() {
    if (this.#frame) return;
    this.#frame = requestAnimationFrame(() => {
      const began = performance.now();
      const growing = inWork(this.turn);
      if (this.#wanted !== this.#rendered) {
        this.#rendered = this.#wanted;
        this.answer.update(this.turn.answer, growing);
        this.#part("prose").classList.toggle("growing", growing);
      }
      this.#showBusy();
      const rest = (performance.now() - began) / RENDER_SHARE;
      setTimeout(() => {
        this.#frame = 0;
        if (this.#wanted !== this.#rendered) this.#render();
      }, rest);
    });
  }

  /** @param {boolean} working */
  #tick(working) {
    const limited = this.turn.error instanceof ApiError && this.turn.error.retryAfter;
    if ((working || limited) && !this.#ticker) {
      this.#ticker = setInterval(() => (this.#showStatus(), this.#showProblem()), TICK_MS);
    } else if (!working && !limited) {
      clearInterval(this.#ticker);
      this.#ticker = 0;
    }
  }

  #showStatus() {
    const text = this.#status();
    const line = this.#part("status");
    line.hidden = !text;
    const words = /** @type {HTMLElement} */ (line.querySelector("span"));
    if (words.textContent !== text) words.textContent = text;
    line.dataset.waiting = String(inWork(this.turn));
  }

  #status() {
    const { status, lost, stopping, error, answer, failure } = this.turn;
    if (error) return "";
    const waited = Date.now() - this.#shownAt;
    if (stopping && inWork(this.turn)) return "Stopping…";
    if (lost && Date.now() - this.#lostSince >= RECONNECTING_AFTER_MS) return "Reconnecting…";
    const elapsed = `${Math.floor(waited / 1000)} s`;
    if (status === "sending") return waited < QUIET_MS ? " " : `Sending… ${elapsed}`;
    if (status === "queued") return waited < QUIET_MS ? " " : `Waiting… ${elapsed}`;
    if (status === "running" && answer) return Date.now() - this.#heardAt < CONTINUING_AFTER_MS ? "" : "Continuing…";
    if (status === "running") return waited < QUIET_MS ? " " : `Thinking… ${elapsed}`;
    if (status === "stopped") return answer ? "Stopped. The answer is kept as far as it came." : "Stopped before the first word.";
    if (status === "handed_over") return failure ? `A person takes over: ${failure}.` : "A person takes over.";
    return "";
  }

  #showProblem() {
    const box = this.#part("problem");
    const { status, error, failure } = this.turn;
    const failed = status === "failed";
    box.hidden = !error && !failed;
    if (box.hidden) {
      this.#problem = "";
      return;
    }
    const seconds = this.#secondsLeft();
    const now = `${status}|${String(error)}|${failure}|${this.#place.editable}`;
    if (now !== this.#problem) {
      this.#problem = now;
      box.replaceChildren(...(error ? this.#unsent(error) : this.#failed()));
    }
    const again = /** @type {HTMLButtonElement | null} */ (box.querySelector("[data-again]"));
    if (!again) return;
    again.disabled = seconds > 0;
    again.textContent = seconds > 0 ? `Try again in ${seconds} s` : "Try again";
  }

  #secondsLeft() {
    const { error } = this.turn;
    if (!(error instanceof ApiError) || !error.retryAfter) return 0;
    /** @type {ApiError & {at?: number}} */ (error).at ??= Date.now();
    return Math.ceil(error.retryAfter - (Date.now() - /** @type {{at: number}} */ (/** @type {unknown} */ (error)).at) / 1000);
  }

  /** @param {unknown} error */
  #unsent(error) {
    const { title, advice } = explain(error);
    const unsent = this.turn.status === "unsent";
    const again = !(error instanceof ApiError) || error.passing || error.status === 401 || error.status === 409 || !unsent;
    const buttons = [];
    if (again) {
      const button = plainButton("Try again", () =>
        unsent ? this.actions.resend(this.turn) : this.actions.reconnect(this.turn),
      );
      button.dataset.again = "";
      buttons.push(button);
    }
    if (unsent && this.turn.kind !== "regenerate") {
      buttons.push(plainButton("Change the question", () => this.actions.takeBack(this.turn)));
    }
    return words(unsent ? `Not sent. ${title}` : title, advice, buttons);
  }

  #failed() {
    const { answer, failure } = this.turn;
    const title = answer ? "The answer broke off." : "There is no answer.";
    const advice = sentence(failure) || "The model could not finish it. Try again, or ask in another way.";
    const retry = this.#place.editable ? [plainButton("Try again", () => this.actions.regenerate(this.turn))] : [];
    return words(title, advice, retry);
  }

  /** @param {boolean} working */
  #showSources(working) {
    const { citations, answer, key } = this.turn;
    const line = this.#part("sources");
    line.hidden = working || !answer || citations.length === 0;
    const now = line.hidden ? "" : `${key} ${answer.length} ${citations.length}`;
    if (now === this.#sources) return;
    this.#sources = now;
    line.replaceChildren(...(line.hidden ? [] : sources(citations, answer, this.#open)));
  }

  /** @param {boolean} working */
  #showFooter(working) {
    const { status, answer } = this.turn;
    const { beside, editable } = this.#place;
    const now = JSON.stringify([working, status, answer !== "", editable, beside.map(({ key }) => key), this.#meta()]);
    if (now === this.#footer) return;
    this.#footer = now;
    const ended = !working && status !== "unsent";
    const footer = [];
    if (beside.length > 1) footer.push(this.#versions());
    if (ended && answer) footer.push(copyButton("Copy answer", () => this.turn.answer), this.#rating());
    if (ended && editable && status !== "failed") footer.push(iconButton("retry", "Answer again", () => this.actions.regenerate(this.turn)));
    const meta = document.createElement("span");
    meta.className = "meta";
    meta.textContent = this.#meta();
    if (ended && meta.textContent) footer.push(meta);
    this.#part("turn-footer").replaceChildren(...footer);
    this.#part("question-tools").replaceChildren(
      ...(ended && editable ? [iconButton("edit", "Edit question", () => this.#edit())] : []),
    );
  }

  #rating() {
    this.#thumbs ??= new Thumbs(this.#part("feedback"), this.turn.id, this.turn.feedback, (said) =>
      this.actions.rate(this.turn, said),
    );
    return this.#thumbs.buttons;
  }

  #meta() {
    const { model, timings, usage, again } = this.turn;
    return [
      model,
      again && "from the cache",
      timings.total_ms && `${(timings.total_ms / 1000).toFixed(1)} s`,
      usage.output_tokens && `${usage.output_tokens} tokens`,
    ]
      .filter(Boolean)
      .join(" · ");
  }

  #versions() {
    const { beside } = this.#place;
    const at = beside.indexOf(this.turn);
    const group = document.createElement("span");
    group.className = "versions";
    const back = iconButton("left", "Earlier version", () => this.actions.show(beside[at - 1]));
    const on = iconButton("right", "Later version", () => this.actions.show(beside[at + 1]));
    back.disabled = at === 0;
    on.disabled = at === beside.length - 1;
    const count = document.createElement("span");
    count.textContent = `${at + 1} / ${beside.length}`;
    group.append(back, count, on);
    return group;
  }

  /** Change the question in its place. */
  #edit() {
    const question = this.#part("question");
    if (question.querySelector("form")) return;
    const form = document.createElement("form");
    form.className = "edit";
    const field = document.createElement("textarea");
    field.value = this.turn.input;
    field.rows = Math.min(12, this.turn.input.split("\n").length + 1);
    field.setAttribute("aria-label", "Edit question");
    const send = document.createElement("button");
    send.className = "primary";
    send.textContent = "Ask again";
    const close = () => {
      form.remove();
      question.classList.remove("editing");
      /** @type {HTMLElement | null} */ (question.querySelector(".question-tools button"))?.focus();
    };
    const row = document.createElement("div");
    row.className = "row";
    row.append(plainButton("Cancel", close), send);
    form.append(field, row);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const input = field.value.trim();
      if (!input) return;
      close();
      this.actions.edit(this.turn, input);
    });
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        close();
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    question.classList.add("editing");
    question.append(form);
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  }

  /** Edit from outside (the composer's Up key). Says whether this turn can be edited. */
  startEdit() {
    const ready = this.#place.editable && !inWork(this.turn) && this.turn.status !== "unsent";
    if (ready) this.#edit();
    return ready;
  }
}

/**
 * @param {string} label
 * @param {() => void} onClick
 */
function plainButton(label, onClick) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "plain";
  button.textContent = label;
  button.addEventListener("click", onClick);
  return button;
}

/**
 * @param {string} title
 * @param {string} advice
 * @param {HTMLElement[]} buttons
 */
function words(title, advice, buttons) {
  const strong = document.createElement("strong");
  strong.textContent = title;
  const text = document.createElement("p");
  text.append(strong, ` ${advice}`);
  const row = document.createElement("div");
  row.className = "row";
  row.append(...buttons);
  return buttons.length ? [text, row] : [text];
}
