// The search field: tasks, templates, findings, and the texts of prompts.

import { el, byId, announce, plural } from "./dom.js";
import { textOf, rowName } from "./data.js";
import { formatLink } from "./permalink.js";

const MOST = 8;

// What holds the words, by kind; of each at most MOST.
export function found(data, query) {
  const words = query.trim().toLowerCase();
  if (!words) return [];
  const groups = [["Tasks", []], ["Templates", []], ["Findings", []], ["Prompts", []]];
  const [[, tasks], [, templates], [, findings], [, prompts]] = groups;
  const has = (text) => text.toLowerCase().includes(words);
  for (const task of data.tasks) {
    const { name, title, dataset, cluster } = task.about;
    if (tasks.length < MOST && [name, title, dataset, cluster].some(has)) tasks.push({ text: title, about: cluster, link: formatLink({ task: name }) });
    for (const template of task.about.templates) {
      if (templates.length < MOST && has(template.name)) templates.push({ text: template.name, about: title, link: formatLink({ task: name, template: template.name }) });
    }
  }
  for (const finding of data.findings) {
    if (findings.length >= MOST) break;
    if (has(`${finding.message}\n${finding.code}`)) {
      const row = finding.rows[0] ? rowName(finding.rows[0]) : null;
      findings.push({ text: finding.message, about: finding.task, link: formatLink({ task: finding.task, template: finding.template, row }) });
    }
  }
  for (const hit of promptHits(data, has)) {
    prompts.push(hit);
    if (prompts.length >= MOST) break;
  }
  return groups.filter(([, hits]) => hits.length > 0);
}

function* promptHits(data, has) {
  for (const task of data.tasks) {
    for (const row of task.rows) {
      const prompt = row.prompts.find((candidate) => !candidate.failure && ["inputs", "targets"].some((side) => has(textOf(task, candidate[side]))));
      if (prompt) {
        yield { text: textOf(task, prompt.inputs).slice(0, 90), about: `${task.about.title} ${rowName(row)}`, link: formatLink({ task: task.about.name, template: prompt.template, row: rowName(row) }) };
      }
    }
  }
}

export function searchField(data) {
  const field = byId("search");
  const results = byId("results");
  const close = () => {
    results.hidden = true;
  };
  const draw = () => {
    const groups = found(data, field.value);
    results.hidden = field.value.trim() === "";
    const hits = groups.reduce((sum, [, entries]) => sum + entries.length, 0);
    results.replaceChildren(...(groups.length === 0 ? [el("p", { class: "empty" }, "Nothing holds that.")] : groups.map(([name, entries]) =>
      el("section", {}, el("h2", {}, name), el("ul", {}, entries.map((entry) => el("li", {}, el("a", { href: entry.link, onclick: close }, el("span", {}, entry.text), el("small", {}, entry.about)))))))));
    if (!results.hidden) announce(plural(hits, "result"));
  };
  let timer = 0;
  field.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(draw, 120);
  });
  field.addEventListener("focus", () => {
    if (field.value.trim() !== "") draw();
  });
  const links = () => [...results.querySelectorAll("a")];
  const move = (event) => {
    if (event.key === "Escape") {
      // The focus opens what there is.
      field.focus();
      close();
      event.stopPropagation();
      return;
    }
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || results.hidden) return;
    event.preventDefault();
    const at = links().indexOf(document.activeElement) + step;
    (at < 0 ? field : links()[Math.min(at, links().length - 1)])?.focus();
  };
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") links()[0]?.click();
    move(event);
  });
  results.addEventListener("keydown", move);
  document.addEventListener("click", (event) => {
    if (!results.contains(event.target) && event.target !== field) close();
  });
}
