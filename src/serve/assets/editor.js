// A field for a template or an expression: a plain text area, and behind it the same text with its parts coloured and
// what is wrong underlined.

import { el } from "./dom.js";
import { templateStretches, marked, lineColumn } from "./source.js";

// `part`: { name, label, text, expression, value } — `name` as the server calls it, `expression` for what is no template.
// `on`: { input(text), leave(), revert() }.
export function partEditor(part, on) {
  const id = `part-${part.name.replace(/[^\w-]/g, "_")}`;
  const behind = el("pre", { class: "behind", "aria-hidden": "true" });
  const area = el("textarea", { id, spellcheck: "false", autocomplete: "off", autocapitalize: "off", rows: "1", "aria-describedby": `${id}-said`, dir: "auto" });
  const said = el("ul", { id: `${id}-said`, class: "complaints" });
  const back = el("button", { type: "button", class: "back", hidden: true, onclick: () => on.revert() }, "revert", el("span", { class: "unseen-label" }, ` ${part.label}`));
  const value = part.expression && el("output", { class: "value", for: id });
  let errors = [];
  area.value = part.text;
  const draw = () => {
    const text = area.value;
    const stretches = part.expression ? [{ from: 0, to: text.length, kind: "expression" }] : templateStretches(text);
    const nodes = marked(stretches, text.length, errors).map((stretch) =>
      stretch.kind === "text" && !stretch.wrong ? text.slice(stretch.from, stretch.to)
        : el("span", { class: [part.expression ? "" : stretch.kind, stretch.wrong && `wrong ${stretch.wrong}`].filter(Boolean).join(" ") }, text.slice(stretch.from, stretch.to)));
    // The last line counts even where it is empty.
    behind.replaceChildren(...nodes, "\n");
  };
  area.addEventListener("input", () => {
    // Places of what was wrong are those of another text now.
    errors = [];
    draw();
    on.input(area.value);
  });
  area.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.preventDefault();
    event.stopPropagation();
    on.leave();
  });
  draw();
  const node = el("div", { class: "source-part" }, el("div", { class: "part-head" }, el("label", { for: id }, part.label), part.note && el("span", { class: "small" }, part.note), back),
    el("div", { class: "editor" }, behind, area), value, said);
  return {
    node,
    area,
    // What is wrong with it, from the server.
    setErrors(diagnostics) {
      errors = diagnostics.filter((diagnostic) => diagnostic.from !== undefined);
      area.setAttribute("aria-invalid", String(diagnostics.some((diagnostic) => diagnostic.severity === "error")));
      said.replaceChildren(...diagnostics.map((diagnostic) => el("li", { class: diagnostic.severity },
        diagnostic.from !== undefined && el("span", { class: "place" }, lineColumn(area.value, diagnostic.from).join(":"), " "), ...spoken(diagnostic))));
      draw();
    },
    setValue(text) {
      if (value) value.textContent = text;
    },
    setChanged(changed) {
      back.hidden = !changed;
      node.classList.toggle("edited", changed);
    },
    setText(text) {
      area.value = text;
      errors = [];
      draw();
    },
  };
}

// A diagnostic in words.
export function spoken(diagnostic) {
  const notes = (diagnostic.notes ?? []).map(([kind, text]) => el("span", { class: "small" }, ` ${kind === "help" ? "" : `${kind}: `}${text}`));
  return [el("b", {}, diagnostic.severity === "error" ? "" : `${diagnostic.severity}: `), diagnostic.message, diagnostic.label && `: ${diagnostic.label}`, notes];
}
