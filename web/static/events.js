/**
 * Follows the events of one turn to its end, over as many connections as that takes, without a lost or doubled event.
 *
 * The browser's own EventSource cannot send an Authorization header, does not tell why a connection failed, and
 * forgets its place when the page asks it to wait; so this reads the stream with fetch. An event's id is its number
 * within the turn, from 0 and without gaps. That makes the rule simple: take exactly the next number, drop what was
 * seen, and come back from the last one taken when a number is missing. Parsing follows the HTML standard (9.2.6).
 * @module
 */

import { ApiError, Lost, isAbort } from "./errors.js";

/** @typedef {{id: string, name: string, data: string}} RawEvent An event as it stands in the stream. */
/** @typedef {{id: number, name: string, data: Record<string, any>}} TurnEvent */
/** @typedef {"open" | "lost"} Connection */

/** After these the server closes the stream, and nothing more will come. */
export const FINAL = new Set(["turn.completed", "turn.stopped", "turn.failed", "turn.handed_over"]);

/** The server sends a comment after 15 s without an event; three missing ones mean that nobody is there any more. */
const SILENCE_MS = 45_000;
const FIRST_DELAY_MS = 300;
const LONGEST_DELAY_MS = 10_000;

/** Turns the bytes of an event stream, cut anywhere, into events. */
export class EventParser {
  #decoder = new TextDecoder();
  #rest = "";
  #name = "";
  #id = "";
  /** @type {string[]} */
  #data = [];

  /** Milliseconds of the last `retry:` field. @type {number | null} */
  retry = null;

  /**
   * @param {Uint8Array} bytes
   * @returns {RawEvent[]} the events that these bytes complete
   */
  feed(bytes) {
    const lines = (this.#rest + this.#decoder.decode(bytes, { stream: true })).split(/\r\n|\n|\r(?!$)/);
    // The last line is unfinished. A CR at the very end stays with it: its LF may be in the next bytes.
    this.#rest = /** @type {string} */ (lines.pop());
    return lines.flatMap((line) => this.#line(line) ?? []);
  }

  /** @param {string} line */
  #line(line) {
    if (line === "") return this.#dispatch();
    if (line.startsWith(":")) return null;
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "event") this.#name = value;
    else if (field === "data") this.#data.push(value);
    else if (field === "id" && !value.includes("\0")) this.#id = value;
    else if (field === "retry" && /^\d+$/.test(value)) this.retry = Number(value);
    return null;
  }

  /** @returns {RawEvent | null} */
  #dispatch() {
    const event = { id: this.#id, name: this.#name || "message", data: this.#data.join("\n") };
    const empty = this.#data.length === 0;
    this.#name = "";
    this.#data = [];
    return empty ? null : event;
  }
}

/**
 * Milliseconds to wait before the next connection: doubling from the server's wish or ours, with jitter so that the
 * readers of a worker that went down do not all come back in the same moment.
 * @param {{failures: number, retry: number | null, retryAfter: number | null, random: number}} why
 */
export function delay({ failures, retry, retryAfter, random }) {
  const backOff = Math.min(LONGEST_DELAY_MS, (retry ?? FIRST_DELAY_MS) * 2 ** failures);
  return Math.max((retryAfter ?? 0) * 1000, backOff * (0.5 + random / 2));
}

/** Resolves after `ms`, or at once when the browser is back on line or the tab is looked at again. */
export const pause = (/** @type {number} */ ms, /** @type {AbortSignal} */ signal) =>
  /** @type {Promise<void>} */ (
    new Promise((resolve, reject) => {
      const over = new AbortController();
      const finish = () => {
        over.abort();
        clearTimeout(timer);
        resolve();
      };
      const timer = setTimeout(finish, ms);
      addEventListener("online", finish, { signal: over.signal });
      document.addEventListener("visibilitychange", () => document.hidden || finish(), { signal: over.signal });
      signal.addEventListener("abort", () => (over.abort(), clearTimeout(timer), reject(signal.reason)), {
        signal: over.signal,
      });
    })
  );

