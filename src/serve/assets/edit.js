// The editor: a task's templates and fields, a row, and what becomes of it while somebody types.

import { el, byId, announce, plural } from "./dom.js";
import { download, get, post } from "./api.js";
import { parseLink, formatLink } from "./permalink.js";
import { applyTheme, themeControl, setting, set } from "./theme.js";
import { promptCard, legend } from "./prompts.js";
import { textOf } from "./data.js";
import { differences } from "./words.js";
import { keyboard } from "./keys.js";
import { partEditor, spoken } from "./editor.js";
import { rowPicker } from "./rows.js";
import { checksControl } from "./run.js";
import { flagsDialog } from "./flags.js";

// Rows of each split over which the audit looks at what is typed, and how long it waits for more, in milliseconds.
const FEW_ROWS = 20;
const REST = 250;

applyTheme();
const session = await get("session").catch((refusal) => {
  byId("problems").replaceChildren(el("p", { class: "failure" }, refusal.message));
  throw refusal;
});
// Edits by task, with the version they were made to: they stay when another task is looked at.
const drafts = new Map();
let task = null;
let opened = null;
let template = null;
let row = null;
let answer = null;
let editors = new Map();
let asking = false;
let again = false;
let typedAt = null;
let findingsTimer = 0;

// ---- What is edited

function draft() {
  return drafts.get(task.name);
}

function textOfPart(name) {
  return draft().edits[name] ?? savedText(name);
}

function savedText(name) {
  return opened.parts.find((part) => part.part === name)?.text ?? "";
}

function edited() {
  return { task: task.name, version: draft().version, edits: draft().edits };
}

function edit(name, text) {
  if (text === savedText(name)) delete draft().edits[name];
  else draft().edits[name] = text;
  editors.get(name)?.setChanged(name in draft().edits);
  showUnsaved();
  typedAt = performance.now();
  refresh();
}

function revert(names) {
  for (const name of names) {
    delete draft().edits[name];
    editors.get(name)?.setText(savedText(name));
    editors.get(name)?.setChanged(false);
  }
  showUnsaved();
  announce("reverted");
  refresh();
}

function showUnsaved() {
  const here = Object.keys(draft().edits).length;
  const elsewhere = [...drafts].filter(([name, { edits }]) => name !== task.name && Object.keys(edits).length > 0).map(([name]) => name);
  byId("save").disabled = here === 0;
  byId("revert").disabled = here === 0;
  byId("unsaved").textContent = [here > 0 && plural(here, "unsaved edit"), elsewhere.length > 0 && `also in ${elsewhere.join(", ")}`].filter(Boolean).join("; ");
}

// ---- Where we are

async function openTask(name) {
  const known = session.tasks.find((candidate) => candidate.name === name) ?? session.tasks[0];
  opened = await post("open", { task: known.name });
  task = known;
  const kept = drafts.get(task.name);
  if (!kept || Object.keys(kept.edits).length === 0) drafts.set(task.name, { version: opened.version, edits: {} });
  byId("task").value = task.name;
  picker.setTask(task);
  byId("template").replaceChildren(...opened.templates.map(([known_]) => el("option", { value: known_ }, known_)));
  showNotice();
}

function showNotice() {
  const shared = [...new Set(Object.values(opened.shared).flat())];
  const lines = [!session.writable && "These definitions are part of the program: try what you like; to save, start with --templates DIR.",
    shared.length > 0 && `Parts of this definition are shared with ${shared.join(", ")}.`].filter(Boolean);
  byId("notice").hidden = lines.length === 0;
  byId("notice").textContent = lines.join(" ");
}

// Follows the address: task, template and row.
async function follow() {
  const link = parseLink(location.hash);
  try {
    if (!task || (link.task && link.task !== task.name)) await openTask(link.task);
  } catch (refusal) {
    showProblems(refusal.diagnostics);
    return;
  }
  const names = opened.templates.map(([name]) => name);
  template = names.includes(link.template) ? link.template : names[0];
  byId("template").value = template;
  const [split, number] = [link.row?.slice(0, link.row.lastIndexOf(":")), Number(link.row?.slice(link.row.lastIndexOf(":") + 1))];
  const rows = task.splits.find(([name]) => name === split)?.[1] ?? 0;
  const first = task.splits.find(([, count]) => count > 0) ?? task.splits[0];
  row = rows > 0 ? { split, pick: { row: Math.max(0, Math.min(rows - 1, Math.floor(number) || 0)) } } : { split: first[0], pick: { row: 0 } };
  picker.show({ split: row.split, row: row.pick.row });
  drawEditors();
  showUnsaved();
  byId("report").href = `./${location.hash}`;
  refresh();
}

