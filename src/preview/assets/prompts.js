// A prompt: its two texts with the origin of every word, its tokens, options and findings.

import { el, grouped, plural, announce } from "./dom.js";
import { piecesOf, tokensOf } from "./data.js";
import { tokenGroups, cutRange, segmentsOf, runsOf } from "./tokens.js";

// Characters that are shown before a reader asks for more, and how many come then.
const FOLDED = 3000;
const MORE = 20000;

// `show`: { tokens, blanks, origins, marks: { inputs, targets }, whole, special } — what to show, stretches that differ,
// whether long texts are unfolded, and names of control tokens by id.
export function promptBody(task, prompt, show) {
  if (prompt.failure) {
    return el("p", { class: "failure" }, el("b", {}, "No prompt: "), `${prompt.failure.code.replaceAll("-", " ")}. ${prompt.failure.detail}`);
  }
  const options = prompt.options.length > 0 && el("p", { class: "options" },
    el("span", { class: "label" }, "options"), ...prompt.options.map((option) =>
      el("span", { class: option === prompt.answer ? "option right" : "option" }, option, option === prompt.answer && el("span", { class: "tick" }, " ✓ answer"))));
  return el("div", { class: "sides" }, sideBlock(task, prompt, "inputs", show), sideBlock(task, prompt, "targets", show), options);
}

function sideBlock(task, prompt, name, show) {
  const side = prompt[name];
  const readout = el("span", { class: "readout" });
  const count = side.token_count > 0 && plural(side.token_count, "token");
  const loss = side.masked ? "masked, no loss" : "carries loss";
  const lost = side.cut && `${grouped(side.cut[1] - side.cut[0])} cut`;
  const head = el("div", { class: "side-head" }, el("span", { class: "side-name" }, name),
    el("span", { class: "side-facts" }, [count, loss, lost].filter(Boolean).join(" · ")), readout);
  const text = el("div", { class: "text", dir: "auto", role: "group", "aria-label": `${name} of ${prompt.template}` });
  const block = el("section", { class: `side ${name}${side.masked ? " masked" : " loss"}` }, head, text);
  const length = side.pieces.length > 0 ? piecesOf(task, side).reduce((sum, [piece]) => sum + piece.length, 0) : 0;
  let limit = show.whole || length <= FOLDED + MORE / 10 ? length : FOLDED;
  const draw = () => {
    text.replaceChildren(...sideNodes(task, side, { ...show, marks: show.marks?.[name] ?? [], limit }));
    if (limit < length) {
      text.append(el("button", { type: "button", class: "unfold", onclick: () => {
        limit = Math.min(length, limit + MORE);
        draw();
        text.querySelector(".unfold")?.focus();
      } }, `Show more: ${grouped(limit)} of ${grouped(length)} characters`));
    }
    if (show.tokens && limit === length) text.append(...specialTokens(side.special.after, show.special));
  };
  draw();
  if (show.tokens) followTokens(text, side, readout);
  return block;
}

function sideNodes(task, side, { tokens, blanks, origins, marks, limit, special }) {
  const pieces = piecesOf(task, side);
  const whole = pieces.map(([text]) => text).join("");
  const groups = tokens || side.cut ? tokenGroups(tokensOf(side)) : [];
  const cut = cutRange(groups, side.cut, whole.length);
  const nodes = tokens ? specialTokens(side.special.before, special) : [];
  for (const segment of segmentsOf(pieces, { groups: tokens ? groups : [], marks, cut, limit })) {
    const classes = [
      origins && segment.origin > 0 && (isOptions(task, segment.origin) ? "from-options" : "from-row"),
      segment.changed && "changed",
      segment.cut && "cut",
      tokens && segment.group >= 0 && `token shade-${segment.group % 2}`,
    ].filter(Boolean);
    const runs = runsOf(whole.slice(segment.from, segment.to), blanks);
    const text = runs.map((run) => (run.kind === "plain" ? run.text : [el("span", { class: run.kind }, run.text), run.kind === "blank" && el("wbr")]));
    if (classes.length === 0) {
      nodes.push(...text.flat().filter(Boolean));
      continue;
    }
    const title = origins && segment.origin > 0 && !tokens ? task.origins[segment.origin - 1] : null;
    const tag = segment.changed ? "mark" : "span";
    const first = tokens && segment.group >= 0 && groups[segment.group].from === segment.from;
    nodes.push(el(tag, { class: classes.join(" "), title, "data-token": tokens && segment.group >= 0 ? segment.group : null,
      tabindex: first ? (segment.group === 0 ? "0" : "-1") : null }, text));
  }
  return nodes;
}

