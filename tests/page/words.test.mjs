import { test } from "node:test";
import assert from "node:assert/strict";
import { wordsOf, differences, joinedMarks } from "../../src/preview/assets/words.js";

// What is left of a text when the marked stretches are taken out.
const rest = (text, marks) => {
  let kept = "";
  let at = 0;
  for (const [from, to] of marks) {
    kept += text.slice(at, from);
    at = to;
  }
  return kept + text.slice(at);
};
const marked = (text, marks) => marks.map(([from, to]) => text.slice(from, to));

test("words, blanks and marks make up the text", () => {
  for (const text of ["", "It's  12 words,\nno more.", "中文 é 😀 \u{202e}x"]) assert.equal(wordsOf(text).join(""), text);
});

test("differences are those of whole words", () => {
  const [left, right] = ["Does it follow that birds sing?", "Does that follow: birds sing well?"];
  const [a, b] = differences(left, right);
  assert.deepEqual(marked(left, a), ["it", "that "]);
  assert.deepEqual(marked(right, b), ["that", ":", " well"]);
});

test("what is not marked is the same on both sides", () => {
  let seed = 7;
  const draw = (most) => (seed = (seed * 48271) % 2147483647) % most;
  const some = () => Array.from({ length: draw(40) }, () => ["a", "b", "c", "dd"][draw(4)]).join(" ");
  for (let i = 0; i < 500; i++) {
    const [left, right] = [some(), some()];
    const [a, b] = differences(left, right);
    assert.equal(rest(left, a), rest(right, b), `${left} | ${right}`);
  }
});

test("equal texts do not differ, and unlike ones differ as a whole", () => {
  assert.deepEqual(differences("the same", "the same"), [[], []]);
  const long = (word) => Array.from({ length: 2000 }, (_, i) => `${word}${i}`).join(" ");
  const [a, b] = differences(long("x"), long("y"));
  assert.equal(rest(long("x"), a), rest(long("y"), b));
  assert.deepEqual(differences("", "new"), [[], [[0, 3]]]);
});

test("stretches with blanks between them are shown as one", () => {
  assert.deepEqual(joinedMarks("one two, three", [[0, 3], [4, 7], [9, 14]]), [[0, 7], [9, 14]]);
  assert.deepEqual(joinedMarks("", []), []);
});