function moveTo(change) {
  location.hash = formatLink({ task: task.name, template, row: `${row.split}:${row.pick.row ?? 0}`, ...change });
}

function stepTemplate(by) {
  const names = opened.templates.map(([name]) => name);
  const at = names.indexOf(template) + by;
  if (at >= 0 && at < names.length) moveTo({ template: names[at] });
}

// ---- The editors

function drawEditors() {
  const own = opened.parts.filter((part) => part.part.startsWith("template/") && part.part.slice(9, part.part.lastIndexOf("/")) === template);
  const fields = opened.parts.filter((part) => !part.part.startsWith("template/"));
  const wanted = [...own, ...fields].map((part) => part.part);
  // The same editors stay, and with them the caret.
  if (wanted.join("\n") === [...editors.keys()].join("\n")) return;
  editors = new Map();
  const make = (part) => {
    const name = part.part;
    const expression = !name.startsWith("template/");
    const label = name.slice(name.lastIndexOf("/") + 1);
    const note = part.file !== opened.parts[0].file || opened.shared[part.file]?.length ? part.file : null;
    const editor = partEditor({ name, label, text: textOfPart(name), expression, note }, {
      input: (text) => edit(name, text),
      leave: () => byId("main").focus(),
      revert: () => revert([name]),
    });
    editor.setChanged(name in draft().edits);
    editors.set(name, editor);
    return editor.node;
  };
  byId("template-parts").replaceChildren(...own.map(make));
  byId("field-parts").replaceChildren(...fields.map(make));
  byId("source-title").textContent = template;
}

// ---- What becomes of the row

// One request at a time; what is typed meanwhile goes with the next.
async function refresh() {
  if (asking) {
    again = true;
    return;
  }
  asking = true;
  do {
    again = false;
    const typed = typedAt;
    const place = `${task.name}/${template}`;
    try {
      const shown = await post("draft", { edited: edited(), template, row, compare: setting("compare") });
      if (place === `${task.name}/${template}`) show(shown, typed);
    } catch (refusal) {
      refused(refusal);
    }
  } while (again);
  asking = false;
  clearTimeout(findingsTimer);
  findingsTimer = setTimeout(look, REST);
}

function show(shown, typed) {
  answer = shown;
  // A random row has a number now; going back returns to it.
  if (row.pick.random) {
    row = { split: shown.split, pick: { row: shown.row } };
    history.replaceState(null, "", formatLink({ task: task.name, template, row: `${shown.split}:${shown.row}` }));
    byId("report").href = `./${location.hash}`;
  }
  picker.show(shown);
  drawPrompt();
  byId("features").textContent = shown.features;
  const wrong = new Map([...editors.keys()].map((name) => [name, []]));
  const others = [];
  for (const diagnostic of shown.diagnostics) (wrong.get(diagnostic.part) ?? others).push(diagnostic);
  for (const [name, editor] of editors) {
    editor.setErrors(wrong.get(name));
    if (name.startsWith("field/") && shown.prompt) editor.setValue(valueOf(shown.fields[name.slice(6)]));
  }
  showProblems(others);
  if (typed !== null) {
    requestAnimationFrame(() => performance.measure("key to screen", { start: typed, end: performance.now() }));
    const errors = shown.diagnostics.filter((diagnostic) => diagnostic.severity === "error").length;
    announce(errors > 0 ? plural(errors, "error") : "prompt updated");
    typedAt = null;
  }
}

function valueOf(value) {
  if (value === undefined) return "";
  return value.length > 300 ? `${value.slice(0, 300)}…` : value;
}

