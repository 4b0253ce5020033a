/**
 * Groups conversations by the day they were last used, in the reader's own time zone.
 * @module
 */

const DAY_MS = 24 * 60 * 60 * 1000;

/**
 * @param {number} time Unix ms
 * @param {Date} [now]
 * @returns {string} the heading that it stands under
 */
export function dayOf(time, now = new Date()) {
  const then = new Date(time);
  const days = Math.round((midnight(now) - midnight(then)) / DAY_MS);
  if (days <= 0) return "Today";
  if (days === 1) return "Yesterday";
  if (days < 7) return "Last 7 days";
  if (days < 30) return "Last 30 days";
  return then.toLocaleDateString("en", { month: "long", year: "numeric" });
}

/** @param {Date} date */
const midnight = (date) => new Date(date.getFullYear(), date.getMonth(), date.getDate()).getTime();
