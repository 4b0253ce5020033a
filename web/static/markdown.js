/**
 * Shows an answer as rendered Markdown while it is still being written.
 *
 * Only what changed is rendered again: an answer is a row of blocks (paragraph, list, code, table), and while it grows
 * all but the last stay as they are, so nothing flickers, selections live, and a long answer costs no more than a short
 * one. What the model writes is never trusted: raw HTML is shown as the text it is, links lead to http(s) and mailto
 * only, pictures become links (a picture's address can carry the conversation to a stranger), and DOMPurify lets
 * nothing through but the few elements listed here.
 * @module
 */

import { Marked } from "./vendor/marked/marked.esm.js";
import "./vendor/dompurify/purify.min.js";
import { colour } from "./code.js";
import { copyButton } from "./copy.js";

const { DOMPurify } = globalThis;

const TAGS = [
  ..."p h3 h4 h5 h6 ul ol li blockquote pre code em strong del a br hr sub sup kbd".split(" "),
  ..."table thead tbody tr th td".split(" "),
];
const ATTRIBUTES = ["href", "align", "start", "class"];
/** The only raw HTML that is taken for what it says: models use it inside tables and formulas. */
const PLAIN_HTML = /^<(?:br\s*\/?|\/?(?:sub|sup|kbd))>$/i;
const SAFE_LINK = /^(?:https?:\/\/|mailto:)/i;

/** @param {string} text */
const escape = (text) =>
  text.replace(/[&<>"']/g, (char) => `&${{ "&": "amp", "<": "lt", ">": "gt", '"': "quot", "'": "#39" }[char]};`);

/** @param {string} href @param {string} inner */
const anchor = (href, inner) => (SAFE_LINK.test(href.trim()) ? `<a href="${escape(href.trim())}">${inner}</a>` : inner);

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text }) => (PLAIN_HTML.test(text.trim()) ? text : escape(text)),
    link({ href, tokens }) {
      return anchor(href, this.parser.parseInline(tokens));
    },
    image: ({ href, text }) => anchor(href, escape(text || "picture")),
    // The page has its own h1 and h2.
    heading({ tokens, depth }) {
      const level = Math.min(6, depth + 2);
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
    },
    code: ({ text, lang }) => `<pre><code class="language-${escape(languageOf(lang))}">${escape(text)}</code></pre>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

/** @param {string | undefined} info the text after a code fence's backticks */
const languageOf = (info) => (info ?? "").trim().split(/\s+/)[0].replace(/[^\w+#.-]/g, "").slice(0, 30);

/**
 * Complete what a growing answer has begun, and hold back what would be taken for something else a moment later.
 *
 * `**bo` would show its asterisks until the closing ones come; `- ` below a line would make that line a heading.
 * @param {string} text the answer so far
 * @returns {string}
 */
export function heal(text) {
  const lineStart = text.lastIndexOf("\n") + 1;
  const line = text.slice(lineStart);
  if (insideFence(text.slice(0, lineStart))) return /^\s*(?:`+|~+)$/.test(line) ? text.slice(0, lineStart) : text;
  if (/^\s*(?:[`~]{1,2}|[-=*+_#>]+|\d{1,9}[.)]?)\s*$/.test(line)) return text.slice(0, lineStart);
  if (/^\s*(?:```|~~~)/.test(line)) return text;
  return withoutHalfTable(text) ?? closeInline(text);
}

