/**
 * Every request that the page makes, in one place, with who is asking and what a refusal means.
 *
 * Credentials are the browser's cookie or an access key that the user typed in (API.md, "Who is asking"). Answers that
 * are not 2xx become `ApiError`, and so does a server that cannot be reached (status 0).
 * @module
 */

import { ApiError, isAbort, refusal } from "./errors.js";

/**
 * @typedef {object} ConversationInfo
 * @property {string} id
 * @property {string | null} [title]
 * @property {string} created_at
 * @property {string} updated_at
 */
/**
 * @typedef {object} TurnInfo
 * @property {string} turn_id
 * @property {string | null} [parent] the turn that this one follows, if any
 * @property {string | null} [beside] the turn that this one is another version of, if any
 * @property {string} input
 * @property {string} status
 * @property {string | null} [answer]
 * @property {string | null} [model]
 * @property {string} [created_at]
 * @property {{message?: string} | null} [error]
 * @property {Record<string, number> | null} [usage]
 * @property {Record<string, number> | null} [timings]
 * @property {import("./citations.js").Citation[]} [citations]
 * @property {string | null} [cache]
 * @property {import("./feedback.js").Feedback | null} [feedback]
 */
/** @typedef {{data: ConversationInfo[], has_more: boolean, next?: string | null, older_unavailable?: boolean}} ConversationPage */
/** @typedef {{turns: TurnInfo[], has_more?: boolean, older_unavailable?: boolean}} TurnPage */
/** @typedef {{turn_id: string, conversation_id: string, status: string, events_url?: string}} Accepted */

const KEY = "headrace.key";

export class Api {
  /** Asked for a key when the server answers 401; resolves to whether there is one now. */
  onUnauthorized = async () => false;
  /** @type {Promise<boolean> | null} */
  #asking = null;

  get key() {
    return read(sessionStorage) || read(localStorage);
  }

  get signedIn() {
    return this.key !== "";
  }

  /**
   * @param {string} key
   * @param {boolean} keep on this device, not only in this tab
   */
  signIn(key, keep) {
    this.signOut();
    (keep ? localStorage : sessionStorage).setItem(KEY, key);
  }

  signOut() {
    sessionStorage.removeItem(KEY);
    localStorage.removeItem(KEY);
  }

  /** @returns {Promise<{user: string, tenant: string}>} */
  me() {
    return this.#json("GET", "/v1/me");
  }

  /**
   * @param {{limit: number, after?: string}} part `after`: the `next` of the part before
   * @returns {Promise<ConversationPage>}
   */
  conversations({ limit, after }) {
    const query = new URLSearchParams({ limit: String(limit), ...(after && { after }) });
    return this.#json("GET", `/v1/conversations?${query}`);
  }

  /**
   * @param {string} id
   * @param {{limit: number, before?: string}} part `before`: the turn that the latest ones wanted come before
   * @param {AbortSignal} [signal]
   * @returns {Promise<ConversationInfo & TurnPage>}
   */
  conversation(id, { limit, before }, signal) {
    const query = new URLSearchParams({ limit: String(limit), ...(before && { before }) });
    return this.#json("GET", `/v1/conversations/${encodeURIComponent(id)}?${query}`, { signal });
  }

  /**
   * @param {string} key makes a repeated request harmless
   * @returns {Promise<ConversationInfo>}
   */
  create(key) {
    return this.#json("POST", "/v1/conversations", { body: {}, key });
  }

  /**
   * @param {string} id
   * @param {string} title
   */
  rename(id, title) {
    return this.#json("PATCH", `/v1/conversations/${encodeURIComponent(id)}`, { body: { title } });
  }

  /** @param {string} id */
  erase(id) {
    // The page may be closing while this goes out: `keepalive` lets it arrive all the same.
    return this.#json("DELETE", `/v1/conversations/${encodeURIComponent(id)}`, { keepalive: true });
  }

  /**
   * @param {string} conversation
   * @param {string} input
   * @param {string} key the same key is the same turn, however often it is sent
   * @returns {Promise<Accepted>}
   */
  ask(conversation, input, key) {
    return this.#json("POST", `/v1/conversations/${encodeURIComponent(conversation)}/turns`, { body: { input }, key });
  }

  /**
   * @param {string} turn
   * @returns {Promise<TurnInfo>}
   */
  turn(turn) {
    return this.#json("GET", `/v1/turns/${encodeURIComponent(turn)}`);
  }

  /**
   * @param {{limit: number, after: string}} part `after`: the document that they follow, "" for the newest
   * @returns {Promise<{data: import("./documents.js").DocumentInfo[], has_more: boolean}>}
   */
  documents({ limit, after }) {
    return this.#json("GET", `/v1/documents?${new URLSearchParams({ limit: String(limit), ...(after && { after }) })}`);
  }

  /** @param {string} id @returns {Promise<import("./documents.js").DocumentInfo>} */
  document(id) {
    return this.#json("GET", documentPath(id));
  }

