import { test } from "node:test";
import assert from "node:assert/strict";
import { parseLink, formatLink } from "../../src/preview/assets/permalink.js";
import { squarify } from "../../src/preview/assets/treemap.js";
import { ticksOf } from "../../src/preview/assets/histogram.js";
import { filtered } from "../../src/preview/assets/findings.js";
import { found } from "../../src/preview/assets/search.js";

test("a link names a place, whatever its names hold", () => {
  for (const place of [
    { task: null, template: null, row: null, other: null },
    { task: "rte", template: null, row: null, other: null },
    { task: "rte", template: "a/b #c%", row: "train:5", other: "d" },
    { task: "rte", template: "a", row: null, other: "d" },
  ]) assert.deepEqual(parseLink(formatLink(place)), place);
  assert.equal(formatLink({ task: "rte", template: "a", row: "train:5" }), "#rte/a/train:5");
  assert.equal(parseLink("#rte/%zz").template, "%zz");
});

test("areas are as the values, within the rectangle", () => {
  const items = [60, 1, 30, 0, 9].map((value) => ({ value }));
  const placed = squarify(items, { x: 5, y: 7, width: 40, height: 25 });
  assert.equal(placed.length, 4);
  for (const { item, x, y, width, height } of placed) {
    assert.ok(Math.abs(width * height - item.value * 10) < 1e-6);
    assert.ok(x >= 5 - 1e-9 && y >= 7 - 1e-9 && x + width <= 45 + 1e-9 && y + height <= 32 + 1e-9);
  }
  assert.deepEqual(squarify([], { x: 0, y: 0, width: 1, height: 1 }), []);
});

test("ticks are round numbers", () => {
  assert.deepEqual(ticksOf(1024), [0, 200, 400, 600, 800, 1000]);
  assert.deepEqual(ticksOf(5), [0, 1, 2, 3, 4, 5]);
});

const codes = { leak: { severity: "error" }, odd: { severity: "note" } };
const finding = (over) => ({ code: "leak", task: "rte", template: "a", message: "said", file: "rte.toml", allowed: null, text: [["", "Mark", ""]], rows: [], ...over });

test("a filter takes away what does not fit", () => {
  const all = [finding({}), finding({ code: "odd", task: "cb" }), finding({ allowed: "meant" })];
  const filter = (over) => ({ severities: new Set(["error", "note"]), code: "", task: "", text: "", allowed: false, ...over });
  const left = (over) => filtered(all, codes, filter(over)).map((one) => all.indexOf(one));
  assert.deepEqual(left({}), [0, 1]);
  assert.deepEqual(left({ allowed: true }), [0, 1, 2]);
  assert.deepEqual(left({ severities: new Set(["note"]) }), [1]);
  assert.deepEqual(left({ code: "leak" }), [0]);
  assert.deepEqual(left({ task: "cb" }), [1]);
  assert.deepEqual(left({ text: "MARK" }), [0, 1]);
  assert.deepEqual(left({ text: "absent" }), []);
});

test("a search finds tasks, templates, findings and prompts", () => {
  const side = (text) => ({ pieces: [[text, 0]], tokens: [] });
  const data = {
    findings: [finding({ rows: [{ split: "train", row: 3 }] })],
    tasks: [{
      about: { name: "rte", title: "RTE", dataset: "RTE", cluster: "nli", templates: [{ name: "can-we-say" }] },
      texts: [],
      rows: [{ split: "train", row: 3, prompts: [{ template: "can-we-say", failure: null, inputs: side("It rains."), targets: side("yes") }] }],
    }],
  };
  const kinds = (query) => found(data, query).map(([kind]) => kind);
  assert.deepEqual(kinds("rte"), ["Tasks"]);
  assert.deepEqual(kinds("say"), ["Templates"]);
  assert.deepEqual(kinds("said"), ["Findings"]);
  assert.deepEqual(kinds("RAINS"), ["Prompts"]);
  assert.deepEqual(kinds(" "), []);
  assert.equal(found(data, "said")[0][1][0].link, "#rte/a/train:3");
});