/** @param {string} text whole lines */
function insideFence(text) {
  let fence = "";
  for (const [, mark] of text.matchAll(/^ {0,3}(?:[-*+] +|\d+[.)] +)?[ \t]*(`{3,}|~{3,})/gm)) {
    if (!fence) fence = mark;
    else if (mark[0] === fence[0] && mark.length >= fence.length) fence = "";
  }
  return fence !== "";
}

/**
 * A table is one only from its second line on, and a row of it from its last cell on.
 * @param {string} text
 * @returns {string | null} null where the text does not end in a table
 */
function withoutHalfTable(text) {
  const rows = /(?:^|\n)((?:[ \t]*\|[^\n]*(?:\n|$))+)$/.exec(text);
  if (!rows) return null;
  const whole = rows[1].slice(0, rows[1].lastIndexOf("\n") + 1);
  const start = text.length - rows[1].length;
  return text.slice(0, whole.split("\n").length > 2 ? start + whole.length : start);
}

/** @param {string} text */
function closeInline(text) {
  const start = text.lastIndexOf("\n\n") + 1;
  const head = text.slice(0, start);
  const tail = withoutHalfLink(text.slice(start));
  const seen = maskCode(tail);
  const tick = seen.indexOf("`");
  if (tick >= 0) {
    const mark = seen.slice(tick).replace(/[^`].*/s, "");
    return head + (seen.slice(tick) === mark ? tail.slice(0, tick) : tail + mark);
  }
  if ((seen.match(/\*\*/g) ?? []).length % 2 === 1) {
    return head + (/\*\*\s*$/.test(seen) ? tail.replace(/\*\*\s*$/, "") : `${tail.replace(/\*?\s*$/, "")}**`);
  }
  if (/(?:^|[\s(])\*(?![\s*])[^*\n]+$/.test(seen)) return `${head + tail.trimEnd()}*`;
  return head + tail.replace(/(^|\s)\*{1,2}$/, "$1");
}

/** `[label](https://exam` is shown as its label until the address is whole. @param {string} text */
function withoutHalfLink(text) {
  const half = /(?<![\w\])])!?\[([^\][\n]*)(?:\]\([^)\n]*)?$/.exec(maskCode(text));
  return half ? text.slice(0, half.index) + text.slice(half.index).replace(/^!?\[([^\][\n]*)(?:\]\([^)\n]*)?$/, "$1") : text;
}

/** Hide what stands in finished code spans, at equal length. @param {string} text */
const maskCode = (text) => text.replace(/(?<!`)(`+)(?!`)[^]*?(?<!`)\1(?!`)/g, (span) => "x".repeat(span.length));

/** One answer in the page, which may grow. */
export class LiveMarkdown {
  /** @type {{key: string, type: string, element: HTMLElement}[]} */
  #blocks = [];

  /**
   * @param {HTMLElement} root emptied and filled by this object only
   * @param {(fragment: DocumentFragment) => void} [finish] does what is left to do to each block that was rendered
   */
  constructor(root, finish = () => {}) {
    this.root = root;
    this.finish = finish;
    root.replaceChildren();
  }

  /**
   * @param {string} text the whole answer so far
   * @param {boolean} growing whether more may come
   */
  update(text, growing) {
    const tokens = marked.lexer(growing ? heal(text) : text);
    // A definition far below can turn `[this]` into a link in any block, so it is part of every block's key.
    const links = JSON.stringify(tokens.links);
    const blocks = tokens.filter((token) => token.type !== "space" && token.type !== "def");
    blocks.forEach((token, index) => {
      const open = growing && index === blocks.length - 1;
      this.#show(index, token, `${token.type}\n${open}\n${token.raw.trimEnd()}\n${links}`, open);
    });
    for (const { element } of this.#blocks.splice(blocks.length)) element.remove();
  }

  /**
   * @param {number} index
   * @param {any} token
   * @param {string} key
   * @param {boolean} open whether this block may still grow
   */
  #show(index, token, key, open) {
    const old = this.#blocks[index];
    if (old?.key === key) return;
    if (old?.type === "code" && token.type === "code" && open && extend(old.element, token)) {
      old.key = key;
      return;
    }
    const element = old?.element ?? this.root.appendChild(document.createElement("div"));
    element.className = `block block-${token.type}`;
    const fragment = render(token, open);
    this.finish(fragment);
    element.replaceChildren(fragment);
    this.#blocks[index] = { key, type: token.type, element };
  }
}

/**
 * Add to a code block that is being written, so that its scroll position and a selection in it stay.
 * @param {HTMLElement} element
 * @param {any} token
 */
function extend(element, token) {
  const code = element.querySelector("code");
  const shown = code?.textContent ?? "";
  if (!code || code.className !== `language-${languageOf(token.lang)}` || !token.text.startsWith(shown)) return false;
  code.append(token.text.slice(shown.length));
  return true;
}

/**
 * @param {any} token
 * @param {boolean} open
 * @returns {DocumentFragment}
 */
function render(token, open) {
  const fragment = DOMPurify.sanitize(marked.parser([token]), {
    ALLOWED_TAGS: TAGS,
    ALLOWED_ATTR: ATTRIBUTES,
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
    ALLOWED_URI_REGEXP: SAFE_LINK,
    ADD_URI_SAFE_ATTR: ["align", "start"], // else their values would have to look like safe links
    RETURN_DOM_FRAGMENT: true,
  });
  for (const link of fragment.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const pre of fragment.querySelectorAll("pre")) frameCode(pre, open);
  for (const table of fragment.querySelectorAll("table")) {
    const frame = document.createElement("div");
    frame.className = "table";
    table.replaceWith(frame);
    frame.append(table);
  }
  return fragment;
}

/**
 * Put a code block into its frame: language, Copy button, colours once it is complete.
 * @param {HTMLElement} pre
 * @param {boolean} open
 */
function frameCode(pre, open) {
  const code = pre.querySelector("code") ?? pre.appendChild(document.createElement("code"));
  const language = code.className.replace(/^language-/, "");
  const frame = document.createElement("div");
  frame.className = "code";
  const bar = document.createElement("div");
  bar.className = "code-bar";
  const label = document.createElement("span");
  label.textContent = language || "text";
  bar.append(label, copyButton("Copy code", () => code.textContent ?? "", "Copy"));
  pre.replaceWith(frame);
  frame.append(bar, pre);
  if (!open) colour(code, language);
}
