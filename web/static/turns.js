/**
 * What a turn is to the page, what each event makes of it, and which of a conversation's branches is shown.
 *
 * Plain functions over plain objects: no DOM, no network, no clock.
 * @module
 */

/** @typedef {import("./api.js").TurnInfo} TurnInfo */
/** @typedef {import("./events.js").TurnEvent} TurnEvent */

/**
 * @typedef {object} Turn
 * @property {string} key what the page knows it by from the moment of sending; its idempotency key
 * @property {string} id the server's id; "" until the question is accepted
 * @property {string | null} parent id of the turn that this one follows, "" for none, null where it is not known
 * @property {"ask" | "regenerate" | "edit"} kind how it came about in this tab
 * @property {string} of the turn that it is another version of (regenerate, edit), or ""
 * @property {string} input
 * @property {"sending" | "unsent" | "queued" | "running" | "completed" | "stopped" | "failed" | "handed_over"} status
 * @property {string} answer
 * @property {string} model
 * @property {number} seen number of the last event taken, -1 for none
 * @property {number} since Unix ms when it was asked
 * @property {Record<string, number>} usage
 * @property {Record<string, number>} timings
 * @property {import("./citations.js").Citation[]} citations the passages that `[n]` in the answer stands for
 * @property {boolean} again whether the answer was given before, and kept
 * @property {import("./feedback.js").Feedback | null} feedback what was said of it, as far as the server shows it
 * @property {string} failure what the server said about a failed turn
 * @property {unknown} error why the page could not send or follow it
 * @property {boolean} lost the connection to its events is down
 * @property {boolean} stopping a stop was asked for
 */

/**
 * @param {Partial<Turn> & {key: string, input: string}} given
 * @returns {Turn}
 */
export function newTurn(given) {
  return {
    id: "",
    parent: null,
    kind: "ask",
    of: "",
    status: "sending",
    answer: "",
    model: "",
    seen: -1,
    since: 0,
    usage: {},
    timings: {},
    citations: [],
    again: false,
    feedback: null,
    failure: "",
    error: null,
    lost: false,
    stopping: false,
    ...given,
  };
}

const STATUSES = ["queued", "running", "completed", "stopped", "failed", "handed_over"];

/**
 * @param {TurnInfo} info a turn as `GET /v1/conversations/{id}` has it
 * @returns {Turn}
 */
export function fromInfo(info) {
  const status = /** @type {Turn["status"]} */ (STATUSES.includes(info.status) ? info.status : "completed");
  const ended = status !== "queued" && status !== "running";
  return newTurn({
    key: info.turn_id,
    id: info.turn_id,
    // What is still in work may not have its place yet; what has ended and follows nothing is a first turn.
    parent: info.parent || (ended && info.parent !== undefined ? "" : null),
    of: info.beside ?? "",
    input: info.input,
    status,
    // The events of a turn in work are read from the first, so its text so far would be doubled.
    answer: ended ? (info.answer ?? "") : "",
    model: info.model ?? "",
    since: Date.parse(info.created_at ?? "") || 0,
    usage: info.usage ?? {},
    timings: info.timings ?? {},
    citations: ended ? (info.citations ?? []) : [],
    again: isAgain(info.cache),
    feedback: info.feedback ?? null,
    failure: info.error?.message ?? "",
  });
}

/** @param {string | null | undefined} cache */
const isAgain = (cache) => cache === "hit" || cache === "exact";

/** @param {Turn} turn Whether its answer is still to come or coming. */
export const inWork = (turn) => turn.status === "sending" || turn.status === "queued" || turn.status === "running";

/**
 * Apply the next event to a turn. Unknown events count, so that a newer server can be read, and say nothing.
 * @param {Turn} turn
 * @param {TurnEvent} event
 */
export function apply(turn, { id, name, data }) {
  turn.seen = id;
  turn.lost = false;
  switch (name) {
    case "turn.started":
      turn.status = "running";
      turn.model = data.model ?? turn.model;
      break;
    case "turn.citations":
      turn.citations = data;
      break;
    case "token":
      turn.answer += data.text ?? "";
      break;
    case "turn.completed":
      turn.status = "completed";
      turn.usage = data.usage ?? {};
      turn.timings = data.timings ?? {};
      turn.again = isAgain(data.cache);
      break;
    case "turn.stopped":
      turn.status = "stopped";
      break;
    case "turn.failed":
      turn.status = "failed";
      turn.failure = data.error?.message ?? "";
      break;
    case "turn.handed_over":
      turn.status = "handed_over";
      turn.failure = data.reason ?? "";
      break;
  }
}

/**
 * The branch to show: from each set of turns with one parent the chosen one, else the one that leads to the newest turn.
 * @param {Turn[]} turns in the order they were asked
 * @param {Map<string, string>} chosen parent id -> key of the turn to show below it
 * @returns {{turn: Turn, beside: Turn[]}[]} `beside`: all turns with this one's parent, itself among them
 */
export function branch(turns, chosen) {
  const children = byParent(turns);
  const newest = new Map();
  /** @param {Turn} turn @returns {number} */
  const latest = (turn) => {
    if (!newest.has(turn.key)) {
      newest.set(turn.key, turns.indexOf(turn)); // set first: a circle of parents must not hang the page
      const below = (turn.id && children.get(turn.id)) || [];
      newest.set(turn.key, Math.max(turns.indexOf(turn), ...below.map(latest)));
    }
    return newest.get(turn.key);
  };
  const ids = new Set(turns.map(({ id }) => id).filter(Boolean));
  // Turns whose parents are not here have lost their beginning: older ones are loaded when they are wanted.
  const roots = [...children].filter(([parent]) => !ids.has(parent));
  const newestBelow = (/** @type {Turn[]} */ beside) => Math.max(...beside.map(latest));
  roots.sort(([, a], [, b]) => newestBelow(b) - newestBelow(a));
  const path = [];
  const walked = new Set();
  for (let parent = roots[0]?.[0] ?? ""; children.has(parent) && !walked.has(parent); ) {
    walked.add(parent);
    const beside = /** @type {Turn[]} */ (children.get(parent));
    const wanted = beside.find((turn) => turn.key === chosen.get(parent));
    const turn = wanted ?? beside.reduce((best, next) => (latest(next) > latest(best) ? next : best));
    path.push({ turn, beside });
    if (!turn.id) break;
    parent = turn.id;
  }
  return path;
}

/**
 * @param {Turn} turn
 * @param {Turn[]} turns
 * @returns {string} the parent's id, "" for a first turn
 */
export function parentOf(turn, turns) {
  if (turn.parent === null) {
    const at = turns.indexOf(turn);
    const beside = turn.of && turns.slice(0, at).find((other) => other.id === turn.of);
    return beside ? parentOf(beside, turns) : (turns[at - 1]?.id ?? "");
  }
  return turn.parent;
}

/**
 * @param {Turn[]} turns
 * @returns {Map<string, Turn[]>}
 */
function byParent(turns) {
  /** @type {Map<string, Turn[]>} */
  const children = new Map();
  for (const turn of turns) {
    const parent = parentOf(turn, turns);
    const beside = children.get(parent);
    if (beside) beside.push(turn);
    else children.set(parent, [turn]);
  }
  return children;
}
