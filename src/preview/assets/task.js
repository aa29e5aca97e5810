// One task: its figures, its findings, and its templates side by side on one row.

import { el, grouped, percent, announce } from "./dom.js";
import { rowName, textOf } from "./data.js";
import { formatLink } from "./permalink.js";
import { differences, joinedMarks } from "./words.js";
import { histogram, balance } from "./histogram.js";
import { setting, set } from "./theme.js";
import { promptCard, legend } from "./prompts.js";
import { findingsList, findingTitle } from "./findings.js";
import { findingsOf } from "./overview.js";

// What a link leaves open: the first row, the first template.
export function placeIn(task, link) {
  const rows = task.rows.map(rowName);
  const row = Math.max(0, rows.indexOf(link.row));
  const names = task.about.templates.map((template) => template.name);
  const template = Math.max(0, names.indexOf(link.template));
  const other = link.other ? names.indexOf(link.other) : -1;
  return { row, template, other: other >= 0 && other !== template ? other : null };
}

// The link to a place, as numbers of row and template.
export function linkTo(task, { row, template, other }) {
  const names = task.about.templates.map((entry) => entry.name);
  const shown = task.rows[row];
  return formatLink({ task: task.about.name, template: names[template], row: shown ? rowName(shown) : null, other: other === null ? null : names[other] });
}

export function taskView(data, task, place, missing) {
  const { about } = task;
  const found = findingsOf(data, about.name);
  // What the definition allows need not come first.
  const open = found.some((finding) => !finding.allowed);
  return [
    el("header", { class: "task-head" }, el("p", { class: "over" }, about.cluster.replaceAll("-", " ")),
      el("h1", {}, about.title, about.held_out && el("span", { class: "chip held-out" }, "held out")),
      el("p", { class: "small" }, [about.name, about.corpus, splitsLine(about), about.licence].filter(Boolean).join(" · "))),
    open && findingsList(found, data.codes, { task: about.name }),
    promptsSection(data, task, place, missing),
    !open && found.length > 0 && findingsList(found, data.codes, { task: about.name }),
    figures(data, task),
    definition(task),
  ];
}

function splitsLine(about) {
  return about.splits.map(([name, count]) => `${name} ${grouped(count)}`).join(", ");
}

// ---- Prompts

// The part of the view that a step to another row or template changes.
export function promptsSection(data, task, place, missing) {
  const row = task.rows[place.row];
  const section = (...children) => el("section", { id: "prompts", "aria-labelledby": "prompts-title" }, el("h2", { id: "prompts-title" }, "Prompts"), ...children);
  if (!row) return section(el("p", { class: "empty" }, "No row of this task is in the report."));
  const show = { tokens: setting("tokens") && data.tokenizer !== null, blanks: setting("blanks"), origins: setting("origins"),
    compare: place.other !== null, special: data.tokenizer?.special };
  return section(toolbar(data, task, place), missing && el("p", { class: "notice" }, `The row ${missing} is not in this report; here is another.`),
    legend(task, show), row.failure ? el("p", { class: "failure" }, el("b", {}, "No prompt: "), row.failure.detail)
      : place.other === null ? grid(data, task, row, place, show) : compared(task, row, place, show));
}

function toolbar(data, task, place) {
  const go = (change) => {
    location.hash = linkTo(task, { ...place, ...change });
  };
  const last = task.rows.length - 1;
  const names = task.about.templates.map((template) => template.name);
  const select = (label, chosen, options, onchange) => el("label", {}, `${label} `, el("select", { "data-focus": label, onchange: (event) => onchange(Number(event.target.value)) },
    options.map(([value, text]) => el("option", { value, selected: value === chosen }, text))));
  const toggle = (name, label, key) => el("label", { class: "toggle" }, el("input", { type: "checkbox", "data-focus": name, checked: setting(name), onchange: (event) => {
    set(name, event.target.checked);
    announce(`${label} ${event.target.checked ? "shown" : "hidden"}`);
    window.dispatchEvent(new CustomEvent("redraw"));
  } }), ` ${label}`, el("kbd", { "aria-hidden": "true" }, key));
  return el("div", { class: "toolbar", role: "group", "aria-label": "Row and view" },
    el("span", { class: "stepper" },
      el("button", { type: "button", disabled: place.row === 0, "data-focus": "before", title: "Row before (k)", "aria-label": "Row before", onclick: () => go({ row: place.row - 1 }) }, "‹"),
      select("row", place.row, task.rows.map((row, i) => [i, rowName(row)]), (row) => go({ row })),
      el("button", { type: "button", disabled: place.row >= last, "data-focus": "next", title: "Next row (j)", "aria-label": "Next row", onclick: () => go({ row: place.row + 1 }) }, "›"),
      el("span", { class: "small" }, `${place.row + 1} of ${task.rows.length}`)),
    select("template", place.template, names.map((name, i) => [i, name]), (template) => go({ template, other: place.other === template ? null : place.other })),
    select("compare with", place.other ?? -1, [[-1, "none"], ...names.map((name, i) => [i, name]).filter(([i]) => i !== place.template)], (other) => go({ other: other < 0 ? null : other })),
    toggle("origins", "origins", "o"), data.tokenizer && toggle("tokens", "tokens", "t"), toggle("blanks", "white space", "w"));
}

