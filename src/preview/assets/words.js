// The difference between two texts, in words.

// Words, blanks and marks, each on its own; together they are the text.
export function wordsOf(text) {
  return text.match(/[\p{L}\p{N}_]+|\s+|[^\p{L}\p{N}_\s]/gu) ?? [];
}

// Edits that are looked for; texts further apart than that differ as a whole.
const MOST_EDITS = 600;

// Stretches, from and to, of each text that the other has not: the shortest script by Myers (1986), An O(ND)
// Difference Algorithm and Its Variations.
export function differences(left, right) {
  const a = wordsOf(left);
  const b = wordsOf(right);
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  let tail = 0;
  while (tail < a.length - start && tail < b.length - start && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail++;
  const kept = common(a.slice(start, a.length - tail), b.slice(start, b.length - tail));
  const marks = (words, own) => {
    const same = new Set(own.map((i) => i + start));
    const stretches = [];
    let at = 0;
    words.forEach((word, i) => {
      if (i >= start && i < words.length - tail && !same.has(i)) {
        const last = stretches[stretches.length - 1];
        if (last && last[1] === at) last[1] += word.length;
        else stretches.push([at, at + word.length]);
      }
      at += word.length;
    });
    return stretches;
  };
  return [marks(a, kept.map(([i]) => i)), marks(b, kept.map(([, j]) => j))];
}

// The same stretches with those put together that have only blanks between them: easier to read.
export function joinedMarks(text, marks) {
  const joined = [];
  for (const [from, to] of marks) {
    const last = joined[joined.length - 1];
    if (last && text.slice(last[1], from).trim() === "") last[1] = to;
    else joined.push([from, to]);
  }
  return joined;
}

// Pairs of indices of a longest common sequence.
function common(a, b) {
  const offset = MOST_EDITS + 1;
  const furthest = new Int32Array(2 * offset + 1);
  const trail = [];
  for (let edits = 0; edits <= Math.min(MOST_EDITS, a.length + b.length); edits++) {
    for (let k = -edits; k <= edits; k += 2) {
      const down = k === -edits || (k !== edits && furthest[offset + k - 1] < furthest[offset + k + 1]);
      let x = down ? furthest[offset + k + 1] : furthest[offset + k - 1] + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x++;
      furthest[offset + k] = x;
      if (x >= a.length && x - k >= b.length) return pairs(a, b, trail, edits, offset);
    }
    trail.push(furthest.slice());
  }
  return [];
}

function pairs(a, b, trail, edits, offset) {
  const found = [];
  let x = a.length;
  let y = b.length;
  for (let d = edits; d >= 0; d--) {
    const k = x - y;
    let fromX = 0;
    let fromY = 0;
    if (d > 0) {
      const before = trail[d - 1];
      const down = k === -d || (k !== d && before[offset + k - 1] < before[offset + k + 1]);
      const from = down ? k + 1 : k - 1;
      fromX = before[offset + from];
      fromY = fromX - from;
      while (x > (down ? fromX : fromX + 1) && y > (down ? fromY + 1 : fromY)) found.push([--x, --y]);
    } else {
      while (x > 0 && y > 0) found.push([--x, --y]);
    }
    x = fromX;
    y = fromY;
  }
  return found.reverse();
}
