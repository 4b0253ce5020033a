/**
 * Repeats a request that may work soon. While a worker is restarted or the group shares out its conversations anew, the
 * server answers 503 or not at all for some seconds, which is no news to a person.
 * @module
 */

import { ApiError } from "./errors.js";
import { pause } from "./events.js";

const WAITS_MS = [400, 1000, 2000, 4000];
const LONGEST_WISH_S = 5;

/**
 * @template T
 * @param {() => Promise<T>} attempt a request that may be repeated: a read, or one whose repetition does no harm
 * @param {AbortSignal} [signal] ends the waiting
 * @returns {Promise<T>}
 * @throws what the last attempt throws
 */
export async function patiently(attempt, signal = new AbortController().signal) {
  for (const wait of WAITS_MS) {
    try {
      return await attempt();
    } catch (error) {
      // A limit is shown with its countdown rather than run into again.
      if (!(error instanceof ApiError) || !error.passing || error.status === 429) throw error;
      await pause(Math.max(wait, Math.min(error.retryAfter ?? 0, LONGEST_WISH_S) * 1000), signal);
    }
  }
  return attempt();
}
