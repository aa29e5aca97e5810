// The data of the page, as src/preview/report.rs writes it.

export function readData() {
  return JSON.parse(document.getElementById("data").textContent);
}

// Pairs of id and length out of base64: numbers in groups of seven bits, the lowest first.
export function unpackTokens(text) {
  const bytes = atob(text);
  const numbers = [];
  let number = 0;
  let scale = 1;
  for (let i = 0; i < bytes.length; i++) {
    const byte = bytes.charCodeAt(i);
    number += (byte & 127) * scale;
    scale *= 128;
    if (byte < 128) {
      numbers.push(number);
      number = 0;
      scale = 1;
    }
  }
  const tokens = [];
  for (let i = 0; i + 1 < numbers.length; i += 2) tokens.push([numbers[i], numbers[i + 1]]);
  return tokens;
}

// A server sends pieces and tokens as they are, a report packs them.
export function tokensOf(side) {
  if (typeof side.tokens === "string") side.tokens = unpackTokens(side.tokens);
  return side.tokens;
}

export function piecesOf(task, side) {
  return side.pieces.map(([text, origin]) => [typeof text === "number" ? task.texts[text] : text, origin]);
}

export function textOf(task, side) {
  return piecesOf(task, side).map(([text]) => text).join("");
}

export function rowName(row) {
  return `${row.split}:${row.row}`;
}

export const SEVERITIES = ["error", "warning", "note"];

// Findings by severity; those that are allowed count apart.
export function countFindings(findings, codes) {
  const counts = { error: 0, warning: 0, note: 0, allowed: 0 };
  for (const finding of findings) counts[finding.allowed ? "allowed" : codes[finding.code].severity] += 1;
  return counts;
}
