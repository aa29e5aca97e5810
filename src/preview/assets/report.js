// The page of a report: which view an address stands for.

import { byId, announce } from "./dom.js";
import { readData, rowName } from "./data.js";
import { parseLink } from "./permalink.js";
import { applyTheme, themeControl, setting, set } from "./theme.js";
import { overview, taskList } from "./overview.js";
import { placeIn, linkTo, taskView, promptsSection, printed } from "./task.js";
import { searchField } from "./search.js";
import { keyboard } from "./keys.js";

applyTheme();
const data = readData();
let shown = null;

function draw({ moved = false } = {}) {
  const link = parseLink(location.hash);
  const task = data.tasks.find((candidate) => candidate.about.name === link.task) ?? null;
  const main = byId("main");
  const before = shown;
  shown = task ? { task, place: placeIn(task, link) } : null;
  if (before?.task !== task || !before) taskList(data, task?.about.name ?? null);
  if (task) {
    const missing = link.row && !task.rows.some((row) => rowName(row) === link.row) ? link.row : null;
    if (before?.task === task) keepingFocus(main, () => byId("prompts").replaceWith(promptsSection(data, task, shown.place, missing)));
    else main.replaceChildren(...taskView(data, task, shown.place, missing).filter(Boolean));
    document.title = `${task.about.title} · flanc audit`;
  } else {
    main.replaceChildren(...overview(data).filter(Boolean));
    document.title = `${data.recipe.name ?? "recipe"} · flanc audit`;
  }
  if (!moved) return;
  if (before?.task !== task) {
    window.scrollTo(0, 0);
    main.focus({ preventScroll: true });
  }
  if (task) {
    const card = main.querySelector(".prompt.current");
    if (before?.task === task || link.template) card?.scrollIntoView({ block: "nearest", inline: "nearest" });
    const row = task.rows[shown.place.row];
    announce([task.about.title, task.about.templates[shown.place.template].name, row && `row ${rowName(row)}`].filter(Boolean).join(", "));
  }
}

// Replaces what may hold the focus, and gives it to what has come in its place.
function keepingFocus(main, replace) {
  const name = document.activeElement?.dataset?.focus;
  replace();
  if (!name) return;
  const control = main.querySelector(`[data-focus="${name}"]`);
  (control?.disabled ? main.querySelector("[data-focus=row]") : control)?.focus({ preventScroll: true });
}

function go(change) {
  if (!shown) return;
  const { task, place } = shown;
  const next = { ...place, ...change(place) };
  const within = (at, count) => Math.max(0, Math.min(count - 1, at));
  next.row = within(next.row, task.rows.length);
  next.template = within(next.template, task.about.templates.length);
  if (next.other === next.template) next.other = null;
  location.hash = linkTo(task, next);
}

function toggle(name) {
  set(name, !setting(name));
  announce(`${name} ${setting(name) ? "on" : "off"}`);
  draw();
}

themeControl(byId("theme"));
byId("recipe").textContent = `recipe ${data.recipe.name ?? ""}`;
byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("main").focus();
});
searchField(data);
keyboard({
  j: () => go(({ row }) => ({ row: row + 1 })),
  k: () => go(({ row }) => ({ row: row - 1 })),
  l: () => go(({ template }) => ({ template: template + 1 })),
  h: () => go(({ template }) => ({ template: template - 1 })),
  c: () => go(({ template, other }) => ({ other: other === null ? (template === 0 ? 1 : template - 1) : null })),
  o: () => toggle("origins"),
  t: () => toggle("tokens"),
  w: () => toggle("blanks"),
  g: () => {
    location.hash = "";
  },
});
window.addEventListener("hashchange", () => draw({ moved: true }));
window.addEventListener("redraw", () => draw());
window.addEventListener("beforeprint", () => byId("print").replaceChildren(...(shown ? printed(shown.task) : [])));
window.addEventListener("afterprint", () => byId("print").replaceChildren());
draw({ moved: location.hash !== "" });
