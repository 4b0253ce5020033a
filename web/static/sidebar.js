/**
 * The list of conversations: choose, rename, delete with a way back; a drawer where the screen is narrow.
 *
 * The server's list may lag behind what was just done here, so what this page created, renamed or deleted is laid over
 * it until the server says the same.
 * @module
 */

import { dayOf } from "./days.js";
import { ApiError, explain } from "./errors.js";
import { icon, iconButton } from "./icons.js";
import { announce, notice } from "./notices.js";
import { patiently } from "./patience.js";

/** @typedef {import("./api.js").ConversationInfo} ConversationInfo */

/** @param {string} id */
const byId = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

/** Conversations to read at once, and the most that the server gives. */
const PART = 30;
const MOST = 100;

export class Sidebar {
  /** @type {Map<string, ConversationInfo>} as the server lists them */
  #listed = new Map();
  /** @type {Map<string, ConversationInfo>} created here, not listed yet */
  #created = new Map();
  /** @type {Map<string, string>} */
  #titles = new Map();
  /** @type {Map<string, number>} Unix ms of a question sent here */
  #used = new Map();
  /** @type {Set<string>} */
  #deleted = new Set();
  /** @type {Map<string, () => void>} deletions that can still be undone: carries one out at once */
  #leaving = new Map();
  #current = "";
  /** What the part after those listed begins with; "" if there is none. */
  #next = "";
  #olderUnavailable = false;
  #loaded = false;
  #narrow = matchMedia("(max-width: 48rem)");

