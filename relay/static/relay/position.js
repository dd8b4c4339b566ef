// Positions in a session's log: "<epoch>-<seq>", compared as pairs of numbers.

/** Read a position; anything else is null. */
export function parsePosition(text) {
  const match = /^(\d{1,16})-(\d{1,16})$/.exec(text ?? "");
  return match ? [Number(match[1]), Number(match[2])] : null;
}

/** Negative when `a` stands before `b`, 0 for the same place; what is no position stands before all. */
export function comparePositions(a, b) {
  const [x, y] = [parsePosition(a), parsePosition(b)];
  if (!x || !y) return (x ? 1 : 0) - (y ? 1 : 0);
  return x[0] - y[0] || x[1] - y[1];
}

/** The earlier of two positions; a missing one does not count. */
export function earlierPosition(a, b) {
  if (!a || !b) return a || b || "";
  return comparePositions(a, b) <= 0 ? a : b;
}