export function isOptions(task, origin) {
  return /options|answer_choices/.test(task.origins[origin - 1] ?? "");
}

function specialTokens(ids, names) {
  return ids.map((id) => el("span", { class: "special", title: `token ${id}, which the recipe adds` }, names?.[id] ?? `#${id}`));
}

// Says which token is under the pointer or has the focus; arrow keys go from one to the next.
function followTokens(text, side, readout) {
  const groups = tokenGroups(tokensOf(side));
  let shown = null;
  const say = (token) => {
    if (token === shown) return;
    shown = token;
    text.querySelectorAll(".on").forEach((node) => node.classList.remove("on"));
    if (token === null) {
      readout.textContent = "";
      return;
    }
    const group = groups[Number(token)];
    text.querySelectorAll(`[data-token="${token}"]`).forEach((node) => node.classList.add("on"));
    readout.textContent = describedToken(group, side);
  };
  const of = (target) => target.closest?.("[data-token]")?.dataset.token ?? null;
  text.addEventListener("mouseover", (event) => say(of(event.target)));
  text.addEventListener("mouseleave", () => say(null));
  text.addEventListener("focusin", (event) => {
    say(of(event.target));
    if (shown !== null) announce(describedToken(groups[Number(shown)], side));
  });
  text.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const token = of(event.target);
    if (!step || token === null) return;
    const next = text.querySelector(`[data-token="${Number(token) + step}"][tabindex]`);
    if (!next) return;
    event.preventDefault();
    event.target.closest("[tabindex]").tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}

function describedToken(group, side) {
  const ids = `${group.ids.length > 1 ? "ids" : "id"} ${group.ids.join(", ")}`;
  const number = group.ids.length > 1 ? `${group.first + 1}–${group.first + group.ids.length}` : `${group.first + 1}`;
  const lost = side.cut && group.first >= side.cut[0] && group.first < side.cut[1];
  return [`token ${number}`, ids, lost ? "cut" : side.masked ? "label −100" : "label = id"].join(" · ");
}

// What the colours stand for.
export function legend(task, show) {
  const entry = (className, text) => el("span", { class: "legend-entry" }, el("span", { class: className }, "Abc"), ` ${text}`);
  return el("p", { class: "legend", "aria-label": "What the marks stand for" },
    show.origins && entry("from-row", "from the row"), show.origins && entry("from-options", "options"),
    entry("", "the template’s words"), show.compare && entry("changed", "differs"), entry("cut", "cut by the recipe’s lengths"),
    show.tokens && el("span", { class: "legend-entry" }, "hover a token, or focus it and use ← →, for its id"));
}

// A card: the head with the template's name, then the prompt. `findings` are nodes, one for each.
export function promptCard(task, prompt, show, { current = false, link = null, actions = [], findings = [], level = "h3" } = {}) {
  const name = link ? el("a", { href: link }, prompt.template) : prompt.template;
  return el("article", { class: `card prompt${current ? " current" : ""}`, "aria-current": current ? "true" : null, "data-template": prompt.template },
    el("header", {}, el(level, {}, name),
      el("span", { class: `chip ${prompt.kind}` }, prompt.kind.replace("-", " ")),
      findings.length > 0 && el("span", { class: "chip found" }, plural(findings.length, "finding")), ...actions),
    promptBody(task, prompt, show),
    findings.length > 0 && el("ul", { class: "said" }, findings.map((finding) => el("li", {}, finding))));
}
