/**
 * Remembers the questions that this tab has just sent, so that a reload at any moment loses none and asks none twice.
 *
 * The server's list of turns may lag behind an accepted question for a moment, and a reload can fall between sending
 * and the answer to it. So a question is written down with its idempotency key before it goes out, gets its turn's id
 * once accepted, and is forgotten when the server lists the turn.
 * @module
 */

/**
 * @typedef {object} Sent
 * @property {string} key
 * @property {string} conversation
 * @property {string} input
 * @property {string | null} parent
 * @property {"ask" | "regenerate" | "edit"} kind
 * @property {string} of for regenerate and edit: the turn that it stands beside
 * @property {string} id the turn's id, "" until accepted
 * @property {number} at Unix ms
 */

const KEY = "headrace.sent";
/** A server that does not list a turn after this long never will. */
const KEPT_MS = 60 * 60 * 1000;
const MOST = 50;

/** @returns {Sent[]} */
function load() {
  try {
    const all = JSON.parse(sessionStorage.getItem(KEY) ?? "[]");
    return all.filter((/** @type {Sent} */ sent) => Date.now() - sent.at < KEPT_MS);
  } catch {
    return [];
  }
}

/** @param {Sent[]} all */
function save(all) {
  try {
    sessionStorage.setItem(KEY, JSON.stringify(all.slice(-MOST)));
  } catch {
    // Storage is full or switched off: a reload shows what the server lists.
  }
}

/** @param {string} conversation */
export const sentIn = (conversation) => load().filter((sent) => sent.conversation === conversation);

/** @param {Sent} sent */
export const remember = (sent) => save([...load().filter(({ key }) => key !== sent.key), sent]);

/** @param {string} key */
export const forget = (key) => save(load().filter((sent) => sent.key !== key));