  /**
   * @param {import("./api.js").Api} api
   * @param {{open: (id: string) => void, startNew: () => void, deleted: (id: string) => void}} on
   */
  constructor(api, on) {
    this.api = api;
    this.on = on;
    this.panel = byId("sidebar");
    byId("new").addEventListener("click", () => (this.#close(), on.startNew()));
    byId("menu").addEventListener("click", () => this.#toggle(true));
    byId("menu-close").addEventListener("click", () => this.#close());
    byId("backdrop").addEventListener("click", () => this.#close());
    byId("list-more").addEventListener("click", () => this.#more());
    byId("list-again").addEventListener("click", () => this.refresh());
    byId("list-older-again").addEventListener("click", () => this.refresh());
    this.panel.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !this.#narrow.matches) return;
      event.stopPropagation();
      this.#close();
    });
    this.#narrow.addEventListener("change", () => this.#toggle(false));
    // Whoever deletes and leaves has not undone it.
    addEventListener("pagehide", () => [...this.#leaving.values()].forEach((carryOut) => carryOut()));
    this.#toggle(false);
  }

  /** Read the list again, as far as it goes here. */
  async refresh() {
    try {
      const limit = Math.min(Math.max(this.#listed.size, PART), MOST);
      const page = await patiently(() => this.api.conversations({ limit }));
      const beyond = this.#beyond(page);
      this.#listed = new Map();
      for (const info of [...page.data, ...beyond]) this.#take(info);
      if (!beyond.length) this.#next = page.next ?? "";
      this.#olderUnavailable = page.older_unavailable ?? false;
      this.#loaded = true;
      byId("list-problem").hidden = true;
    } catch (error) {
      this.#fail(error);
    }
    this.#render();
  }

  /** Read the part after what is here. */
  async #more() {
    const button = byId("list-more");
    if (button.getAttribute("aria-busy") === "true") return;
    button.setAttribute("aria-busy", "true");
    button.textContent = "Loading…";
    try {
      const page = await patiently(() => this.api.conversations({ limit: PART, after: this.#next }));
      for (const info of page.data) if (!this.#listed.has(info.id)) this.#take(info);
      // Where what comes next cannot be told now, this is the place to ask again.
      if (page.data.length || !page.older_unavailable) this.#next = page.next ?? "";
      this.#olderUnavailable = page.older_unavailable ?? false;
      byId("list-problem").hidden = true;
      announce(`${page.data.length} earlier conversations are shown.`);
    } catch (error) {
      this.#fail(error);
    }
    button.setAttribute("aria-busy", "false");
    button.textContent = "Show earlier ones";
    this.#render();
  }

  /** @param {unknown} error */
  #fail(error) {
    if (error instanceof ApiError && error.status === 401) return;
    byId("list-problem").hidden = false;
    byId("list-problem-text").textContent = `The list cannot be shown. ${explain(error).title}`;
  }

  /**
   * Those listed that stay although a page does not have them: it ends before them, or the server cannot read them now.
   * @param {import("./api.js").ConversationPage} page
   */
  #beyond({ data, has_more: hasMore, older_unavailable: unavailable }) {
    const last = data.at(-1);
    const ids = new Set(data.map(({ id }) => id));
    return [...this.#listed.values()].filter(
      (info) => !ids.has(info.id) && (unavailable || (hasMore && last && info.updated_at < last.updated_at)),
    );
  }

  /** @param {ConversationInfo} info */
  #take(info) {
    this.#listed.set(info.id, info);
    this.#created.delete(info.id);
    if (info.title && info.title === this.#titles.get(info.id)) this.#titles.delete(info.id);
  }

  /** @param {string} id "" for none */
  mark(id) {
    this.#current = id;
    this.#render();
  }

  /** @param {ConversationInfo} info */
  created(info) {
    this.#created.set(info.id, info);
    this.#render();
  }

  /**
   * A question was sent: its conversation goes to the top.
   * @param {string} id
   * @param {string} question
   */
  used(id, question) {
    this.#used.set(id, Date.now());
    if (!this.titleOf(id)) this.#titles.set(id, shortened(question));
    this.#render();
  }

  /** @param {string} id @returns {string} "" for one without */
  titleOf(id) {
    return this.#titles.get(id) ?? this.#listed.get(id)?.title ?? this.#created.get(id)?.title ?? "";
  }

  get #conversations() {
    const at = (/** @type {ConversationInfo} */ { id, updated_at }) => Math.max(this.#used.get(id) ?? 0, Date.parse(updated_at) || 0);
    return [...this.#created.values(), ...this.#listed.values()]
      .filter(({ id }) => !this.#deleted.has(id))
      .map((info) => ({ ...info, at: at(info) }))
      .sort((a, b) => b.at - a.at);
  }

  #render() {
    const list = byId("conversations");
    const focused = /** @type {HTMLElement | null} */ (document.activeElement?.closest("[data-id]"))?.dataset.id;
    if (list.querySelector("form")) return; // a rename is being typed
    const groups = byDay(this.#conversations);
    list.replaceChildren(...[...groups].map(([day, infos]) => this.#group(day, infos)));
    byId("list-empty").hidden = groups.size > 0 || !this.#loaded;
    byId("list-more").hidden = !this.#next;
    byId("list-older").hidden = !this.#olderUnavailable || !byId("list-problem").hidden;
    if (focused) /** @type {HTMLElement | null} */ (list.querySelector(`[data-id="${CSS.escape(focused)}"] .title`))?.focus();
  }

  /**
   * @param {string} day
   * @param {ConversationInfo[]} infos
   */
  #group(day, infos) {
    const section = document.createElement("section");
    const heading = document.createElement("h3");
    heading.textContent = day;
    const items = document.createElement("ul");
    items.append(...infos.map((info) => this.#item(info)));
    section.append(heading, items);
    return section;
  }

  /** @param {ConversationInfo} info */
  #item({ id }) {
    const item = document.createElement("li");
    item.dataset.id = id;
    const title = this.titleOf(id) || "New conversation";
    const link = document.createElement("a");
    link.className = "title";
    link.href = `#/c/${encodeURIComponent(id)}`;
    link.textContent = title;
    link.title = title;
    if (id === this.#current) link.setAttribute("aria-current", "page");
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      this.#close();
      this.on.open(id);
    });
    const tools = document.createElement("span");
    tools.className = "tools";
    tools.append(
      iconButton("edit", `Rename “${title}”`, () => this.#rename(item, id)),
      iconButton("delete", `Delete “${title}”`, () => this.#delete(id, title)),
    );
    item.append(link, tools);
    return item;
  }

  /**
   * @param {HTMLElement} item
   * @param {string} id
   */
  #rename(item, id) {
    const form = document.createElement("form");
    const field = document.createElement("input");
    field.value = this.titleOf(id);
    field.maxLength = 200;
    field.setAttribute("aria-label", "Title of the conversation");
    const save = document.createElement("button");
    save.className = "quiet";
    save.title = "Save";
    save.setAttribute("aria-label", "Save title");
    save.append(icon("check"));
    form.append(field, save);
    item.replaceChildren(form);
    field.select();
    let open = true;
    const done = () => {
      if (!open) return; // taking the field away takes the focus away, which ends here again
      open = false;
      form.remove();
      this.#render();
      /** @type {HTMLElement | null} */ (byId("conversations").querySelector(`[data-id="${CSS.escape(id)}"] .title`))?.focus();
    };
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      done();
    });
    form.addEventListener("focusout", (event) => form.contains(/** @type {Node} */ (event.relatedTarget)) || done());
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const title = field.value.trim();
      if (title && title !== this.titleOf(id)) this.#saveTitle(id, title);
      done();
    });
  }

  /**
   * @param {string} id
   * @param {string} title
   */
  async #saveTitle(id, title) {
    const before = this.#titles.get(id);
    this.#titles.set(id, title);
    try {
      await patiently(() => this.api.rename(id, title));
    } catch (error) {
      if (before === undefined) this.#titles.delete(id);
      else this.#titles.set(id, before);
      const { title: what, advice } = explain(error);
      notice(`Not renamed. ${what} ${advice}`);
      this.#render();
    }
  }

  /**
   * @param {string} id
   * @param {string} title
   */
  #delete(id, title) {
    this.#deleted.add(id);
    this.on.deleted(id);
    this.#render();
    const carryOut = notice(`Deleted “${shortened(title)}”`, {
      action: { label: "Undo", run: () => (this.#leaving.delete(id), this.#restore(id)) },
      onGone: () => (this.#leaving.delete(id), this.#erase(id)),
    });
    this.#leaving.set(id, carryOut);
  }

  /** @param {string} id */
  #restore(id) {
    this.#deleted.delete(id);
    this.#render();
  }

  /** @param {string} id */
  async #erase(id) {
    try {
      await patiently(() => this.api.erase(id));
    } catch (error) {
      if (error instanceof ApiError && error.status === 404) return;
      this.#restore(id);
      const { title, advice } = explain(error);
      notice(`Not deleted. ${title} ${advice}`);
    }
  }

  /** @param {boolean} open */
  #toggle(open) {
    const drawer = this.#narrow.matches;
    const shown = !drawer || open;
    document.body.classList.toggle("drawer-open", drawer && open);
    this.panel.inert = !shown;
    byId("main").inert = drawer && open;
    byId("menu").setAttribute("aria-expanded", String(drawer && open));
    if (drawer && open) byId("menu-close").focus();
  }

  #close() {
    if (!document.body.classList.contains("drawer-open")) return;
    this.#toggle(false);
    byId("menu").focus();
  }
}

/** @param {string} text */
function shortened(text) {
  const line = text.trim().split("\n")[0];
  return line.length > 60 ? `${line.slice(0, 59).trimEnd()}…` : line;
}

/**
 * @param {(ConversationInfo & {at: number})[]} conversations newest first
 * @returns {Map<string, ConversationInfo[]>}
 */
function byDay(conversations) {
  /** @type {Map<string, ConversationInfo[]>} */
  const groups = new Map();
  for (const info of conversations) {
    const day = dayOf(info.at);
    groups.set(day, [...(groups.get(day) ?? []), info]);
  }
  return groups;
}