function drawPrompt() {
  const { prompt, saved, origins } = answer;
  const place = byId("prompt");
  place.classList.toggle("stale", !prompt);
  if (!prompt) {
    // What was there stays to look at, unless it is another prompt.
    if (place.dataset.of !== `${task.name}/${template}`) place.replaceChildren(el("p", { class: "empty" }, "No prompt while the definition is not in order."));
    return;
  }
  place.dataset.of = `${task.name}/${template}`;
  const of = { origins, texts: [] };
  const view = { tokens: setting("tokens") && session.tokenizer !== null, blanks: setting("blanks"), origins: setting("origins"),
    compare: saved !== null, special: session.tokenizer?.special };
  const marks = [{}, {}];
  if (saved && !saved.failure && !prompt.failure) {
    for (const side of ["inputs", "targets"]) {
      [marks[0][side], marks[1][side]] = differences(textOf(of, saved[side]), textOf(of, prompt[side]));
    }
  }
  const card = (shown, i, word) => el("div", {}, saved && el("p", { class: "label" }, word), promptCard(of, shown, { ...view, marks: marks[i] }, { current: i === 1 }));
  place.replaceChildren(legend(of, view), el("div", { class: saved ? "cards two" : "cards one" }, card(prompt, 1, "as edited"), saved && card(saved, 0, "as saved")));
}

function showProblems(diagnostics) {
  byId("problems").replaceChildren(...(diagnostics.length > 0 ? [el("ul", { class: "complaints" }, diagnostics.map((diagnostic) =>
    el("li", { class: diagnostic.severity }, diagnostic.part && [el("a", { href: linkOf(diagnostic.part) }, diagnostic.part), " "], ...spoken(diagnostic))))] : []));
}

function linkOf(part) {
  const name = part.startsWith("template/") ? part.slice(9, part.lastIndexOf("/")) : template;
  return formatLink({ task: task.name, template: name, row: `${row.split}:${row.pick.row ?? 0}` });
}

function refused(refusal) {
  showProblems(refusal.diagnostics);
  if (refusal.code === "changed-on-disk") {
    byId("problems").append(el("button", { type: "button", onclick: () => reread() }, "Read it again, keeping my edits"));
  }
  if (refusal.code === "bundled-definitions") {
    byId("problems").append(el("button", { type: "button", onclick: () => downloadDefinition() }, "Download the edited definition"));
  }
  announce(refusal.message);
}

async function downloadDefinition() {
  const { files } = await post("text", { edited: edited() });
  for (const [path, text] of files) download(path.slice(path.lastIndexOf("/") + 1), text, "application/toml");
}

// Takes the file as it is now; edits stay where their part is still there.
async function reread() {
  const { edits } = draft();
  try {
    await openTask(task.name);
    const names = new Set(opened.parts.map((part) => part.part));
    const kept = Object.entries(edits).filter(([name, text]) => names.has(name) && text !== savedText(name));
    drafts.set(task.name, { version: opened.version, edits: Object.fromEntries(kept) });
    editors = new Map();
    await follow();
  } catch (refusal) {
    refused(refusal);
  }
}

// ---- Findings

async function look() {
  const broken = answer === null || answer.prompt === null;
  byId("found").classList.toggle("stale", broken);
  if (broken) return;
  const asked = edited();
  const version = JSON.stringify(asked);
  try {
    const found = await post("findings", { edited: asked, rows: FEW_ROWS });
    if (version === JSON.stringify(edited())) drawFindings(found);
  } catch (refusal) {
    byId("found").replaceChildren(el("p", { class: "failure" }, refusal.message));
  }
}

function drawFindings(found) {
  const order = (finding) => (finding.template === template ? 0 : 1);
  const findings = [...found.findings].sort((a, b) => order(a) - order(b));
  const open = findings.filter((finding) => !finding.allowed);
  const card = (finding) => {
    const severity = finding.allowed ? "allowed" : finding.severity;
    const rows = finding.rows.map(({ split, row: number }) => el("a", { class: "row-link", href: formatLink({ task: task.name, template: finding.template ?? template, row: `${split}:${number}` }) }, `${split}:${number}`));
    return el("article", { class: `card finding ${severity}` },
      el("header", {}, el("h3", {}, el("span", { class: "unseen-label" }, `${severity}: `), finding.message), el("code", { class: "code" }, finding.code)),
      el("p", { class: "small" }, [finding.template, finding.count !== null && `${finding.count} of ${finding.of}`].filter(Boolean).join(" · "), rows),
      finding.text.slice(0, 1).map(([before, marked, after]) => el("blockquote", { class: "excerpt", dir: "auto" }, shownBlanks(before), el("mark", {}, shownBlanks(marked)), shownBlanks(after))),
      el("p", { class: "do" }, finding.allowed ? `allowed: ${finding.allowed}` : finding.help));
  };
  const allowed = findings.filter((finding) => finding.allowed);
  byId("found").replaceChildren(
    open.length === 0 ? el("p", { class: "empty" }, `Nothing in ${plural(found.prompts, "prompt")} of ${plural(found.rows, "row")}.`) : el("div", { class: "findings-list" }, open.map(card)),
    ...(allowed.length > 0 ? [el("details", {}, el("summary", {}, `${plural(allowed.length, "finding")} allowed by the definition`), el("div", { class: "findings-list" }, allowed.map(card)))] : []));
}

