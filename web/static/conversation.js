/**
 * One open conversation: its turns, the questions on their way, and the answers being followed.
 *
 * Holds the state and talks to the server; what it looks like is `thread.js`. A question goes through sending (until
 * the server has accepted it), queued, running and an end; each step survives a reload (`sent.js`) and a broken
 * connection (`events.js`).
 * @module
 */

import { ApiError } from "./errors.js";
import { follow } from "./events.js";
import { patiently } from "./patience.js";
import { forget, remember, sentIn } from "./sent.js";
import { apply, branch, fromInfo, inWork, newTurn, parentOf } from "./turns.js";

/** @typedef {import("./turns.js").Turn} Turn */
/** @typedef {import("./api.js").ConversationInfo} ConversationInfo */
/** @typedef {"none" | "more" | "loading" | "unavailable" | "failed"} Older what is known of the turns before the first */
/**
 * @typedef {object} Listeners
 * @property {() => void} changed turns came or went, or the state changed
 * @property {(count: number) => void} olderCame so many turns came before the first on show
 * @property {(turn: Turn) => void} turnChanged
 * @property {(turn: Turn) => void} turnEnded the answer came to its end while it was followed
 * @property {(info: ConversationInfo) => void} created the server has the conversation now
 * @property {(error: unknown) => void} problem something that the user asked for did not work
 */

/** Turns to read at once: a few screens. */
const PART = 30;

export class Conversation {
  title = "";
  /** @type {Turn[]} in the order they were asked */
  turns = [];
  /** @type {"new" | "loading" | "ready" | "failed"} */
  state = "new";
  /** Why it could not be loaded. @type {unknown} */
  error = null;
  /** @type {Older} */
  older = "none";
  /** @type {Map<string, string>} */
  #chosen = new Map();
  #life = new AbortController();
  #createKey = newKey();

  /**
   * @param {import("./api.js").Api} api
   * @param {string} id "" for one that the server does not have yet
   * @param {Listeners} listeners
   */
  constructor(api, id, listeners) {
    this.api = api;
    this.id = id;
    this.#listeners = listeners;
  }

  /** @type {Listeners} */
  #listeners;

  /** Stop following. What is being sent arrives all the same, and nothing is reported any more. */
  close() {
    this.#life.abort();
  }

  /** The branch on show, each turn with those beside it. */
  get path() {
    return branch(this.turns, this.#chosen);
  }

  /** The turn that is being sent, waits or is being answered. */
  get working() {
    return this.turns.find(inWork) ?? null;
  }

  /** Read the conversation, and follow what is in work. */
  async load() {
    const { signal } = this.#life;
    this.#set("loading");
    try {
      const info = await patiently(() => this.api.conversation(this.id, { limit: PART }, signal), signal);
      this.title = info.title ?? "";
      this.turns = info.turns.map(fromInfo);
      this.older = olderOf(info);
    } catch (error) {
      if (signal.aborted) return;
      // Just created, and not in the server's table yet: what was sent can be followed all the same.
      const missing = error instanceof ApiError && error.status === 404;
      if (!missing || !sentIn(this.id).length) return this.#set("failed", error);
    }
    const unsent = this.#addSent();
    this.#set("ready");
    for (const turn of this.turns) if (turn.id && inWork(turn)) this.#follow(turn);
    for (const turn of unsent) this.#deliver(turn);
  }

  /** Read turns from before the first, until there are some to show or no more. */
  async loadOlder() {
    if (this.older === "none" || this.older === "loading") return;
    this.#setOlder("loading");
    const shown = this.path.length;
    const { signal } = this.#life;
    try {
      let info;
      do {
        // The first that the server knows; what was sent from here and is on its way comes last.
        const before = this.turns.find(({ id }) => id)?.id;
        info = await patiently(() => this.api.conversation(this.id, { limit: PART, before }, signal), signal);
        const known = new Set(this.turns.map(({ id }) => id));
        this.turns = [...info.turns.filter(({ turn_id: id }) => !known.has(id)).map(fromInfo), ...this.turns];
        // A part can be all of another branch.
      } while (info.has_more && this.path.length <= shown);
      this.#setOlder(olderOf(info), this.path.length - shown);
    } catch {
      if (!signal.aborted) this.#setOlder("failed");
    }
  }

  /** @param {string} input */
  ask(input) {
    this.turns = this.turns.filter((turn) => {
      if (turn.status === "unsent") forget(turn.key);
      return turn.status !== "unsent";
    });
    // The server goes on from its newest branch, so that is where the question is shown.
    this.#chosen.clear();
    const parent = this.path.at(-1)?.turn.id ?? "";
    this.#send(newTurn({ key: newKey(), input, parent, since: Date.now() }));
  }

  /** Answer the same question again, beside the answer that is there. @param {Turn} turn */
  regenerate(turn) {
    this.#beside(turn, "regenerate", turn.input);
  }

  /**
   * @param {Turn} turn
   * @param {string} input
   */
  edit(turn, input) {
    this.#beside(turn, "edit", input);
  }

  /** Send a question again that did not get through. It keeps its key. @param {Turn} turn */
  resend(turn) {
    this.#deliver(turn);
  }

  /** Take back a question that did not get through. @param {Turn} turn */
  discard(turn) {
    forget(turn.key);
    this.turns = this.turns.filter((other) => other !== turn);
    this.#listeners.changed();
  }

  /** Follow a turn again after its events were refused. @param {Turn} turn */
  reconnect(turn) {
    turn.error = null;
    this.#follow(turn);
  }

  /** Show another of the turns beside each other. @param {Turn} turn */
  show(turn) {
    this.#chosen.set(parentOf(turn, this.turns), turn.key);
    this.#listeners.changed();
  }

  /** Whether the branch on show is the one that a new question continues. */
  get onNewest() {
    const newest = branch(this.turns, new Map());
    return this.path.at(-1)?.turn === newest.at(-1)?.turn;
  }

  /** Stop the answer in work; what there is of it stays. */
  async stop() {
    const turn = this.working;
    if (!turn || turn.stopping) return;
    turn.stopping = true;
    this.#tell(turn);
    if (turn.id) await this.#stop(turn);
  }

  /** @param {Turn} turn */
  async #stop(turn) {
    try {
      await patiently(() => this.api.stop(turn.id));
    } catch (error) {
      turn.stopping = false;
      this.#tell(turn);
      if (!this.#life.signal.aborted) this.#listeners.problem(error);
    }
  }

  /**
   * @param {Turn} turn
   * @param {"regenerate" | "edit"} kind
   * @param {string} input
   */
  #beside(turn, kind, input) {
    const parent = parentOf(turn, this.turns);
    this.#chosen.delete(parent);
    this.#send(newTurn({ key: newKey(), input, parent, kind, of: turn.id, since: Date.now() }));
  }

