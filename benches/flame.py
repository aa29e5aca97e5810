"""Draws a flame graph of what `perf script` prints: a still picture, the names of narrow frames in their titles.

usage: perf record -F 299 --call-graph dwarf,12288 flanc compile … --threads 1
       perf script | python3 benches/flame.py OUT.svg

Frames of the thread pool, of the standard library's plumbing and of closures are left out: what calls what in flanc
and in the libraries that it uses is left.
"""

import re
import sys
from xml.sax.saxutils import escape

WIDTH, FRAME, LEAST = 1200, 16, 3  # pixels: of the picture, of a frame's height, of the narrowest frame
LEFT_OUT = re.compile(
    r"rayon|std::(sys|thread|panic)|thread_start|core::(ops|iter|option|result)|alloc::(boxed|raw_vec)|catch_unwind"
    r"|do_call|rust_try|start_thread|clone3|unknown|__libc|closure|^_start|lang_start|asm_exc|entry_SYSCALL"
)
COLOURS = [("flanc", "#9ecae1"), ("tk_|bitcannon|tokenizers", "#fdd49e"), ("ZSTD|HUF|FSE|HIST", "#c7e9c0"), ("", "#d9d9d9")]


def stacks(lines):
    frames = []
    for line in lines:
        if not line.strip():
            if frames:
                yield frames[::-1]
            frames = []
        elif line[0] in "\t " and (found := re.match(r"\s+[0-9a-f]+ (.*?)(\+0x[0-9a-f]+)? \(", line)):
            frames.append(name(found[1]))


def name(symbol):
    previous = None
    while previous != symbol:  # generic arguments may nest
        previous, symbol = symbol, re.sub(r"(::)?<[^<>]*>", "", symbol)
    return symbol.strip(": ") or "unknown"


def tree(samples):
    root = [0, {}]
    for frames in samples:
        node = root
        node[0] += 1
        last = None
        for frame in frames:
            if LEFT_OUT.search(frame) or frame == last:
                continue
            last = frame
            node = node[1].setdefault(frame, [0, {}])
            node[0] += 1
    return root


def draw(node, left, depth, scale, total, boxes):
    for frame, child in sorted(node[1].items()):
        width = child[0] * scale
        if width >= LEAST:
            boxes.append((left, depth, width, frame, child[0] / total))
            draw(child, left, depth + 1, scale, total, boxes)
        left += width


def main():
    root, boxes = tree(stacks(sys.stdin)), []
    draw(root, 0, 0, WIDTH / root[0], root[0], boxes)
    height = (max(depth for _, depth, *_ in boxes) + 1) * FRAME
    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="monospace" font-size="11">']
    for left, depth, width, frame, share in boxes:
        y = height - (depth + 1) * FRAME
        colour = next(colour for pattern, colour in COLOURS if re.search(pattern, frame))
        shown = frame if len(frame) * 6.7 < width - 4 else frame.split("::")[-1]
        shown = shown if len(shown) * 6.7 < width - 4 else ""
        svg.append(f'<g><title>{escape(frame)}: {100 * share:.1f} %</title>')
        svg.append(f'<rect x="{left:.1f}" y="{y}" width="{width:.1f}" height="{FRAME}" fill="{colour}" stroke="#fff"/>')
        svg.append(f'<text x="{left + 3:.1f}" y="{y + 12}">{escape(shown)}</text></g>' if shown else "</g>")
    with open(sys.argv[1], "w") as out:
        out.write("\n".join([*svg, "</svg>\n"]))


main()
