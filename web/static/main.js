/**
 * Puts the page together: which conversation is open, and who hears of what.
 *
 * The address says what is on show (`#/c/<id>`, or nothing for a new conversation), so that a reload, the back button
 * and a second tab work without the server knowing of them.
 * @module
 */

import { Api } from "./api.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { Documents } from "./documents.js";
import { explain } from "./errors.js";
import { Memories } from "./memories.js";
import { announce, askForKey, notice } from "./notices.js";
import { FollowScroll } from "./scroll.js";
import { forget, sentIn } from "./sent.js";
import { Sidebar } from "./sidebar.js";
import { mountTheme } from "./theme.js";
import { Thread } from "./thread.js";

/** @param {string} id */
const byId = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

const ENDINGS = {
  completed: "The answer is complete.",
  stopped: "The answer was stopped.",
  failed: "The answer failed.",
  handed_over: "A person takes over.",
};

const api = new Api();
const thread = new Thread(
  {
    regenerate: (turn) => (conversation.regenerate(turn), scroll.toEnd()),
    edit: (turn, input) => (conversation.edit(turn, input), scroll.toEnd()),
    resend: (turn) => conversation.resend(turn),
    reconnect: (turn) => conversation.reconnect(turn),
    show: (turn) => conversation.show(turn),
    takeBack: (turn) => (conversation.discard(turn), composer.fill(turn.input)),
    rate: (turn, said) => api.rate(turn.id, said),
    citations: async (turn) => (await api.turn(turn.id)).citations ?? [],
  },
  { reload: () => open(conversation.id), startNew: () => go(""), loadOlder: () => conversation.loadOlder() },
);
const composer = new Composer({
  send: ask,
  stop: () => conversation.stop(),
  editLast: () => thread.editLast(),
});
const sidebar = new Sidebar(api, {
  open: go,
  startNew: () => (go(""), composer.focus()),
  deleted: (id) => id === conversation.id && go(""),
});
const scroll = new FollowScroll(byId("scroller"), byId("content"), byId("jump"), () => {
  if (conversation.older === "more") conversation.loadOlder();
});
let conversation = begin("");

/** @param {string} id */
function begin(id) {
  const opened = new Conversation(api, id, {
    changed: () => show(),
    olderCame(count) {
      scroll.hold(thread.first, show);
      if (count) announce(count === 1 ? "One earlier question is shown." : `${count} earlier questions are shown.`);
    },
    turnChanged: (turn) => (thread.update(turn), showComposer()),
    turnEnded(turn) {
      announce(ENDINGS[/** @type {keyof typeof ENDINGS} */ (turn.status)] ?? "");
      sidebar.refresh(); // the server may have found a title
    },
    created(info) {
      history.replaceState(null, "", hashOf(info.id));
      sidebar.created(info);
      sidebar.used(info.id, opened.turns[0]?.input ?? "");
      sidebar.mark(info.id);
      composer.moveDraft(info.id);
    },
    problem(error) {
      const { title, advice } = explain(error);
      notice(`${title} ${advice}`);
    },
  });
  return opened;
}

/** Show this conversation, "" for a new one. @param {string} id */
function open(id) {
  conversation.close();
  conversation = begin(id);
  sidebar.mark(id);
  composer.draftOf(id);
  scroll.toEnd();
  if (id) conversation.load();
  else show();
}

/** Go to a conversation, so that the back button comes back. @param {string} id */
function go(id) {
  if (hashOf(id) !== location.hash) history.pushState(null, "", id ? hashOf(id) : location.pathname);
  open(id);
}

/** @param {string} id */
const hashOf = (id) => (id ? `#/c/${encodeURIComponent(id)}` : "");

function fromAddress() {
  const found = /^#\/c\/(.+)$/.exec(location.hash);
  return found ? decodeURIComponent(found[1]) : "";
}

/** @param {string} text */
function ask(text) {
  if (conversation.state === "loading" || conversation.state === "failed") return composer.fill(text);
  conversation.ask(text);
  if (conversation.id) sidebar.used(conversation.id, text);
  announce("Question sent.");
  scroll.toEnd();
}

function show() {
  thread.show(conversation);
  const title = (conversation.id && (sidebar.titleOf(conversation.id) || conversation.title)) || "New conversation";
  byId("title").textContent = title;
  document.title = conversation.id ? `${title} · Headrace` : "Headrace";
  showComposer();
}

function showComposer() {
  const turn = conversation.working;
  composer.show({ working: turn !== null && !turn.error, stopping: turn?.stopping ?? false });
}

async function showWho() {
  try {
    const { user, tenant } = await api.me();
    byId("who").textContent = tenant && tenant !== user ? `${user} · ${tenant}` : user;
  } catch {
    byId("who").textContent = "";
  }
  byId("sign-out").hidden = !api.signedIn;
}

api.onUnauthorized = async () => {
  const given = await askForKey();
  if (!given) return false;
  api.signIn(given.key, given.keep);
  showWho();
  sidebar.refresh();
  return true;
};
byId("sign-out").addEventListener("click", () => {
  api.signOut();
  location.assign(location.pathname);
});
byId("examples").addEventListener("click", (event) => {
  const example = /** @type {HTMLElement} */ (event.target).closest("button");
  if (example) composer.fill(example.dataset.question ?? "");
});
addEventListener("popstate", () => open(fromAddress()));
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.defaultPrevented && !document.querySelector("dialog[open]")) conversation.stop();
});
document.addEventListener("visibilitychange", () => document.hidden || sidebar.refresh());
mountTheme(byId("theme"));
new Documents(api);
new Memories(api, go);
byId("passage-close").addEventListener("click", () => /** @type {HTMLDialogElement} */ (byId("passage")).close());

open(fromAddress());
for (const { key, input } of sentIn("")) {
  // The page was left before the conversation was even created: nothing was asked, and nothing is lost.
  forget(key);
  if (!conversation.id) composer.fill(input);
}
if (!matchMedia("(pointer: coarse)").matches) composer.focus();
showWho();
sidebar.refresh();
