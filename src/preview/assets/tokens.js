// A text cut where anything about it changes: who wrote it, which token it is, whether it differs or is cut off.

// Tokens as they are shown: those that spell one character together are one. `{ ids, first, from, to }`.
export function tokenGroups(tokens) {
  const groups = [];
  let ids = [];
  let at = 0;
  tokens.forEach(([id, length], i) => {
    ids.push(id);
    if (length === 0) return;
    groups.push({ ids, first: i - ids.length + 1, from: at, to: at + length });
    at += length;
    ids = [];
  });
  return groups;
}

// The characters of tokens `cut[0]..cut[1]`; what is not listed lies behind what is.
export function cutRange(groups, cut, length) {
  if (!cut) return null;
  const from = groups.find((group) => group.first + group.ids.length > cut[0]);
  const to = groups.find((group) => group.first + group.ids.length > cut[1] - 1);
  if (!from && groups.length > 0) return [groups[groups.length - 1].to, length];
  return [from ? from.from : 0, to ? to.to : length];
}

// Segments `{ from, to, origin, group, changed, cut }` of characters `0..limit`. `group` is -1 where tokens are not asked
// for, or none is listed.
export function segmentsOf(pieces, { groups = [], marks = [], cut = null, limit = Infinity } = {}) {
  const length = Math.min(limit, pieces.reduce((sum, [text]) => sum + text.length, 0));
  const bounds = new Set([0, length]);
  const add = (at) => at < length && bounds.add(at);
  let at = 0;
  const origins = pieces.map(([text, origin]) => {
    add(at);
    const from = at;
    at += text.length;
    return { from, to: at, origin };
  });
  for (const { from, to } of groups) [from, to].forEach(add);
  for (const mark of [...marks, ...(cut ? [cut] : [])]) mark.forEach(add);
  const sorted = [...bounds].sort((a, b) => a - b);
  const walk = [0, 0, 0];
  const segments = [];
  for (let i = 0; i + 1 < sorted.length; i++) {
    const [from, to] = [sorted[i], sorted[i + 1]];
    while (origins[walk[0]] && origins[walk[0]].to <= from) walk[0]++;
    while (groups[walk[1]] && groups[walk[1]].to <= from) walk[1]++;
    while (marks[walk[2]] && marks[walk[2]][1] <= from) walk[2]++;
    const group = groups[walk[1]];
    const mark = marks[walk[2]];
    segments.push({
      from,
      to,
      origin: origins[walk[0]]?.origin ?? 0,
      group: group && group.from <= from ? walk[1] : -1,
      changed: Boolean(mark && mark[0] <= from),
      cut: Boolean(cut && cut[0] <= from && from < cut[1]),
    });
  }
  return segments;
}

// What would command the line or not be seen at all. Joiners are a part of words and pictures.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/u;

// Runs of a text: `plain`, `blank` (what is shown in its place, if blanks are shown) and `unseen` (its code point).
export function runsOf(text, blanks) {
  if (!blanks && !UNSEEN.test(text)) return [{ kind: "plain", text }];
  const runs = [];
  for (const character of text) {
    const kind = UNSEEN.test(character) ? "unseen" : blanks && /\s/u.test(character) ? "blank" : "plain";
    const shown = kind === "unseen" ? codePoint(character) : kind === "blank" ? blank(character) : character;
    const last = runs[runs.length - 1];
    if (last && last.kind === kind && kind !== "unseen") last.text += shown;
    else runs.push({ kind, text: shown });
  }
  return runs;
}

function codePoint(character) {
  return `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
}

function blank(character) {
  if (character === "\n") return "↵\n";
  if (character === "\t") return "⇥\t";
  return character === " " ? "·" : `[${codePoint(character)}]`;
}
