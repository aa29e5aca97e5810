// Findings, with a filter over them.

import { el, grouped, percent, plural, sentence, announce } from "./dom.js";
import { SEVERITIES, countFindings, rowName } from "./data.js";
import { formatLink } from "./permalink.js";
import { runsOf } from "./tokens.js";

const PAGE = 50;
const SIGNS = { error: "✕", warning: "!", note: "i", allowed: "✓" };

export function severityOf(finding, codes) {
  return finding.allowed ? "allowed" : codes[finding.code].severity;
}

// What is worst comes first, and what is allowed last.
export function bySeverity(findings, codes) {
  const order = [...SEVERITIES, "allowed"];
  return [...findings].sort((a, b) => order.indexOf(severityOf(a, codes)) - order.indexOf(severityOf(b, codes)));
}

// One finding: what it is, where, which rows show it, what to do.
export function findingCard(finding, codes) {
  return el("article", { class: `card finding ${severityOf(finding, codes)}` },
    el("header", {}, findingTitle(finding, codes, "h3"), el("code", { class: "code" }, finding.code)), findingBody(finding, codes));
}

// The same as a line that opens.
function findingLine(finding, codes) {
  return el("details", { class: `card finding ${severityOf(finding, codes)}` },
    el("summary", {}, findingTitle(finding, codes, "b"), finding.template && el("span", { class: "small" }, finding.template), el("code", { class: "code" }, finding.code)),
    findingBody(finding, codes));
}

export function findingTitle(finding, codes, tag) {
  const severity = severityOf(finding, codes);
  return [el("span", { class: `sign ${severity}`, title: severity }, SIGNS[severity]),
    el(tag, { class: "title" }, el("span", { class: "unseen-label" }, `${severity}: `), sentence(finding.message))];
}

function findingBody(finding, codes) {
  const code = codes[finding.code];
  const share = finding.count !== null && finding.of ? `${grouped(finding.count)} of ${grouped(finding.of)} (${percent(finding.count / finding.of)})` : null;
  const names = [...new Set(finding.rows.map(rowName))];
  const rows = names.map((row) => [" ", el("a", { class: "row-link", href: formatLink({ task: finding.task, template: finding.template, row }) }, row)]);
  const place = `${finding.file.split("/").slice(-2).join("/")}:${finding.line}:${finding.column}`;
  return [
    el("p", { class: "where" }, el("a", { href: formatLink({ task: finding.task, template: finding.template, row: names[0] ?? null }) }, finding.template ? `${finding.task} / ${finding.template}` : finding.task),
      " ", el("span", { class: "place", title: finding.file }, place)),
    finding.text.map((excerpt) => excerptLine(excerpt)),
    share && el("p", { class: "shown" }, el("span", { class: "label" }, "shown by"), ` ${share} `, rows),
    el("p", { class: "do" }, el("span", { class: "label" }, finding.allowed ? "allowed" : "what to do"), " ", sentence(finding.allowed ?? code.help)),
    el("details", { class: "about" }, el("summary", {}, "Why it matters"), el("p", {}, sentence(code.about))),
  ];
}

function excerptLine([before, marked, after]) {
  const shown = (text) => runsOf(text.replaceAll("\n", "↵"), false).map((run) => (run.kind === "plain" ? run.text : el("span", { class: run.kind }, run.text)));
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
export function findingsList(findings, codes, { task = null } = {}) {
  const counts = countFindings(findings, codes);
  const filter = { severities: new Set(SEVERITIES), code: "", task: "", text: "", allowed: false };
  const list = el("div", { class: "findings-list" });
  const summary = el("p", { class: "small", role: "status" });
  let most = PAGE;
  const draw = () => {
    const found = bySeverity(filtered(findings, codes, filter), codes);
    list.replaceChildren(...found.slice(0, most).map((finding) => (task ? findingLine : findingCard)(finding, codes)));
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
    [...SEVERITIES, "allowed"].map(toggle),
    findings.length > 0 && choice("code", "code", names((finding) => finding.code)),
    findings.length > 0 && !task && choice("task", "task", names((finding) => finding.task)),
    findings.length > 0 && el("label", {}, "text ", el("input", { type: "search", size: 14, oninput: (event) => {
      filter.text = event.target.value;
      change();
    } })));
  draw();
  return el("section", { class: "findings", "aria-labelledby": "findings-title" }, el("h2", { id: "findings-title" }, "Findings"), controls, summary, list);
}

function emptyLine(counts, filter) {
  const open = counts.error + counts.warning + counts.note;
  if (open > 0 || (filter.allowed && counts.allowed > 0)) return "No finding fits the filter.";
  return counts.allowed > 0 ? `Nothing was found that the definitions do not allow; ${plural(counts.allowed, "finding")} they do.` : "Nothing was found.";
}