/**
 * Follow a turn until its end.
 *
 * @param {object} options
 * @param {(after: number, signal: AbortSignal) => Promise<Response>} options.open opens the stream after this event
 *   (-1: from the first); throws ApiError
 * @param {(event: TurnEvent) => void} options.onEvent gets each event once, in order
 * @param {(connection: Connection) => void} [options.onConnection]
 * @param {AbortSignal} options.signal
 * @param {number} [options.after] the last event that the caller has
 * @param {(ms: number, signal: AbortSignal) => Promise<void>} [options.wait]
 * @param {() => number} [options.random]
 * @param {number} [options.silence] milliseconds without a byte after which a connection counts as dead
 * @returns {Promise<void>} when the final event was given out
 * @throws {ApiError} when the server refuses for good; {DOMException} when `signal` aborts
 */
export async function follow({
  open,
  onEvent,
  onConnection = () => {},
  signal,
  after = -1,
  wait = pause,
  random = Math.random,
  silence = SILENCE_MS,
}) {
  let last = after;
  let failures = 0;
  /** @type {number | null} */
  let retry = null;
  for (;;) {
    /** @type {number | null} */
    let retryAfter = null;
    const before = last;
    try {
      const events = connect({ open, after: last, signal, silence, onOpen: () => onConnection("open") });
      for await (const { event, hint } of events) {
        retry = hint ?? retry;
        if (!event || event.id <= last) continue;
        if (event.id > last + 1) throw new Lost(`event ${last + 1} is missing before ${event.id}`);
        last = event.id;
        onEvent(event);
        if (FINAL.has(event.name)) return;
      }
    } catch (error) {
      if (signal.aborted) throw signal.reason;
      if (error instanceof ApiError && error.passing) retryAfter = error.retryAfter;
      else if (!(error instanceof Lost)) throw error;
    }
    signal.throwIfAborted();
    onConnection("lost");
    failures = last > before ? 0 : failures + 1;
    await wait(delay({ failures, retry, retryAfter, random: random() }), signal);
  }
}

/**
 * One connection: what it brings until it breaks (Lost), is refused (ApiError) or ends.
 * @param {{open: (after: number, signal: AbortSignal) => Promise<Response>, after: number, signal: AbortSignal,
 *   silence: number, onOpen: () => void}} options
 * @returns {AsyncGenerator<{event: TurnEvent | null, hint: number | null}>}
 */
async function* connect({ open, after, signal, silence, onOpen }) {
  const dead = new AbortController();
  const leave = () => dead.abort(signal.reason);
  signal.addEventListener("abort", leave);
  let watch = setTimeout(() => dead.abort(), silence);
  try {
    const response = await open(after, dead.signal).catch(lost);
    if (!response.body) throw new Lost("a stream without a body");
    onOpen();
    const reader = response.body.getReader();
    const parser = new EventParser();
    for (;;) {
      const { done, value } = await reader.read().catch(lost);
      if (done) return;
      clearTimeout(watch);
      watch = setTimeout(() => dead.abort(), silence);
      const events = parser.feed(value);
      for (const raw of events) yield { event: numbered(raw), hint: parser.retry };
      if (!events.length) yield { event: null, hint: parser.retry };
    }
  } finally {
    clearTimeout(watch);
    signal.removeEventListener("abort", leave);
    dead.abort();
  }
}

/**
 * Sort what fetch and its reader throw: a refusal stays, anything else is a broken connection.
 * @param {unknown} error
 * @returns {never}
 */
function lost(error) {
  if (error instanceof ApiError) throw error;
  throw new Lost(isAbort(error) ? "nothing came for too long" : String(error));
}

/**
 * @param {RawEvent} raw
 * @returns {TurnEvent | null} null for what has no number: it is no part of the turn
 */
function numbered({ id, name, data }) {
  if (!/^\d+$/.test(id)) return null;
  try {
    return { id: Number(id), name, data: JSON.parse(data) };
  } catch {
    throw new Lost(`event ${id} is not JSON`);
  }
}
