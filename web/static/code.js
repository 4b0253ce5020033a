/**
 * Colours finished code blocks: comments, strings, numbers and keywords, which is what the eye looks for.
 *
 * One small scanner for the languages that data engineers get answers in, instead of a highlighter that is larger than
 * the rest of the page. It only wraps text in spans, so the code itself never changes.
 * @module
 */

const WORDS = {
  python:
    "and as assert async await break class continue def del elif else except False finally for from global if import in is lambda match None nonlocal not or pass raise return True try while with yield self",
  sql: "add all alter and as asc between by case cast create cross cube delete desc distinct drop else end except exists false filter first following for from full group grouping having if in index inner insert intersect interval into is join lateral last left like limit materialized merge not null nulls offset on or order outer over partition preceding primary key range references replace returning right rollup row rows select set sets table temp then true unbounded union unique update using values view when where window with",
  shell: "case do done elif else esac export fi for function if in local return select set then until while",
  js: "as async await break case catch class const continue default delete do else enum export extends false finally for from function if implements import in instanceof interface let new null of return static super switch this throw true try type typeof undefined var void while yield",
  java: "abstract boolean break case catch class const continue def default do double else enum extends false final finally float for if implements import in int interface long match new null object override package private protected public return static super switch this throw throws trait true try type val var void while with yield fn let mut pub impl struct use func go defer range map chan string",
  data: "true false null yes no on off",
};
/** @type {Record<string, keyof typeof WORDS>} */
const LANGUAGES = {
  ...Object.fromEntries(["python", "py", "pyspark"].map((name) => [name, "python"])),
  ...Object.fromEntries(["sql", "postgresql", "postgres", "pgsql", "mysql", "sparksql", "ksql"].map((name) => [name, "sql"])),
  ...Object.fromEntries(["bash", "sh", "shell", "zsh", "console"].map((name) => [name, "shell"])),
  ...Object.fromEntries(["js", "javascript", "ts", "typescript", "jsx", "tsx"].map((name) => [name, "js"])),
  ...Object.fromEntries(["java", "scala", "kotlin", "go", "rust", "c", "cpp", "csharp"].map((name) => [name, "java"])),
  ...Object.fromEntries(["json", "yaml", "yml", "toml", "ini", "properties", "hcl", "terraform", "dockerfile"].map((name) => [name, "data"])),
};
const COMMENTS = { python: "#.*", shell: "#.*", data: "(?:#|//).*", sql: "--.*|/\\*[^]*?\\*/", js: "//.*|/\\*[^]*?\\*/", java: "//.*|/\\*[^]*?\\*/" };
const STRINGS = `"""[^]*?"""|'''[^]*?'''|"(?:\\\\.|[^"\\\\\\n])*"|'(?:\\\\.|[^'\\\\\\n])*'|\`(?:\\\\.|[^\`\\\\])*\``;
const NUMBERS = "\\b\\d[\\d_]*(?:\\.\\d+)?(?:[eE][+-]?\\d+)?\\b";

/** @type {Map<string, RegExp>} */
const scanners = new Map();

/** @param {keyof typeof WORDS} family */
function scanner(family) {
  let pattern = scanners.get(family);
  if (!pattern) {
    const words = WORDS[family].split(" ").join("|");
    const flags = family === "sql" ? "gi" : "g";
    pattern = new RegExp(`(?<comment>(?<![\\w$])(?:${COMMENTS[family]}))|(?<string>${STRINGS})|(?<number>${NUMBERS})|(?<keyword>(?<![\\w$.])(?:${words})(?![\\w$]))`, flags);
    scanners.set(family, pattern);
  }
  return pattern;
}

/**
 * @param {HTMLElement} code whose text is to be coloured
 * @param {string} language as the answer names it
 */
export function colour(code, language) {
  const family = LANGUAGES[language.toLowerCase()];
  const text = code.textContent ?? "";
  // Longer than that is a log or a dump: nobody reads its colours, and the scan would be felt.
  if (!family || text.length > 20_000) return;
  const pieces = document.createDocumentFragment();
  let end = 0;
  for (const match of text.matchAll(scanner(family))) {
    pieces.append(text.slice(end, match.index));
    const span = document.createElement("span");
    span.className = `code-${Object.entries(match.groups ?? {}).find(([, found]) => found !== undefined)?.[0]}`;
    span.textContent = match[0];
    pieces.append(span);
    end = match.index + match[0].length;
  }
  pieces.append(text.slice(end));
  code.replaceChildren(pieces);
}
