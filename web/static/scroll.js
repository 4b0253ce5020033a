/**
 * Keeps the end of a growing text in view until the reader scrolls up, and offers the way back.
 * @module
 */

/** Nearer to the end than this, a reader who scrolls down wants to follow again. */
const NEAR_PX = 40;

export class FollowScroll {
  #following = true;
  #top = 0;

  /**
   * @param {HTMLElement} scroller
   * @param {HTMLElement} content what grows inside it
   * @param {HTMLElement} button shown while the end is out of view
   */
  constructor(scroller, content, button) {
    this.scroller = scroller;
    this.button = button;
    scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    // A wheel turned up must win at once; the scroll event comes after the next token has already pulled down.
    scroller.addEventListener("wheel", (event) => event.deltaY < 0 && this.#leave(), { passive: true });
    const sizes = new ResizeObserver(() => this.#grown());
    sizes.observe(content);
    sizes.observe(scroller);
    button.addEventListener("click", () => this.toEnd());
  }

  /** Go to the end and follow it. */
  toEnd() {
    this.#following = true;
    this.#pull();
  }

  get #distance() {
    return this.scroller.scrollHeight - this.scroller.clientHeight - this.scroller.scrollTop;
  }

  #pull() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.#top = this.scroller.scrollTop;
    this.#show();
  }

  #leave() {
    if (this.scroller.scrollHeight <= this.scroller.clientHeight) return;
    this.#following = false;
    this.#show();
  }

  #grown() {
    if (this.#following) this.#pull();
    else this.#show();
  }

  #scrolled() {
    const top = this.scroller.scrollTop;
    if (top < this.#top && this.#distance > 2) this.#following = false;
    else if (top > this.#top && this.#distance < NEAR_PX) this.#following = true;
    else if (this.#distance <= 2) this.#following = true;
    this.#top = top;
    this.#show();
  }

  #show() {
    this.button.hidden = this.#following || this.#distance < NEAR_PX;
  }
}
