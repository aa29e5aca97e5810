// The first view: what was found, and what the recipe makes of its tasks.

import { el, byId, grouped, percent, plural } from "./dom.js";
import { SEVERITIES, countFindings } from "./data.js";
import { formatLink } from "./permalink.js";
import { treemap } from "./treemap.js";
import { findingsList } from "./findings.js";
import { setting, set } from "./theme.js";

// Tasks by cluster, in the order of their names.
export function clustersOf(tasks) {
  const clusters = new Map();
  for (const task of tasks) {
    const name = task.about.cluster;
    if (!clusters.has(name)) clusters.set(name, []);
    clusters.get(name).push(task);
  }
  return [...clusters].sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, members]) => ({ name, tasks: members }));
}

export function findingsOf(data, task) {
  return data.findings.filter((finding) => finding.task === task);
}

// The list of tasks at the side.
export function taskList(data, current) {
  const groups = clustersOf(data.tasks).map(({ name, tasks }) => el("li", {}, el("span", { class: "cluster-name" }, name.replaceAll("-", " ")),
    el("ul", {}, tasks.map((task) => {
      const { name: id, title, held_out: heldOut } = task.about;
      const counts = countFindings(findingsOf(data, id), data.codes);
      const worst = SEVERITIES.find((severity) => counts[severity] > 0);
      return el("li", {}, el("a", { href: formatLink({ task: id }), "aria-current": id === current ? "page" : null, class: heldOut ? "held-out" : null },
        el("span", { class: "task-title" }, title), heldOut && el("span", { class: "small" }, "held out"),
        worst && el("span", { class: `count ${worst}`, title: plural(counts[worst], worst) }, grouped(counts[worst]))));
    }))));
  const overview = el("a", { href: "#", class: "overview", "aria-current": current ? null : "page" }, "Overview");
  const wide = matchMedia("(min-width: 62rem)");
  const list = el("details", { open: wide.matches }, el("summary", {}, "Tasks"), overview, el("ul", {}, groups));
  wide.addEventListener("change", () => {
    list.open = wide.matches;
  });
  const nav = byId("tasks");
  const scrolled = nav.scrollTop;
  nav.replaceChildren(list);
  nav.scrollTop = scrolled;
  const here = nav.querySelector("[aria-current]");
  const below = here.offsetTop - nav.scrollTop;
  if (below < 0 || below > nav.clientHeight - 40) nav.scrollTop = here.offsetTop - nav.clientHeight / 2;
}

export function overview(data) {
  const prompts = data.tasks.reduce((sum, task) => sum + task.about.prompts, 0);
  const rows = data.tasks.reduce((sum, task) => sum + task.about.rows, 0);
  const held = data.tasks.filter((task) => task.about.held_out).length;
  const figure = (number, word) => el("div", { class: "number-card" }, el("b", {}, grouped(number)), el("span", {}, word));
  return [
    el("h1", {}, "What the templates make of the rows"),
    el("p", { class: "small" }, settingsLine(data)),
    el("div", { class: "numbers" }, figure(data.tasks.length, held > 0 ? `tasks, ${held} held out` : "tasks"),
      figure(data.tasks.reduce((sum, task) => sum + task.about.templates.length, 0), "templates"),
      figure(rows, "rows looked at"), figure(prompts, "prompts looked at")),
    findingsList(data.findings, data.codes),
    mixture(data),
    data.overlaps.some((overlap) => overlap.overlapping > 0) && overlaps(data.overlaps),
    data.left_out.length > 0 && leftOut(data.left_out),
  ];
}

// What the recipe says that decides how prompts come out.
function settingsLine({ recipe, tokenizer }) {
  const { lengths, shots, wrapper, cap } = recipe;
  const overflow = { shorten: "the longest field is shortened", drop: "what is longer is left out", right: "what is longer is cut on the right" }[lengths.overflow];
  return [
    `recipe ${recipe.name ?? ""}`,
    tokenizer ? `at most ${grouped(lengths.inputs)} tokens of inputs and ${grouped(lengths.targets)} of targets, ${overflow}` : "no tokenizer: tokens are not counted",
    shots > 0 && `up to ${plural(shots, "exemplar")}`,
    wrapper !== "none" && `markers of ${wrapper}`,
    cap !== null && `at most ${grouped(cap)} rows a split`,
  ].filter(Boolean).join(" · ");
}