function shownBlanks(text) {
  return text.replaceAll("\n", "↵");
}

// ---- Saving

async function save() {
  if (byId("save").disabled) return;
  const { edits } = draft();
  try {
    await post("save", { edited: edited() });
    // What was typed while it was written is still unsaved.
    const before = { ...edits };
    await openTask(task.name);
    const left = Object.entries(draft().edits).filter(([name, text]) => text !== before[name]);
    drafts.set(task.name, { version: opened.version, edits: Object.fromEntries(left) });
    for (const [name, editor] of editors) editor.setChanged(name in draft().edits);
    showUnsaved();
    byId("unsaved").textContent ||= "saved";
    announce("saved");
    refresh();
  } catch (refusal) {
    refused(refusal);
  }
}

// ---- The page

function view() {
  const toggle = (name, label, key) => el("label", { class: "toggle" }, el("input", { type: "checkbox", "data-setting": name, checked: setting(name), onchange: (event) => {
    set(name, event.target.checked);
    redraw(name);
  } }), ` ${label}`, el("kbd", { "aria-hidden": "true" }, key));
  byId("view").replaceChildren(toggle("compare", "compare with the saved", "c"), toggle("origins", "origins", "o"),
    session.tokenizer && toggle("tokens", "tokens", "t"), toggle("blanks", "white space", "w"),
    el("button", { type: "button", onclick: () => flags.open() }, "Flag ", el("kbd", { "aria-hidden": "true" }, "f")));
}

function redraw(name) {
  // What is saved comes from the server.
  if (name === "compare") refresh();
  else if (answer) drawPrompt();
}

function toggled(name) {
  set(name, !setting(name));
  view();
  redraw(name);
  announce(`${name} ${setting(name) ? "on" : "off"}`);
}

const picker = rowPicker(byId("rows"), {
  pick: (picked) => {
    if (picked.pick.random) {
      row = picked;
      refresh();
    } else {
      moveTo({ row: `${picked.split}:${picked.pick.row}` });
    }
  },
});
const flags = flagsDialog({ asked: (note) => ({ edited: edited(), template, row, note }) });
checksControl(byId("run"), { edited, show: drawFindings });
themeControl(byId("theme"));
const clusters = [...new Set(session.tasks.map((known) => known.cluster))].sort();
byId("task").replaceChildren(...clusters.map((cluster) => el("optgroup", { label: cluster.replaceAll("-", " ") },
  session.tasks.filter((known) => known.cluster === cluster).map((known) => el("option", { value: known.name }, known.title)))));
byId("task").addEventListener("change", (event) => {
  location.hash = formatLink({ task: event.target.value });
});
byId("template").addEventListener("change", (event) => moveTo({ template: event.target.value }));
byId("save").addEventListener("click", save);
byId("revert").addEventListener("click", () => revert(Object.keys(draft().edits)));
byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("main").focus();
});
document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "s") {
    event.preventDefault();
    save();
  }
});
keyboard({
  j: () => picker.step(1),
  k: () => picker.step(-1),
  l: () => stepTemplate(1),
  h: () => stepTemplate(-1),
  r: () => picker.draw(),
  e: (event) => {
    event.preventDefault();
    [...editors.values()][0]?.area.focus();
  },
  c: () => toggled("compare"),
  o: () => toggled("origins"),
  t: () => toggled("tokens"),
  w: () => toggled("blanks"),
  f: (event) => {
    event.preventDefault();
    flags.open();
  },
}, [
  ["j / k", "next row, row before"],
  ["r", "a random row"],
  ["h / l", "template before, next template"],
  ["e", "edit; Esc leaves the field"],
  ["Ctrl S", "save"],
  ["c", "compare with what is saved, or stop comparing"],
  ["o", "origins on or off"],
  ["t", "tokens on or off"],
  ["w", "white space on or off"],
  ["f", "flag the prompt"],
  ["/", "search rows"],
  ["?", "this list"],
]);
window.addEventListener("hashchange", follow);
window.addEventListener("beforeunload", (event) => {
  if ([...drafts.values()].some(({ edits }) => Object.keys(edits).length > 0)) event.preventDefault();
});
view();
await follow();
