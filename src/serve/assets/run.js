// The audit's checks over many rows: start, watch, give up.

import { el, announce, grouped, plural } from "./dom.js";
import { get, post } from "./api.js";

const ROWS = 1000;
// Between two looks at how far it is, in milliseconds.
const PAUSE = 150;

// `edited()` is the task with its edits; `show(result)` takes what was found.
export function checksControl(place, { edited, show }) {
  const start = el("button", { type: "button", onclick: () => run() }, `Check ${grouped(ROWS)} rows`);
  const stop = el("button", { type: "button", hidden: true, onclick: () => giveUp() }, "Cancel");
  const bar = el("progress", { max: "1", value: "0", hidden: true, "aria-label": "Rows checked" });
  const line = el("span", { class: "small" });
  let current = null;
  place.replaceChildren(start, stop, bar, line);

  function running(is) {
    start.disabled = is;
    stop.hidden = !is;
    bar.hidden = !is;
  }

  async function run() {
    running(true);
    line.textContent = "";
    bar.value = 0;
    try {
      const { run: number } = await post("checks", { edited: edited(), rows: ROWS });
      current = number;
      for (;;) {
        const state = await get("checks");
        if (current !== number) return;
        if (state.run !== number) {
          finish("given up: another run was started");
          return;
        }
        bar.value = state.of > 0 ? state.done / state.of : 0;
        if (state.result) {
          conclude(state.result);
          return;
        }
        await new Promise((wake) => setTimeout(wake, PAUSE));
      }
    } catch (refusal) {
      finish(refusal.message);
    }
  }

  function conclude(result) {
    if (result.diagnostics) {
      finish(result.diagnostics.map((diagnostic) => diagnostic.message).join("; "));
      return;
    }
    finish(`${plural(result.findings.length, "finding")} in ${grouped(result.prompts)} prompts of ${grouped(result.rows)} rows`);
    show(result);
  }

  async function giveUp() {
    current = null;
    finish("cancelled");
    await post("cancel", {}).catch(() => {});
  }

  function finish(text) {
    current = null;
    running(false);
    line.textContent = text;
    announce(text);
  }
}
