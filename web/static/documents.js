/**
 * The documents that answers rest on: dropped or chosen, watched until they are learned, listed and deleted.
 *
 * Each file is a row of its own from the moment it is dropped, and what is wrong with it is said there: a bad file
 * stops no other.
 * @module
 */

import { explain } from "./errors.js";
import { iconButton } from "./icons.js";
import { announce, notice } from "./notices.js";
import { keepFocus } from "./panels.js";
import { patiently } from "./patience.js";

/** @typedef {{document_id: string, title: string, status: string, passages: number, error?: string | null}} DocumentInfo */
/** @typedef {{id: string, title: string, status: string, passages: number, error: string}} Row */

const PART = 50;
const FIRST_LOOK_MS = 500;
const LONGEST_LOOK_MS = 5000;

/** @param {string} id */
const byId = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

export class Documents {
  /** @type {Row[]} */
  #rows = [];
  #next = "";
  #dialog = /** @type {HTMLDialogElement} */ (byId("documents"));

  /** @param {import("./api.js").Api} api */
  constructor(api) {
    this.api = api;
    const files = /** @type {HTMLInputElement} */ (byId("documents-files"));
    byId("documents-open").addEventListener("click", () => this.open());
    byId("documents-choose").addEventListener("click", () => files.click());
    byId("documents-close").addEventListener("click", () => this.#dialog.close());
    byId("documents-more").addEventListener("click", () => this.#read());
    byId("documents-again").addEventListener("click", () => this.open());
    files.addEventListener("change", () => {
      this.#give([...(files.files ?? [])]);
      files.value = "";
    });
    this.#takeDrops();
  }

  /** Show the panel, with the list as it is now. */
  async open() {
    if (!this.#dialog.open) this.#dialog.showModal();
    this.#rows = this.#rows.filter(({ id, status }) => !id || status === "uploading");
    this.#next = "";
    await this.#read();
  }

  async #read() {
    byId("documents-problem").hidden = true;
    byId("documents-loading").hidden = this.#rows.length > 0;
    try {
      const page = await patiently(() => this.api.documents({ limit: PART, after: this.#next }));
      const known = new Set(this.#rows.map(({ id }) => id));
      const rows = page.data.filter(({ document_id: id }) => !known.has(id)).map((info) => rowOf(info));
      this.#rows.push(...rows);
      this.#next = page.has_more ? (page.data.at(-1)?.document_id ?? "") : "";
      for (const row of rows) if (row.status === "queued") this.#watch(row);
    } catch (error) {
      const { title, advice } = explain(error);
      byId("documents-problem").hidden = false;
      byId("documents-problem-text").textContent = `The documents cannot be shown. ${title} ${advice}`;
    }
    byId("documents-loading").hidden = true;
    this.#render();
  }

  /** @param {File[]} files */
  #give(files) {
    if (!files.length) return;
    if (!this.#dialog.open) this.open();
    for (const file of files) this.#upload(file);
  }

  /** @param {File} file */
  async #upload(file) {
    /** @type {Row} */
    const row = { id: "", title: file.name, status: "uploading", passages: 0, error: "" };
    this.#rows.unshift(row);
    this.#render();
    try {
      const info = await this.api.giveDocument(file);
      Object.assign(row, { id: info.document_id, status: info.status });
      this.#rows = this.#rows.filter((other) => other === row || other.id !== row.id);
      this.#watch(row);
    } catch (error) {
      const { title, advice } = explain(error);
      Object.assign(row, { status: "refused", error: `${title} ${advice}` });
      announce(`${file.name} was not taken.`);
    }
    this.#render();
  }

  /** Look at a document until something has become of it. @param {Row} row */
  async #watch(row) {
    for (let wait = FIRST_LOOK_MS; row.status === "queued" && this.#rows.includes(row); wait = Math.min(wait * 1.3, LONGEST_LOOK_MS)) {
      await new Promise((resolve) => setTimeout(resolve, wait));
      if (!this.#dialog.open) continue;
      try {
        Object.assign(row, rowOf(await this.api.document(row.id)));
      } catch {
        continue; // the list says what is wrong, when it is opened
      }
      if (row.status === "queued") continue;
      announce(row.status === "learned" ? `${row.title} is learned.` : `${row.title} could not be learned.`);
      this.#render();
    }
  }

  #render() {
    byId("documents-list").replaceChildren(...this.#rows.map((row) => this.#item(row)));
    byId("documents-empty").hidden = this.#rows.length > 0 || !byId("documents-problem").hidden;
    byId("documents-more").hidden = !this.#next;
    keepFocus(this.#dialog, byId("documents-close"));
  }

  /** @param {Row} row */
  #item(row) {
    const item = document.createElement("li");
    item.dataset.status = row.status;
    const title = document.createElement("span");
    title.className = "name";
    title.textContent = row.title || row.id;
    const state = document.createElement("span");
    state.className = "state";
    state.textContent = stateOf(row);
    const words = document.createElement("div");
    words.append(title, state);
    item.append(words);
    if (row.status === "refused") item.append(iconButton("close", `Dismiss “${row.title}”`, () => this.#drop(row)));
    else if (row.id) item.append(iconButton("delete", `Delete “${row.title}”`, () => this.#delete(row, item)));
    return item;
  }

  /** @param {Row} row */
  #drop(row) {
    this.#rows = this.#rows.filter((other) => other !== row);
    this.#render();
  }

  /**
   * Ask at its place, and delete.
   * @param {Row} row
   * @param {HTMLElement} item
   */
  #delete(row, item) {
    const sure = document.createElement("span");
    sure.className = "sure";
    const yes = plain("Delete", async () => {
      this.#drop(row);
      try {
        await patiently(() => this.api.forgetDocument(row.id));
        announce(`${row.title} is deleted.`);
      } catch (error) {
        this.#rows.unshift(row);
        this.#render();
        const { title, advice } = explain(error);
        notice(`Not deleted. ${title} ${advice}`);
      }
    });
    sure.append("Delete it, and answer without it?", yes, plain("Keep", () => this.#render()));
    item.replaceChildren(/** @type {Node} */ (item.firstElementChild), sure);
    yes.focus();
  }

  #takeDrops() {
    let depth = 0; // of elements that the files are over: each says enter and leave
    const overlay = byId("drop");
    const carriesFiles = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files");
    addEventListener("dragenter", (event) => {
      if (!carriesFiles(event)) return;
      depth += 1;
      overlay.hidden = false;
    });
    addEventListener("dragleave", (event) => {
      if (!carriesFiles(event)) return;
      depth -= 1;
      if (depth <= 0) overlay.hidden = true;
    });
    addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
    addEventListener("drop", (event) => {
      depth = 0;
      overlay.hidden = true;
      if (!carriesFiles(event)) return;
      event.preventDefault();
      this.#give([...(event.dataTransfer?.files ?? [])]);
    });
  }
}

/** @param {DocumentInfo} info @returns {Row} */
const rowOf = (info) => ({
  id: info.document_id,
  title: info.title,
  status: info.status,
  passages: info.passages,
  error: info.error ?? "",
});

/** @param {Row} row */
function stateOf({ status, passages, error }) {
  switch (status) {
    case "uploading":
      return "Uploading…";
    case "queued":
      return "Being learned…";
    case "learned":
      return passages === 1 ? "Learned, 1 passage" : `Learned, ${passages} passages`;
    default:
      return error || "It could not be learned.";
  }
}

/**
 * @param {string} label
 * @param {() => void} onClick
 */
function plain(label, onClick) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "plain";
  button.textContent = label;
  button.addEventListener("click", onClick);
  return button;
}
