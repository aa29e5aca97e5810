// The source of a template, cut where an editor shows something: what is an expression, what a statement, what is wrong.

// Stretches `{ from, to, kind }` of a template: "text", "expression", "statement" or "comment". What is not closed goes on
// to the end.
export function templateStretches(text) {
  const stretches = [];
  const opening = /\{\{|\{%|\{#/g;
  let at = 0;
  for (let found = opening.exec(text); found; found = opening.exec(text)) {
    const kind = { "{{": "expression", "{%": "statement", "{#": "comment" }[found[0]];
    const to = closingAt(text, found.index + 2, { expression: "}}", statement: "%}", comment: "#}" }[kind]);
    if (found.index > at) stretches.push({ from: at, to: found.index, kind: "text" });
    stretches.push({ from: found.index, to, kind });
    at = to;
    opening.lastIndex = to;
  }
  if (at < text.length) stretches.push({ from: at, to: text.length, kind: "text" });
  return stretches;
}

// Where a tag ends; in quotation marks its closing signs are text.
function closingAt(text, from, closing) {
  let quote = null;
  for (let i = from; i < text.length; i++) {
    if (quote) {
      if (text[i] === "\\") i++;
      else if (text[i] === quote) quote = null;
    } else if (closing !== "#}" && (text[i] === "'" || text[i] === '"')) {
      quote = text[i];
    } else if (text.startsWith(closing, i)) {
      return i + closing.length;
    }
  }
  return text.length;
}

// The stretches cut again at what is wrong: `{ from, to, kind, wrong }`, with the worst severity of what is said there, or
// null. A place without length is shown on the character beside it.
export function marked(stretches, length, diagnostics) {
  const wrong = diagnostics.map(({ from, to, severity }) => {
    const end = Math.min(length, Math.max(to, from + 1));
    return { from: Math.min(from, Math.max(0, end - 1)), to: end, severity };
  });
  const bounds = new Set(wrong.flatMap(({ from, to }) => [from, to]));
  const cut = [];
  for (const { from, to, kind } of stretches) {
    const within = [from, ...[...bounds].filter((at) => at > from && at < to).sort((a, b) => a - b), to];
    for (let i = 0; i + 1 < within.length; i++) {
      const said = wrong.filter((place) => place.from <= within[i] && within[i + 1] <= place.to).map(({ severity }) => severity);
      cut.push({ from: within[i], to: within[i + 1], kind, wrong: ["error", "warning", "note"].find((severity) => said.includes(severity)) ?? null });
    }
  }
  return cut;
}

// One-based line and column of a place.
export function lineColumn(text, at) {
  const before = text.slice(0, at).split("\n");
  return [before.length, before[before.length - 1].length + 1];
}
