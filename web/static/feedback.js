/**
 * What a reader says of an answer: a thumb under it, and after that, if they like, a few words.
 *
 * The server shows it when its archive has it, a while later; until then this tab remembers what it has given.
 * @module
 */

import { explain } from "./errors.js";
import { iconButton } from "./icons.js";
import { announce } from "./notices.js";
import { patiently } from "./patience.js";

/** @typedef {{turn_id: string, rating: number, comment?: string | null, given_at: string}} Feedback */
/** @typedef {(said: {rating: number, comment?: string}) => Promise<Feedback>} Give says it to the server */

const KEY = "headrace.feedback";
const MOST = 200;
const LONGEST = 2000;
const ASKED = { "1": "What was good? You may leave it at the thumb.", "-1": "What was wrong? You may leave it at the thumb." };

/** The thumbs of one answer (`buttons`), and the place below them where words are typed (`box`). */
export class Thumbs {
  /** @type {Feedback | null} */
  #given;
  /** What is on the way to the server, 0 for nothing. */
  #giving = 0;

  /**
   * @param {HTMLElement} box
   * @param {string} turn
   * @param {Feedback | null} known what the server says was given
   * @param {Give} give
   */
  constructor(box, turn, known, give) {
    this.box = box;
    this.give = give;
    this.#given = latest(known, load().find(({ turn_id: id }) => id === turn) ?? null);
    this.up = iconButton("thumb-up", "Good answer", () => this.#press(1));
    this.down = iconButton("thumb-down", "Bad answer", () => this.#press(-1));
    this.buttons = document.createElement("span");
    this.buttons.className = "thumbs";
    this.buttons.setAttribute("role", "group");
    this.buttons.setAttribute("aria-label", "Feedback");
    this.buttons.append(this.up, this.down);
    this.#show();
  }

  #show() {
    const rating = this.#giving || this.#given?.rating || 0;
    this.up.setAttribute("aria-pressed", String(rating > 0));
    this.down.setAttribute("aria-pressed", String(rating < 0));
  }

  /** @param {1 | -1} rating */
  async #press(rating) {
    if (this.#giving) return;
    if (this.#given?.rating !== rating && !(await this.#send({ rating }))) return;
    this.#ask(rating);
    announce("Thank you. You can say more in the box below the answer.");
  }

  /**
   * Say it to the server, and say here whether that worked.
   * @param {{rating: number, comment?: string}} said
   */
  async #send(said) {
    this.#giving = said.rating;
    this.#show();
    try {
      this.#given = await patiently(() => this.give(said));
      remember(this.#given);
      return true;
    } catch (error) {
      const { title, advice } = explain(error);
      this.#tell(`Not saved. ${title} ${advice}`);
      return false;
    } finally {
      this.#giving = 0;
      this.#show();
    }
  }

  /**
   * Put a line into the box, in the place of an earlier one.
   * @param {string} text
   */
  #tell(text) {
    const line = this.box.querySelector(".hint") ?? document.createElement("p");
    line.className = "hint";
    line.setAttribute("role", "status");
    this.box.append(line); // empty first: what is said in a place that is there is heard
    line.textContent = text;
    this.box.hidden = false;
  }

  /**
   * Offer room for a few words.
   * @param {1 | -1} rating
   */
  #ask(rating) {
    const form = document.createElement("form");
    const field = document.createElement("textarea");
    field.rows = 2;
    field.maxLength = LONGEST;
    field.value = this.#given?.comment ?? "";
    field.placeholder = ASKED[rating];
    field.setAttribute("aria-label", ASKED[rating]);
    const close = document.createElement("button");
    close.type = "button";
    close.className = "plain";
    close.textContent = "Close";
    const send = document.createElement("button");
    send.className = "primary";
    send.textContent = "Send";
    const row = document.createElement("div");
    row.className = "row";
    row.append(close, send);
    form.append(field, row);
    close.addEventListener("click", () => this.#close(rating));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const comment = field.value.trim();
      if (!comment) return this.#close(rating);
      if (this.#giving || !(await this.#send({ rating, comment }))) return;
      this.#close(rating);
      this.#tell("Thank you.");
    });
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        this.#close(rating);
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    this.box.replaceChildren(form);
    this.box.hidden = false;
  }

  /** @param {1 | -1} rating */
  #close(rating) {
    const focused = this.box.contains(document.activeElement);
    this.box.replaceChildren();
    this.box.hidden = true;
    if (focused) (rating > 0 ? this.up : this.down).focus();
  }
}

/**
 * @param {Feedback | null} one
 * @param {Feedback | null} other
 */
function latest(one, other) {
  if (!one || !other) return one ?? other;
  return Date.parse(other.given_at) >= Date.parse(one.given_at) ? other : one;
}

/** @returns {Feedback[]} */
function load() {
  try {
    return JSON.parse(sessionStorage.getItem(KEY) ?? "[]");
  } catch {
    return [];
  }
}

/** @param {Feedback} given */
function remember(given) {
  const others = load().filter(({ turn_id: id }) => id !== given.turn_id);
  try {
    sessionStorage.setItem(KEY, JSON.stringify([...others, given].slice(-MOST)));
  } catch {
    // Storage is full or switched off: a reload shows what the server knows.
  }
}
