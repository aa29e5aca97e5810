import { test } from "node:test";
import assert from "node:assert/strict";
import { tokenGroups, cutRange, segmentsOf, runsOf } from "../../src/preview/assets/tokens.js";
import { unpackTokens } from "../../src/preview/assets/data.js";

test("numbers are packed in groups of seven bits", () => {
  const packed = Buffer.from([0x05, 0x01, 0xac, 0x02, 0x80, 0x01]).toString("base64");
  assert.deepEqual(unpackTokens(packed), [[5, 1], [300, 128]]);
  assert.deepEqual(unpackTokens(""), []);
});

test("tokens of one character are shown as one", () => {
  const groups = tokenGroups([[1, 3], [7, 0], [8, 0], [9, 2], [2, 1]]);
  assert.deepEqual(groups, [
    { ids: [1], first: 0, from: 0, to: 3 },
    { ids: [7, 8, 9], first: 1, from: 3, to: 5 },
    { ids: [2], first: 4, from: 5, to: 6 },
  ]);
});

test("what is cut are whole tokens, and all that is not listed", () => {
  const groups = tokenGroups([[1, 3], [2, 2], [3, 1]]);
  assert.deepEqual(cutRange(groups, [1, 2], 6), [3, 5]);
  assert.deepEqual(cutRange(groups, [2, 3], 6), [5, 6]);
  assert.deepEqual(cutRange(groups, [2, 9], 20), [5, 20]);
  assert.deepEqual(cutRange(groups, [4, 9], 20), [6, 20]);
  assert.equal(cutRange(groups, null, 6), null);
});

test("segments end where anything changes", () => {
  const pieces = [["Text: ", 0], ["it rains", 1], ["!", 0]];
  const groups = tokenGroups([[1, 5], [2, 4], [3, 6]]);
  const segments = segmentsOf(pieces, { groups, marks: [[6, 8]], cut: [14, 15] });
  assert.deepEqual(segments.map(({ from, to, origin, group, changed, cut }) => [from, to, origin, group, changed, cut]), [
    [0, 5, 0, 0, false, false],
    [5, 6, 0, 1, false, false],
    [6, 8, 1, 1, true, false],
    [8, 9, 1, 1, false, false],
    [9, 14, 1, 2, false, false],
    [14, 15, 0, 2, false, true],
  ]);
  assert.deepEqual(segmentsOf(pieces, { limit: 3 }).map(({ from, to }) => [from, to]), [[0, 3]]);
  assert.deepEqual(segmentsOf([], {}), []);
});

test("what is not meant to be seen is seen", () => {
  assert.deepEqual(runsOf("a b\n", false), [{ kind: "plain", text: "a b\n" }]);
  assert.deepEqual(runsOf("a b\n", true).map(({ kind, text }) => [kind, text]), [["plain", "a"], ["blank", "·"], ["plain", "b"], ["blank", "↵\n"]]);
  assert.deepEqual(runsOf("\u{202e}x", false).map(({ text }) => text), ["U+202E", "x"]);
});
