// Which row is looked at: by number, one after the other, at random, or by a text that it holds.

import { el, byId, announce, grouped, plural } from "./dom.js";
import { post } from "./api.js";

// `on.pick({ split, pick })` is told of every choice, with `pick` as the server takes it.
export function rowPicker(place, on) {
  let task = null;
  let shown = { split: null, row: 0 };
  let draws = 0;
  const split = el("select", { onchange: () => on.pick({ split: split.value, pick: { row: 0 } }) });
  // What is being typed is not overwritten by the answer to what was asked before.
  let typing = false;
  const number = el("input", { type: "number", min: "0", class: "row-number", oninput: () => {
    typing = true;
  }, onblur: () => {
    typing = false;
  }, onchange: () => {
    typing = false;
    const row = Math.max(0, Math.min(rowsOf(shown.split) - 1, Math.floor(Number(number.value) || 0)));
    on.pick({ split: shown.split, pick: { row } });
  } });
  const of = el("span", { class: "small" });
  const before = el("button", { type: "button", title: "Row before (k)", "aria-label": "Row before", onclick: () => step(-1) }, "‹");
  const next = el("button", { type: "button", title: "Next row (j)", "aria-label": "Next row", onclick: () => step(1) }, "›");
  const random = el("button", { type: "button", title: "A random row (r)", onclick: () => draw() }, "random");
  const seed = el("input", { type: "number", min: "0", value: "17", class: "row-number seed", onchange: () => {
    draws = 0;
  } });
  const search = el("input", { type: "search", id: "search", placeholder: "Search rows", autocomplete: "off", spellcheck: "false", size: "12" });
  const hits = el("div", { class: "hits", hidden: true });
  place.replaceChildren(
    el("div", { class: "toolbar row-toolbar", role: "group", "aria-label": "Row" },
      el("label", {}, "split ", split), el("span", { class: "stepper" }, before, el("label", {}, "row ", number), next, of),
      el("span", { class: "chance" }, random, el("label", {}, "seed ", seed)),
      el("form", { class: "row-search", role: "search", onsubmit: (event) => {
        event.preventDefault();
        look();
      } }, el("label", { class: "unseen-label", for: "search" }, "Search the first thousand rows of the split"), search)),
    hits);
  search.addEventListener("keydown", (event) => {
    if (event.key === "Escape") closeHits();
    if (event.key === "ArrowDown") hits.querySelector("button")?.focus();
  });
  hits.addEventListener("keydown", (event) => {
    const buttons = [...hits.querySelectorAll("button")];
    const moved = buttons.indexOf(document.activeElement) + ({ ArrowDown: 1, ArrowUp: -1 }[event.key] ?? 0);
    if (event.key === "Escape") {
      closeHits();
      search.focus();
    } else if (event.key.startsWith("Arrow")) {
      event.preventDefault();
      (buttons[Math.min(moved, buttons.length - 1)] ?? search).focus();
    }
  });

  function rowsOf(name) {
    return task?.splits.find(([known]) => known === name)?.[1] ?? 0;
  }

  function step(by) {
    const row = shown.row + by;
    if (row >= 0 && row < rowsOf(shown.split)) on.pick({ split: shown.split, pick: { row } });
  }

  function draw() {
    if (rowsOf(shown.split) > 0) on.pick({ split: shown.split, pick: { random: { seed: Math.max(0, Math.floor(Number(seed.value) || 0)), draw: draws++ } } });
  }

  function closeHits() {
    hits.hidden = true;
    hits.replaceChildren();
  }

  async function look() {
    if (search.value.trim() === "") return closeHits();
    hits.hidden = false;
    try {
      const found = await post("search", { task: task.name, split: shown.split, text: search.value });
      const line = found.hits.length === 0 ? "No row holds that" : plural(found.hits.length, "row");
      hits.replaceChildren(el("p", { class: "small" }, `${line}; looked at ${grouped(found.looked_at)} of ${grouped(found.rows)}`),
        el("ul", {}, found.hits.map((hit) => el("li", {}, el("button", { type: "button", onclick: () => {
          closeHits();
          on.pick({ split: shown.split, pick: { row: hit.row } });
        } }, el("span", { class: "row-link" }, String(hit.row)), " ", hit.text[0], el("mark", {}, hit.text[1]), hit.text[2])))));
      announce(line);
    } catch (refusal) {
      hits.replaceChildren(el("p", { class: "failure" }, refusal.message));
    }
  }

  return {
    setTask(opened) {
      task = opened;
      split.replaceChildren(...task.splits.map(([name, rows]) => el("option", { value: name }, `${name} (${grouped(rows)})`)));
      closeHits();
    },
    show({ split: name, row }) {
      shown = { split: name, row };
      split.value = name;
      if (!typing) number.value = String(row);
      number.max = String(rowsOf(name) - 1);
      of.textContent = `of ${grouped(rowsOf(name))}`;
      before.disabled = row === 0;
      next.disabled = row + 1 >= rowsOf(name);
    },
    step,
    draw,
    focusSearch: () => byId("search").focus(),
  };
}