  /** @param {File} file @returns {Promise<import("./documents.js").DocumentInfo>} */
  giveDocument(file) {
    const form = new FormData();
    form.append("file", file);
    return this.#json("POST", "/v1/documents", { form });
  }

  /** @param {string} id */
  forgetDocument(id) {
    return this.#json("DELETE", documentPath(id));
  }

  /** @returns {Promise<import("./memories.js").MemoryPage>} */
  memories() {
    return this.#json("GET", "/v1/me/memories");
  }

  /** @param {boolean} enabled */
  switchMemory(enabled) {
    return this.#json("PATCH", "/v1/me/memories", { body: { enabled } });
  }

  /**
   * @param {string} id
   * @param {string} text
   */
  changeMemory(id, text) {
    return this.#json("PATCH", `/v1/me/memories/${encodeURIComponent(id)}`, { body: { text } });
  }

  /** @param {string} id */
  forgetMemory(id) {
    return this.#json("DELETE", `/v1/me/memories/${encodeURIComponent(id)}`);
  }

  forgetMemories() {
    return this.#json("DELETE", "/v1/me/memories");
  }

  /** @param {string} turn */
  stop(turn) {
    return this.#json("POST", `/v1/turns/${encodeURIComponent(turn)}/stop`);
  }

  /**
   * @param {string} turn
   * @param {{rating: number, comment?: string}} said takes the place of what was said before
   * @returns {Promise<import("./feedback.js").Feedback>}
   */
  rate(turn, said) {
    return this.#json("POST", `/v1/turns/${encodeURIComponent(turn)}/feedback`, { body: said });
  }

  /**
   * @param {string} turn
   * @param {string} key
   * @returns {Promise<Accepted>}
   */
  regenerate(turn, key) {
    return this.#json("POST", `/v1/turns/${encodeURIComponent(turn)}/regenerate`, { body: {}, key });
  }

  /**
   * @param {string} turn
   * @param {string} input
   * @param {string} key
   * @returns {Promise<Accepted>}
   */
  edit(turn, input, key) {
    return this.#json("POST", `/v1/turns/${encodeURIComponent(turn)}/edit`, { body: { input }, key });
  }

  /**
   * @param {string} turn
   * @param {number} after the last event seen, -1 for none
   * @param {AbortSignal} signal
   * @returns {Promise<Response>}
   */
  events(turn, after, signal) {
    /** @type {Record<string, string>} */
    const headers = { Accept: "text/event-stream" };
    if (after >= 0) headers["Last-Event-ID"] = String(after);
    return this.#send(`/v1/turns/${encodeURIComponent(turn)}/events`, { headers, signal });
  }

  /**
   * @param {string} method
   * @param {string} path
   * @param {{body?: object, form?: FormData, key?: string, signal?: AbortSignal, keepalive?: boolean}} [more]
   */
  async #json(method, path, { body, form, key, signal, keepalive } = {}) {
    /** @type {Record<string, string>} */
    const headers = { Accept: "application/json" };
    if (body) headers["Content-Type"] = "application/json";
    if (key) headers["Idempotency-Key"] = key;
    const sent = form ?? (body && JSON.stringify(body));
    const response = await this.#send(path, { method, headers, body: sent, signal, keepalive });
    if (response.status === 204) return null;
    try {
      const text = await response.text();
      return text ? JSON.parse(text) : null;
    } catch (error) {
      if (isAbort(error)) throw error;
      throw new ApiError({ status: 0, message: String(error) });
    }
  }

  /**
   * @param {string} path
   * @param {RequestInit} init
   * @returns {Promise<Response>}
   */
  async #send(path, init) {
    const response = await this.#fetch(path, init);
    if (response.ok) return response;
    if (response.status === 401 && (await this.#askForKey())) {
      const again = await this.#fetch(path, init);
      if (again.ok) return again;
      throw await refusal(again);
    }
    throw await refusal(response);
  }

  /**
   * @param {string} path
   * @param {RequestInit} init
   */
  async #fetch(path, init) {
    const headers = new Headers(init.headers);
    if (this.key) headers.set("Authorization", `Bearer ${this.key}`);
    try {
      return await fetch(path, { ...init, headers, cache: "no-store", credentials: "same-origin" });
    } catch (error) {
      if (isAbort(error)) throw error;
      throw new ApiError({ status: 0, message: String(error) });
    }
  }

  /** Many requests can be refused at once; the user is asked once. */
  #askForKey() {
    this.#asking ??= this.onUnauthorized().finally(() => (this.#asking = null));
    return this.#asking;
  }
}

/** Ids of documents are paths at times, and the server takes them as such. @param {string} id */
const documentPath = (id) => `/v1/documents/${id.split("/").map(encodeURIComponent).join("/")}`;

/** @param {Storage} storage */
function read(storage) {
  try {
    return storage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}
