// What an editor shows of a template's source.

import test from "node:test";
import assert from "node:assert/strict";
import { templateStretches, marked, lineColumn } from "../../src/serve/assets/source.js";

const parts = (text) => templateStretches(text).map(({ from, to, kind }) => [kind, text.slice(from, to)]);

test("tags end at their closing signs, but for those in quotation marks", () => {
  assert.deepEqual(parts("a {{ x }}{% if y %}b{# c }} #}"), [["text", "a "], ["expression", "{{ x }}"], ["statement", "{% if y %}"], ["text", "b"], ["comment", "{# c }} #}"]]);
  assert.deepEqual(parts("{{ '}}' ~ \"\\\"}}\" }}!"), [["expression", "{{ '}}' ~ \"\\\"}}\" }}"], ["text", "!"]]);
  assert.deepEqual(parts("{{ open"), [["expression", "{{ open"]]);
  assert.deepEqual(parts("{ {x} }"), [["text", "{ {x} }"]]);
  assert.deepEqual(parts(""), []);
});

test("stretches are the text, whatever it is", () => {
  for (const text of ["{{{{ }} }}", "}}{{", "{#{%{{", "a\n{{ b }}\n", "😀{{ x }}"]) assert.equal(parts(text).map(([, part]) => part).join(""), text);
});

test("what is wrong is marked to the character, and the worst is shown", () => {
  const text = "a {{ xyz }}";
  const wrong = (diagnostics) => marked(templateStretches(text), text.length, diagnostics).filter((part) => part.wrong).map(({ from, to, wrong: severity }) => [text.slice(from, to), severity]);
  assert.deepEqual(wrong([{ from: 5, to: 8, severity: "error" }]), [["xyz", "error"]]);
  assert.deepEqual(wrong([{ from: 5, to: 8, severity: "warning" }, { from: 6, to: 7, severity: "error" }]), [["x", "warning"], ["y", "error"], ["z", "warning"]]);
  // A place at the end, or of another text.
  assert.deepEqual(wrong([{ from: 11, to: 11, severity: "error" }]), [["}", "error"]]);
  assert.deepEqual(wrong([{ from: 40, to: 50, severity: "error" }]), [["}", "error"]]);
});

test("lines and columns count from one", () => {
  assert.deepEqual([lineColumn("ab\ncd", 0), lineColumn("ab\ncd", 2), lineColumn("ab\ncd", 4)], [[1, 1], [1, 3], [2, 2]]);
});
