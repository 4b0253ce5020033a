/**
 * What can go wrong between the page and the server, and how the page says it: what happened, and what to do.
 * @module
 */

/** The server refused, or could not be reached (`status` 0). */
export class ApiError extends Error {
  /** @param {{status: number, message?: string, code?: string, retryAfter?: number | null, requestId?: string}} what */
  constructor({ status, message = "", code = "", retryAfter = null, requestId = "" }) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
    /** Seconds that the server asks to wait, if it does. */
    this.retryAfter = retryAfter;
    this.requestId = requestId;
  }

  /** Whether the same request may work soon. */
  get passing() {
    return this.status === 0 || this.status === 408 || this.status === 429 || this.status >= 500;
  }
}

/** A connection that broke, or a stream that cannot be right: come back and go on where it was. */
export class Lost extends Error {
  name = "Lost";
}

/**
 * @param {unknown} error
 * @returns {boolean}
 */
export const isAbort = (error) => error instanceof DOMException && error.name === "AbortError";

/**
 * Read an answer that is not 2xx.
 * @param {Response} response
 * @returns {Promise<ApiError>}
 */
export async function refusal(response) {
  const body = await response.json().catch(() => null);
  const error = body?.error ?? {};
  return new ApiError({
    status: response.status,
    message: typeof error.message === "string" ? error.message : "",
    code: typeof error.code === "string" ? error.code : "",
    retryAfter: secondsOf(response.headers.get("Retry-After")),
    requestId: response.headers.get("X-Request-Id") ?? "",
  });
}

/**
 * Seconds of a Retry-After header, which is a number or a date (RFC 9110, 10.2.3).
 * @param {string | null} header
 * @param {number} [now]
 * @returns {number | null}
 */
export function secondsOf(header, now = Date.now()) {
  if (!header) return null;
  if (/^\d+$/.test(header.trim())) return Number(header);
  const date = Date.parse(header);
  return Number.isNaN(date) ? null : Math.max(0, Math.ceil((date - now) / 1000));
}

/**
 * Say an error to a person.
 * @param {unknown} error
 * @returns {{title: string, advice: string}}
 */
export function explain(error) {
  if (!(error instanceof ApiError)) {
    return { title: "Something in this page went wrong.", advice: "Reload the page. Your conversations are safe on the server." };
  }
  const { title, advice } = byStatus(error);
  const reference = error.status >= 500 && error.requestId ? ` Request ${error.requestId}.` : "";
  return { title, advice: advice + reference };
}

/** @param {ApiError} error */
function byStatus(error) {
  const said = sentence(error.message);
  switch (error.status) {
    case 0:
      return {
        title: "The server cannot be reached.",
        advice: "Check your connection, then try again. Nothing is asked twice.",
      };
    case 401:
      return { title: "You are not signed in.", advice: said || "Enter your access key to go on." };
    case 403:
      return { title: "You may not do this.", advice: said || "Ask whoever runs this server for access." };
    case 404:
      return { title: "This is not there any more.", advice: said || "It may have been deleted. Start a new conversation." };
    case 409:
      return { title: "The conversation is busy.", advice: said || "Wait for the running answer, or stop it." };
    case 413:
      return { title: "The question is too long.", advice: said || "Shorten it, and ask again." };
    case 429:
      return { title: "You have reached a limit.", advice: said || "Wait a moment, then try again." };
    case 502:
    case 503:
    case 504:
      return { title: "The server is not ready.", advice: said || "It is usually back within seconds. Try again." };
    default:
      return error.status >= 500
        ? { title: "The server made a mistake.", advice: said || "Try again. If it stays, tell whoever runs this server." }
        : { title: "The server did not accept this.", advice: said || "Change the question, and ask again." };
  }
}

/** What a server said, as a sentence that can stand beside ours. @param {string} text */
export function sentence(text) {
  const trimmed = text.trim();
  if (!trimmed) return "";
  const capital = trimmed[0].toUpperCase() + trimmed.slice(1);
  return /[.!?]$/.test(capital) ? capital : `${capital}.`;
}
