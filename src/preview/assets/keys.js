// Keys: one letter each, not while something is typed, and not at all if a reader switches them off.

import { el, byId } from "./dom.js";
import { setting, set } from "./theme.js";

const KEYS = [
  ["j / k", "next row, row before"],
  ["h / l", "template before, next template"],
  ["c", "compare with the next template, or stop comparing"],
  ["o", "origins on or off"],
  ["t", "tokens on or off"],
  ["w", "white space on or off"],
  ["g", "overview"],
  ["/", "search"],
  ["?", "this list"],
];

// `actions`: functions by key; `list`: what the help says of them.
export function keyboard(actions, list = KEYS) {
  const dialog = helpDialog(list);
  document.body.append(dialog);
  byId("help").addEventListener("click", () => dialog.showModal());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || dialog.open || isTyped(event.target)) return;
    if (event.key !== "Escape" && !setting("keys")) return;
    if (event.key === "/") {
      event.preventDefault();
      byId("search").focus();
    } else if (event.key === "?") {
      dialog.showModal();
    } else {
      actions[event.key]?.(event);
    }
  });
}

function isTyped(target) {
  return target.isContentEditable || target.closest?.("input:not([type=checkbox]):not([type=radio]), textarea, select") !== null;
}

function helpDialog(list) {
  const box = el("input", { type: "checkbox", checked: setting("keys"), onchange: (event) => set("keys", event.target.checked) });
  const dialog = el("dialog", { "aria-labelledby": "keys-title" }, el("h2", { id: "keys-title" }, "Keys"),
    el("dl", {}, list.map(([key, what]) => el("div", {}, el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)))),
    el("label", { class: "toggle" }, box, " single-letter keys"),
    el("form", { method: "dialog" }, el("button", {}, "Close")));
  return dialog;
}