  /** @param {Turn} turn */
  #send(turn) {
    this.turns.push(turn);
    this.state = "ready";
    this.#deliver(turn);
  }

  /**
   * Send a question until the server has it, then follow its answer.
   * @param {Turn} turn
   */
  async #deliver(turn) {
    const { signal } = this.#life;
    turn.status = "sending";
    turn.error = null;
    this.#note(turn);
    this.#listeners.changed();
    try {
      turn.id = (await patiently(() => this.#post(turn))).turn_id;
    } catch (error) {
      turn.status = "unsent";
      turn.error = error;
      if (error instanceof ApiError && !error.passing && error.status !== 401) forget(turn.key);
      if (!signal.aborted) this.#listeners.changed();
      return;
    }
    this.#note(turn);
    if (signal.aborted) return;
    turn.status = "queued";
    // After a reload the list may have had the turn already, under its id instead of our key.
    this.turns = this.turns.filter((other) => other === turn || other.id !== turn.id);
    this.#listeners.changed();
    this.#follow(turn);
    if (turn.stopping) await this.#stop(turn);
  }

  /**
   * @param {Turn} turn
   * @returns {Promise<import("./api.js").Accepted>}
   */
  async #post(turn) {
    if (turn.kind === "regenerate") return this.api.regenerate(turn.of, turn.key);
    if (turn.kind === "edit") return this.api.edit(turn.of, turn.input, turn.key);
    if (!this.id) {
      const info = await this.api.create(this.#createKey);
      this.id = info.id;
      this.#note(turn);
      if (!this.#life.signal.aborted) this.#listeners.created(info);
    }
    return this.api.ask(this.id, turn.input, turn.key);
  }

  /** @param {Turn} turn */
  async #follow(turn) {
    const { signal } = this.#life;
    try {
      await follow({
        open: (after, attempt) => this.api.events(turn.id, after, attempt),
        after: turn.seen,
        signal,
        onEvent: (event) => {
          apply(turn, event);
          this.#tell(turn);
        },
        onConnection: (connection) => {
          turn.lost = connection === "lost";
          this.#tell(turn);
        },
      });
      this.#listeners.changed();
      this.#listeners.turnEnded(turn);
    } catch (error) {
      if (signal.aborted) return;
      turn.lost = false;
      turn.error = error;
      this.#tell(turn);
    }
  }

  /**
   * Add what this tab has sent and the server does not list yet.
   * @returns {Turn[]} those that may not have reached the server
   */
  #addSent() {
    const unsent = [];
    for (const { key, id, input, parent, kind, of, at } of sentIn(this.id)) {
      if (id && this.turns.some((turn) => turn.id === id)) {
        forget(key);
        continue;
      }
      const turn = newTurn({ key, id, input, parent, kind, of, since: at, status: id ? "queued" : "sending" });
      this.turns.push(turn);
      if (!id) unsent.push(turn);
    }
    return unsent;
  }

  /** @param {Turn} turn */
  #note({ key, id, input, parent, kind, of, since }) {
    remember({ key, id, input, parent, kind, of, at: since, conversation: this.id });
  }

  /** @param {Turn} turn */
  #tell(turn) {
    if (!this.#life.signal.aborted) this.#listeners.turnChanged(turn);
  }

  /**
   * @param {Older} older
   * @param {number} [came] how many more are to be shown
   */
  #setOlder(older, came = 0) {
    this.older = older;
    if (!this.#life.signal.aborted) this.#listeners.olderCame(came);
  }

  /**
   * @param {"loading" | "ready" | "failed"} state
   * @param {unknown} [error]
   */
  #set(state, error = null) {
    this.state = state;
    this.error = error;
    if (!this.#life.signal.aborted) this.#listeners.changed();
  }
}

/**
 * @param {import("./api.js").TurnPage} info
 * @returns {Older}
 */
function olderOf({ has_more: hasMore, older_unavailable: unavailable }) {
  if (hasMore) return "more";
  return unavailable ? "unavailable" : "none";
}

/** crypto.randomUUID is missing on plain http away from localhost; getRandomValues is not. */
function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
