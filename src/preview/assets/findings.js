// Findings, with a filter over them.

import { el, grouped, percent, plural, announce } from "./dom.js";
import { countFindings, severities } from "./data.js";
import { formatLink } from "./permalink.js";

const PAGE = 50;
const SIGNS = { error: "✕", warning: "!", note: "i", allowed: "✓" };

// One finding: what it is, where, which rows show it, what to do.
export function findingCard(finding, codes) {
  const code = codes[finding.code];
  const severity = finding.allowed ? "allowed" : code.severity;
  const share = finding.count !== null && finding.of ? `${grouped(finding.count)} of ${grouped(finding.of)} (${percent(finding.count / finding.of)})` : null;
  const rows = finding.rows.map((row, i) => [i > 0 && " ", el("a", { class: "row-link", href: formatLink({ task: finding.task, template: finding.template, row: `${row.split}:${row.row}` }) }, `${row.split}:${row.row}`)]);
  const place = `${finding.file}:${finding.line}:${finding.column}`;
  return el("article", { class: `card finding ${severity}` },
    el("header", {}, el("span", { class: `sign ${severity}`, title: severity }, SIGNS[severity]),
      el("h3", {}, el("span", { class: "unseen-label" }, `${severity}: `), finding.message),
      el("code", { class: "code" }, finding.code)),
    el("p", { class: "where" }, el("a", { href: formatLink({ task: finding.task, template: finding.template }) }, finding.template ? `${finding.task} / ${finding.template}` : finding.task),
      " ", el("span", { class: "place" }, place)),
    finding.text.map((excerpt) => excerptLine(excerpt)),
    share && el("p", { class: "shown" }, el("span", { class: "label" }, "shown by"), ` ${share} `, rows),
    el("p", { class: "do" }, el("span", { class: "label" }, finding.allowed ? "allowed" : "what to do"), " ", finding.allowed ?? code.help),
    el("details", { class: "about" }, el("summary", {}, "Why it matters"), el("p", {}, code.about)));
}

function excerptLine([before, marked, after]) {
  const shown = (text) => text.replaceAll("\n", "↵");
  return el("blockquote", { class: "excerpt", dir: "auto" }, shown(before), el("mark", {}, shown(marked)), shown(after));
}

// The findings that a filter leaves. `filter`: { severities, code, task, text, allowed }.
export function filtered(findings, codes, filter) {
  const words = filter.text.toLowerCase();
  return findings.filter((finding) => {
    if (finding.allowed ? !filter.allowed : !filter.severities.has(codes[finding.code].severity)) return false;
    if (filter.code && finding.code !== filter.code) return false;
    if (filter.task && finding.task !== filter.task) return false;
    if (!words) return true;
    const said = [finding.message, finding.code, finding.task, finding.template ?? "", finding.file, finding.allowed ?? "", ...finding.text.flat()];
    return said.join("\n").toLowerCase().includes(words);
  });
}

// All findings, or those of one task, behind their filter.
export function findingsList(findings, codes, { task = null, level = "h2" } = {}) {
  const counts = countFindings(findings, codes);
  const filter = { severities: new Set(severities()), code: "", task: "", text: "", allowed: false };
  const list = el("div", { class: "findings-list" });
  const summary = el("p", { class: "small", role: "status" });
  let most = PAGE;
  const draw = () => {
    const found = filtered(findings, codes, filter);
    list.replaceChildren(...found.slice(0, most).map((finding) => findingCard(finding, codes)));
    if (found.length > most) {
      list.append(el("button", { type: "button", onclick: () => {
        most += PAGE;
        draw();
      } }, `Show ${Math.min(PAGE, found.length - most)} more of ${grouped(found.length)}`));
    }
    if (found.length === 0) list.append(el("p", { class: "empty" }, emptyLine(counts, filter)));
    summary.textContent = `${plural(found.length, "finding")} shown`;
  };
  const change = () => {
    most = PAGE;
    draw();
    announce(summary.textContent);
  };
  const toggle = (name) => {
    const box = el("input", { type: "checkbox", checked: name !== "allowed", onchange: () => {
      if (name === "allowed") filter.allowed = box.checked;
      else if (box.checked) filter.severities.add(name);
      else filter.severities.delete(name);
      change();
    } });
    return el("label", { class: `toggle ${name}` }, box, el("span", { class: `sign ${name}`, "aria-hidden": "true" }, SIGNS[name]), ` ${name === "allowed" ? "allowed" : `${name}s`} `, el("b", {}, grouped(counts[name])));
  };
  const choice = (label, key, names) => el("label", {}, `${label} `, el("select", { onchange: (event) => {
    filter[key] = event.target.value;
    change();
  } }, el("option", { value: "" }, "all"), names.map((name) => el("option", { value: name }, name))));
  const names = (of) => [...new Set(findings.map(of))].sort();
  const controls = el("form", { class: "controls", onsubmit: (event) => event.preventDefault(), "aria-label": "Which findings are shown" },
    [...severities(), "allowed"].map(toggle),
    findings.length > 0 && choice("code", "code", names((finding) => finding.code)),
    findings.length > 0 && !task && choice("task", "task", names((finding) => finding.task)),
    findings.length > 0 && el("label", {}, "text ", el("input", { type: "search", size: 14, oninput: (event) => {
      filter.text = event.target.value;
      change();
    } })));
  draw();
  return el("section", { class: "findings", "aria-labelledby": "findings-title" }, el(level, { id: "findings-title" }, "Findings"), controls, summary, list);
}

function emptyLine(counts, filter) {
  const open = counts.error + counts.warning + counts.note;
  if (open > 0 || (filter.allowed && counts.allowed > 0)) return "No finding fits the filter.";
  return counts.allowed > 0 ? `Nothing was found that the definitions do not allow; ${plural(counts.allowed, "finding")} they do.` : "Nothing was found.";
}
