// Rectangles whose areas are as given: squarified treemaps after Bruls, Huizing and van Wijk (2000).

import { svg, grouped, percent } from "./dom.js";

// Places items of `{ value }` in a rectangle; gives `{ item, x, y, width, height }`, the largest first.
export function squarify(items, { x, y, width, height }) {
  const left = items.filter((item) => item.value > 0).sort((a, b) => b.value - a.value);
  const placed = [];
  let total = left.reduce((sum, item) => sum + item.value, 0);
  let area = { x, y, width, height };
  while (left.length > 0) {
    const scale = (area.width * area.height) / total;
    const side = Math.min(area.width, area.height);
    const row = [left.shift()];
    let sum = row[0].value;
    while (left.length > 0 && worst(row, sum, scale, side) >= worst([...row, left[0]], sum + left[0].value, scale, side)) {
      sum += left[0].value;
      row.push(left.shift());
    }
    const depth = side > 0 ? (sum * scale) / side : 0;
    const upright = area.width >= area.height;
    let along = upright ? area.y : area.x;
    for (const item of row) {
      const length = (item.value / sum) * side;
      placed.push(
        upright
          ? { item, x: area.x, y: along, width: depth, height: length }
          : { item, x: along, y: area.y, width: length, height: depth },
      );
      along += length;
    }
    area = upright
      ? { x: area.x + depth, y: area.y, width: Math.max(0, area.width - depth), height: area.height }
      : { x: area.x, y: area.y + depth, width: area.width, height: Math.max(0, area.height - depth) };
    total -= sum;
  }
  return placed;
}

// The worst ratio of sides in a row.
function worst(row, sum, scale, side) {
  const values = row.map((item) => item.value);
  const square = (sum * scale) ** 2;
  return Math.max((side ** 2 * Math.max(...values) * scale) / square, square / (side ** 2 * Math.min(...values) * scale));
}

const HEAD = 22;

// Clusters of tasks. `clusters`: `{ name, tasks: [{ name, title, value, share, heldOut, link, counts }] }`.
export function treemap(clusters, width, height, unit) {
  const hatch = svg("pattern", { id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    svg("rect", { width: 6, height: 6, class: "hatch-ground" }), svg("line", { x1: 0, y1: 0, x2: 0, y2: 6, class: "hatch-line" }));
  const picture = svg("svg", { class: "treemap", viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `Tasks by ${unit}` }, svg("defs", {}, hatch));
  const groups = clusters.map((cluster, number) => ({ cluster, number, value: cluster.tasks.reduce((sum, task) => sum + task.value, 0) }));
  for (const { item, ...area } of squarify(groups, { x: 0, y: 0, width, height })) {
    const inner = { x: area.x + 2, y: area.y + HEAD, width: Math.max(0, area.width - 4), height: Math.max(0, area.height - HEAD - 2) };
    const label = fitted(item.cluster.name.replaceAll("-", " "), area.width - 8, 7);
    picture.append(clipped(area, svg("text", { x: 4, y: 15, class: "cluster" }, label)));
    for (const { item: task, ...cell } of squarify(item.cluster.tasks, inner)) {
      picture.append(taskCell(task, cell, item.number, unit));
    }
  }
  return picture;
}

function taskCell(task, { x, y, width, height }, cluster, unit) {
  const worstOf = task.counts.error ? "error" : task.counts.warning ? "warning" : null;
  const amount = `${grouped(task.value)} ${unit}`;
  const said = [task.title, amount, task.heldOut ? "held out" : percent(task.share), worstOf && `${task.counts[worstOf]} ${worstOf}s`];
  const label = said.filter(Boolean).join(", ");
  const link = svg("a", { href: task.link, class: `cell${task.heldOut ? " held-out" : ""} hue-${cluster % 12}`, "aria-label": label },
    svg("title", {}, label),
    svg("rect", { x: x + 1, y: y + 1, width: Math.max(0, width - 2), height: Math.max(0, height - 2), rx: 3 }));
  if (task.heldOut) link.append(svg("rect", { x: x + 1, y: y + 1, width: Math.max(0, width - 2), height: Math.max(0, height - 2), rx: 3, class: "hatched" }));
  const lines = [];
  if (width > 34 && height > 18) lines.push(svg("text", { x: 7, y: 16 }, fitted(task.title, width - 12, 7)));
  if (width > 60 && height > 36) lines.push(svg("text", { x: 7, y: 31, class: "amount" }, fitted(task.heldOut ? `held out, ${amount}` : amount, width - 12, 6.6)));
  if (lines.length > 0) link.append(clipped({ x, y, width: width - 3, height }, ...lines));
  if (worstOf && width > 22 && height > 22) link.append(svg("circle", { cx: x + width - 10, cy: y + height - 10, r: 5, class: worstOf }));
  return link;
}

// Whatever a font makes of a text, it ends where its cell does.
function clipped({ x, y, width, height }, ...nodes) {
  return svg("svg", { x, y, width: Math.max(0, width), height, "aria-hidden": "true" }, nodes);
}

// As much of a text as has room, at so many units a character.
function fitted(text, room, unit) {
  const most = Math.floor(room / unit);
  if (text.length <= most) return text;
  return most < 3 ? "" : `${text.slice(0, most - 1)}…`;
}