function mixture(data) {
  const picture = el("div", { class: "picture" });
  const draw = () => {
    const byRate = setting("area") === "rate";
    const value = (task) => (byRate ? (task.about.rates?.asked ?? 0) * 1e6 : task.about.size);
    const clusters = clustersOf(data.tasks).map(({ name, tasks }) => ({
      name,
      tasks: tasks.map((task) => ({
        title: task.about.title, value: value(task), share: task.about.rates?.asked ?? 0, heldOut: task.about.held_out,
        link: formatLink({ task: task.about.name }), counts: countFindings(findingsOf(data, task.about.name), data.codes),
      })),
    }));
    const width = Math.max(320, picture.clientWidth || byId("main").clientWidth || 960);
    picture.replaceChildren(treemap(clusters, width, Math.max(260, Math.min(520, width * 0.46)), byRate ? "parts in a million" : "prompts"));
  };
  const choice = (name, label) => el("label", {}, el("input", { type: "radio", name: "area", value: name, checked: setting("area") === name, onchange: () => {
    set("area", name);
    draw();
  } }), ` ${label}`);
  requestAnimationFrame(draw);
  if (typeof ResizeObserver === "function") {
    let width = 0;
    new ResizeObserver(() => {
      if (picture.clientWidth !== width) {
        width = picture.clientWidth;
        draw();
      }
    }).observe(picture);
  }
  return el("section", { "aria-labelledby": "mixture-title" }, el("h2", { id: "mixture-title" }, "The mixture"),
    el("form", { class: "controls" }, el("span", {}, "Area stands for"), choice("prompts", "prompts"), choice("rate", "rate")),
    el("p", { class: "small" }, "Hatched: held out, not trained on. A dot stands for errors or warnings."), picture, ratesTable(data));
}

// The same as the picture, for whoever reads.
function ratesTable(data) {
  const from = data.compiled ? `realised in ${data.compiled.name}` : "as the mixture would draw from the rows there are";
  const line = (task) => {
    const { name, title, cluster, held_out: heldOut, rates, rows, prompts } = task.about;
    const counts = countFindings(findingsOf(data, name), data.codes);
    const number = (text) => el("td", { class: "number" }, text);
    return el("tr", { class: heldOut ? "held-out" : null }, el("th", { scope: "row" }, el("a", { href: formatLink({ task: name }) }, title)),
      el("td", {}, cluster.replaceAll("-", " ")), number(rates ? grouped(rates.examples) : "–"), number(rates ? grouped(rates.prompts) : "–"),
      number(heldOut ? "held out" : rates ? percent(rates.asked, 2) : "–"), number(rates && rates.realised !== null ? percent(rates.realised, 2) : "–"),
      number(grouped(rows)), number(grouped(prompts)), number(counts.error + counts.warning + counts.note || "·"));
  };
  const heads = ["Task", "Cluster", "Examples", "Prompts", "Rate asked", "Rate realised", "Rows seen", "Prompts seen", "Findings"];
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Rates" }, el("table", { class: "rates" },
    el("caption", {}, `Examples, prompts and rates; the rate realised is ${from}.`),
    el("thead", {}, el("tr", {}, heads.map((head, i) => el("th", { scope: "col", class: i > 1 ? "number" : null }, head)))),
    el("tbody", {}, clustersOf(data.tasks).flatMap(({ tasks }) => tasks.map(line)))));
}

function overlaps(all) {
  return el("section", {}, el("h2", {}, "Overlap of training and evaluation"), el("ul", {}, all.filter((overlap) => overlap.overlapping > 0).map((overlap) =>
    el("li", {}, `${overlap.task} (${overlap.role}): ${grouped(overlap.overlapping)} of ${grouped(overlap.rows)} rows, ${grouped(overlap.duplicates)} duplicates`))));
}

function leftOut(skipped) {
  return el("section", {}, el("h2", {}, "Left out"), el("details", {}, el("summary", {}, `${grouped(skipped.length)} tasks or splits`),
    el("ul", {}, skipped.map((entry) => el("li", {}, `${entry.task}${entry.split ? `, ${entry.split}` : ""}: ${entry.reason}`)))));
}