function promptOf(row, name) {
  return row.prompts.find((prompt) => prompt.template === name);
}

function grid(data, task, row, place, show) {
  const cards = task.about.templates.map((template, i) => {
    const prompt = promptOf(row, template.name);
    if (!prompt) return null;
    return promptCard(task, prompt, show, {
      current: i === place.template,
      link: linkTo(task, { ...place, template: i }),
      findings: saidOf(data, prompt),
      actions: [i !== place.template && el("a", { class: "action", href: linkTo(task, { ...place, other: i }), title: `Compare with ${task.about.templates[place.template].name}` }, "compare")],
    });
  });
  return el("div", { class: "cards" }, cards);
}

function saidOf(data, prompt) {
  return (prompt.findings ?? []).map((entry) => (typeof entry === "number" ? data.findings[entry] : entry)).map((finding) => findingTitle(finding, data.codes, "span"));
}

function compared(task, row, place, show) {
  const names = [place.template, place.other].map((i) => task.about.templates[i].name);
  const [left, right] = names.map((name) => promptOf(row, name));
  const marks = [{}, {}];
  if (left && right && !left.failure && !right.failure) {
    for (const side of ["inputs", "targets"]) {
      const texts = [textOf(task, left[side]), textOf(task, right[side])];
      differences(...texts).forEach((found, i) => {
        marks[i][side] = joinedMarks(texts[i], found);
      });
    }
  }
  const card = (prompt, i, place_) => prompt && promptCard(task, prompt, { ...show, marks: marks[i] }, { current: i === 0, link: linkTo(task, place_) });
  return el("div", { class: "cards two" }, card(left, 0, { ...place, other: null }), card(right, 1, { ...place, template: place.other, other: null }));
}

// ---- Figures

function figures(data, task) {
  const { tokens, labels, positions } = task.figures;
  const { lengths } = data.recipe;
  const shown = [];
  if (tokens) {
    shown.push(histogram("tokens of inputs", tokens.inputs, lengths.inputs, tokens.prompts), histogram("tokens of targets", tokens.targets, lengths.targets, tokens.prompts));
  }
  if (labels.length > 0) shown.push(balance("answers", labels));
  if (positions.length > 1) shown.push(balance("place of the answer among the options", positions.map((count, i) => [`option ${i + 1}`, count])));
  return el("section", { "aria-labelledby": "figures-title" }, el("h2", { id: "figures-title" }, "Figures"),
    el("div", { class: "figures" }, shown), facts(data, task));
}

function facts(data, task) {
  const { about, figures: { tokens, self_bleu: selfBleu, edit_distance: distance } } = task;
  const pays = tokens ? Object.entries(tokens.pays).map(([field, count]) => `${field} in ${grouped(count)}`).join(", ") : "";
  const entries = [
    ["rows looked at", `${grouped(about.rows)}${about.filtered ? `, ${grouped(about.filtered)} filtered out` : ""}`],
    ["prompts looked at", grouped(about.prompts)],
    about.rates && ["rate asked", percent(about.rates.asked, 3)],
    about.rates && about.rates.realised !== null && ["rate realised", percent(about.rates.realised, 3)],
    tokens && ["tokens that carry loss", percent(tokens.loss_share)],
    pays && ["cut from", pays],
    selfBleu !== null && ["self-BLEU of templates", selfBleu.toFixed(2)],
    distance !== null && ["edit distance of templates", distance.toFixed(2)],
  ].filter(Boolean);
  return el("dl", { class: "facts" }, entries.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

function definition(task) {
  const { about } = task;
  return el("section", { class: "definition" }, el("h2", {}, "Definition"), el("p", { class: "small" }, about.file),
    el("dl", { class: "fields" }, about.filter && [el("dt", {}, "filter"), el("dd", {}, el("code", {}, about.filter))],
      about.fields.map(([name, expression]) => [el("dt", {}, name), el("dd", {}, el("code", {}, expression))])),
    about.templates.map((template) => el("details", {}, el("summary", {}, template.name, " ", el("span", { class: `chip ${template.kind}` }, template.kind.replace("-", " "))),
      el("pre", {}, template.inputs), template.targets !== null && el("pre", { class: "targets-source" }, template.targets))));
}

// ---- Print

// The task's prompts in full, all rows and templates.
export function printed(task) {
  const show = { tokens: false, blanks: false, origins: true, whole: true };
  return [el("h1", {}, `${task.about.title}: prompts`), ...task.rows.map((row) => el("section", {}, el("h2", {}, rowName(row)),
    row.failure ? el("p", {}, row.failure.detail) : row.prompts.map((prompt) => promptCard(task, prompt, show))))];
}
