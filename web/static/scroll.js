/**
 * Keeps the end of a growing text in view until the reader scrolls up, and offers the way back.
 * @module
 */

/** Nearer to the end than this, a reader who scrolls down wants to follow again. */
const NEAR_PX = 40;
/** Nearer to the beginning than this, a reader who scrolls up will soon want what comes before it. */
const AHEAD_PX = 400;

export class FollowScroll {
  #following = true;
  #top = 0;
  /** What stays where it is while content comes in above it. @type {{element: HTMLElement, top: number} | null} */
  #held = null;

  /**
   * @param {HTMLElement} scroller
   * @param {HTMLElement} content what grows inside it
   * @param {HTMLElement} button shown while the end is out of view
   * @param {() => void} nearTop called while a reader who scrolls up comes near the beginning
   */
  constructor(scroller, content, button, nearTop) {
    this.scroller = scroller;
    this.button = button;
    this.nearTop = nearTop;
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

  /**
   * Change something above an element, and keep that where it is, also while what came in is still growing.
   * @param {HTMLElement | null} element
   * @param {() => void} change
   */
  hold(element, change) {
    this.#held = element && { element, top: element.getBoundingClientRect().top };
    change();
    this.#grown();
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
    else this.#restore();
    this.#show();
  }

  #restore() {
    if (!this.#held?.element.isConnected) return;
    this.scroller.scrollTop += this.#held.element.getBoundingClientRect().top - this.#held.top;
    this.#top = this.scroller.scrollTop;
  }

  #scrolled() {
    const top = this.scroller.scrollTop;
    if (this.#held && Math.abs(this.#held.element.getBoundingClientRect().top - this.#held.top) > 2) this.#held = null;
    const up = top < this.#top;
    if (top < this.#top && this.#distance > 2) this.#following = false;
    else if (top > this.#top && this.#distance < NEAR_PX) this.#following = true;
    else if (this.#distance <= 2) this.#following = true;
    this.#top = top;
    this.#show();
    if (up && top < AHEAD_PX) this.nearTop();
  }

  #show() {
    this.button.hidden = this.#following || this.#distance < NEAR_PX;
  }
}
