// Tokens of prompts in steps of an even width, with a line where the recipe cuts.

import { svg, el, grouped, percent } from "./dom.js";

const WIDTH = 420;
const HEIGHT = 120;
const FOOT = 18;

export function histogram(name, figures, limit, prompts) {
  const { width, counts } = figures;
  const most = Math.max(...counts, 1);
  const beyond = figures.most >= counts.length * width;
  // The limit is shown where that does not push the prompts into a corner.
  const steps = Math.ceil((limit * 1.02) / width);
  const within = steps <= counts.length * 1.6;
  const reach = within ? Math.max(counts.length, steps) : counts.length;
  const scale = (tokens) => (tokens / width / reach) * WIDTH;
  const bar = WIDTH / reach;
  const picture = svg("svg", { class: "histogram", viewBox: `0 0 ${WIDTH} ${HEIGHT + FOOT}`, role: "img", "aria-label": described(name, figures, limit, prompts) });
  counts.forEach((count, step) => {
    if (count === 0) return;
    const height = Math.max(1, (count / most) * (HEIGHT - 14));
    const from = step * width;
    picture.append(svg("rect", { x: step * bar + 0.5, y: HEIGHT - height, width: Math.max(1, bar - 1), height, class: from >= limit ? "beyond" : "step" },
      svg("title", {}, `${grouped(from)} ${step === counts.length - 1 && beyond ? "tokens and more" : `to ${grouped(from + width - 1)} tokens`}: ${grouped(count)} prompts`)));
  });
  picture.append(svg("line", { x1: 0, y1: HEIGHT + 0.5, x2: WIDTH, y2: HEIGHT + 0.5, class: "axis" }));
  if (within) {
    const x = scale(limit);
    const right = x > WIDTH * 0.7;
    picture.append(svg("line", { x1: x, y1: 0, x2: x, y2: HEIGHT, class: "limit" }),
      svg("text", { x: right ? x - 5 : x + 5, y: 10, class: "limit-label", "text-anchor": right ? "end" : "start" }, `cut at ${grouped(limit)}`));
  }
  const ticks = ticksOf(reach * width);
  for (const tick of ticks) {
    const anchor = tick === 0 ? "start" : scale(tick) > WIDTH - 20 ? "end" : "middle";
    picture.append(svg("text", { x: scale(tick), y: HEIGHT + 14, class: "tick", "text-anchor": anchor }, grouped(tick)));
  }
  return el("figure", { class: "figure" },
    el("figcaption", {}, el("b", {}, name), el("span", {}, `median ${grouped(figures.median)}, 95 % ${grouped(figures.p95)}, most ${grouped(figures.most)}`)),
    picture,
    el("p", { class: "small" }, cutLine(figures, limit, prompts, within), beyond && `; the last bar counts all from ${grouped((counts.length - 1) * width)} on`));
}

function cutLine(figures, limit, prompts, within) {
  if (figures.cut > 0) return `${grouped(figures.cut)} of ${grouped(prompts)} prompts (${percent(figures.cut / prompts)}) are longer than ${grouped(limit)} tokens`;
  return within ? "nothing is cut" : `nothing is cut: the limit of ${grouped(limit)} lies beyond`;
}

function described(name, figures, limit, prompts) {
  return `Tokens of ${name}: median ${figures.median}, 95 % have at most ${figures.p95}, most ${figures.most}. ${cutLine(figures, limit, prompts, true)}.`;
}

// Round numbers, four to eight of them.
export function ticksOf(most) {
  const steps = [1, 2, 5].flatMap((digit) => [0, 1, 2, 3, 4, 5, 6, 7].map((power) => digit * 10 ** power)).sort((a, b) => a - b);
  const step = steps.find((width) => most / width <= 7) ?? most;
  const ticks = [];
  for (let tick = 0; tick <= most; tick += step) ticks.push(tick);
  return ticks;
}

// How often each of some things was right, as bars.
export function balance(caption, entries) {
  const all = entries.reduce((sum, [, count]) => sum + count, 0);
  const most = Math.max(...entries.map(([, count]) => count), 1);
  const lines = entries.slice(0, 24).map(([name, count]) => {
    const bar = svg("svg", { class: "bar-line", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("rect", { x: 0, y: 0, width: (100 * count) / most, height: 8 }));
    return el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, bar), el("td", { class: "number" }, grouped(count)),
      el("td", { class: "number" }, percent(all ? count / all : 0)));
  });
  return el("figure", { class: "figure" }, el("figcaption", {}, el("b", {}, caption)),
    el("table", { class: "balance" }, el("tbody", {}, lines)),
    entries.length > 24 && el("p", { class: "small" }, `and ${entries.length - 24} more`));
}
