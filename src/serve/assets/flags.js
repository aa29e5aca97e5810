// Prompts to come back to: flagged with a note, listed, and exported as JSON lines.

import { el, byId, announce } from "./dom.js";
import { download, get, post } from "./api.js";
import { formatLink } from "./permalink.js";

// `asked(note)` is the prompt that is on screen, as the server takes it.
export function flagsDialog({ asked }) {
  const note = el("input", { type: "text", name: "note", autocomplete: "off", maxlength: "1000", class: "note-text" });
  const said = el("p", { class: "failure", role: "alert" });
  const list = el("ul", { class: "flag-list" });
  const exported = el("button", { type: "button", onclick: () => save() }, "Export as JSONL");
  const dialog = el("dialog", { class: "flags", "aria-labelledby": "flags-title" },
    el("h2", { id: "flags-title" }, "Flagged prompts"),
    el("form", { onsubmit: (event) => {
      event.preventDefault();
      add();
    } }, el("label", {}, "note ", note), el("button", {}, "Flag this prompt")),
    said, list,
    el("p", { class: "small" }, "Flags are kept until the server ends."),
    el("div", { class: "controls" }, exported, el("form", { method: "dialog" }, el("button", {}, "Close"))));
  let flags = [];
  document.body.append(dialog);

  async function read() {
    flags = (await get("flags")).flags;
    draw();
  }

  function draw() {
    byId("flag-count").textContent = String(flags.length);
    exported.disabled = flags.length === 0;
    list.replaceChildren(...flags.map((flag) => el("li", {},
      el("a", { href: formatLink({ task: flag.task, template: flag.template, row: `${flag.split}:${flag.row}` }), onclick: () => dialog.close() }, `${flag.task} / ${flag.template} ${flag.split}:${flag.row}`),
      " ", el("span", {}, flag.note), " ", el("button", { type: "button", "aria-label": `Remove the flag of ${flag.template} ${flag.split}:${flag.row}`, onclick: () => remove(flag.id) }, "remove"))));
  }

  async function attempt(what) {
    said.textContent = "";
    try {
      await what();
      await read();
    } catch (refusal) {
      said.textContent = refusal.message;
    }
  }

  const add = () => attempt(async () => {
    await post("flag", asked(note.value));
    note.value = "";
    announce("flagged");
  });
  const remove = (id) => attempt(() => post("unflag", { id }));

  function save() {
    const lines = flags.map(({ task, template, split, row, inputs, targets, note: text }) => `${JSON.stringify({ task, template, split, row, inputs, targets, note: text })}\n`);
    download("flags.jsonl", lines.join(""), "application/jsonl");
  }

  byId("flags").addEventListener("click", () => open());
  const open = () => {
    said.textContent = "";
    dialog.showModal();
    note.focus();
  };
  read().catch(() => {});
  return { open };
}
