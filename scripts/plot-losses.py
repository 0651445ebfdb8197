#!/usr/bin/env python3
"""The losses of several runs in one picture; plain Python, nothing else.

    scripts/plot-losses.py --out docs/losses.svg 'float32, cpu=runs/a' 'float16, emulated=runs/b'

    scripts/plot-losses.py --out docs/large.svg --activations a.jsonl --activations b.jsonl 'float32=…' 'float16=…'

Each run is a folder with `metrics.jsonl`. Thin lines are single steps, thick ones the mean of the last
--window steps. Below the first run's losses lies the difference of the others from it, and below that, where
they are given, each run's largest activations by level (benches/activations.rs), dashed for the second run.
"""

import argparse
import json
import math
import os
from xml.sax.saxutils import escape

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, GAP, LOWER = 860, 520, 64, 16, 34, 46, 110


def losses(folder):
    """Loss by step."""
    with open(os.path.join(folder, "metrics.jsonl")) as file:
        lines = [json.loads(line) for line in file]
    return {line["step"]: line["loss"] for line in lines if line.get("loss") is not None}


def smoothed(points, window):
    kept, out = [], []
    for step, value in points:
        kept = (kept + [value])[-window:]
        out.append((step, sum(kept) / len(kept)))
    return out


class Panel:
    """A chart with its own vertical scale."""

    def __init__(self, top, height, steps, low, high, logarithmic):
        self.top, self.height, self.steps = top, height, steps
        self.scale = math.log10 if logarithmic else float
        self.low, self.high = self.scale(low), self.scale(high)

    def place(self, step, value):
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / self.steps
        share = (self.scale(value) - self.low) / (self.high - self.low)
        return x, self.top + self.height * (1 - min(max(share, 0.0), 1.0))

    def line(self, points, colour, width, opacity):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.place(*point) for point in points))
        return (f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}" '
                f'stroke-opacity="{opacity}"/>')  # fmt: skip

    def grid(self, values):
        out = []
        for value in values:
            _, y = self.place(0, value)
            out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
            out.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.2g}</text>')
        return out


def largest(file):
    """Of each level (step, magnitude)."""
    levels = {}
    with open(file) as lines:
        for line in map(json.loads, lines):
            for level, value in line["largest"].items():
                levels.setdefault(level, []).append((line["step"], value))
    return levels


def activations(files, steps, top):
    """A panel of the largest magnitudes."""
    runs = [largest(file) for file in files]
    values = [value for run in runs for points in run.values() for _, value in points]
    panel = Panel(top + 30, LOWER + 40, steps, min(values) * 0.8, max(values) * 1.2, True)
    ticks = [m * 10.0**e for e in range(-2, 5) for m in (1, 2, 5)]
    out = panel.grid([t for t in ticks if min(values) * 0.8 <= t <= max(values) * 1.2])
    for at, level in enumerate(runs[0]):
        colour = COLOURS[at % len(COLOURS)]
        for number, run in enumerate(runs):
            line = panel.line(run[level], colour, 2 - number, 1)
            out.append(line.replace("/>", ' stroke-dasharray="4 3"/>') if number else line)
        out.append(f'<text x="{LEFT + 330 + 100 * at}" y="{top + 20}" fill="{colour}">{escape(level)}</text>')
    out.append(f'<text x="{LEFT}" y="{top + 20}">largest activation of a level, on held-out images</text>')
    return out


def picture(runs, window, files):
    steps = max(max(run) for _, run in runs)
    values = [value for _, run in runs for value in run.values()]
    first = runs[0][1]
    others = [[(step, run[step] - first[step]) for step in sorted(first.keys() & run.keys())] for _, run in runs[1:]]
    most = max((abs(d) for points in others for _, d in points), default=0.0) or 1.0
    high = max(values) * 1.1
    upper = Panel(TOP, HEIGHT - TOP - LOWER - GAP - 30, steps, min(values) * 0.9, high, True)
    lower = Panel(HEIGHT - LOWER - 30, LOWER, steps, -most, most, False)
    whole = HEIGHT + (LOWER + 90 if files else 0)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{whole}" '
           'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>']  # fmt: skip
    ticks = [m * 10.0**e for e in range(-6, 3) for m in (1, 2, 5)]
    out += upper.grid([t for t in ticks if min(values) * 0.9 <= t <= high])
    out += lower.grid([-most, 0.0, most])
    for at, (name, run) in enumerate(runs):
        points, colour = sorted(run.items()), COLOURS[at % len(COLOURS)]
        out += [upper.line(points, colour, 1, 0.35), upper.line(smoothed(points, window), colour, 2, 1)]
        out.append(f'<text x="{LEFT + 230 * at}" y="20" fill="{colour}">{escape(name)}</text>')
    for at, points in enumerate(others, 1):
        out.append(lower.line(points, COLOURS[at % len(COLOURS)], 1, 1))
    out.append(f'<text x="{LEFT}" y="{lower.top - 8}">difference from {escape(runs[0][0])}, step by step</text>')
    for step in range(0, steps + 1, max(1, steps // 6)):
        x, _ = lower.place(step, 0.0)
        out.append(f'<text x="{x:.1f}" y="{HEIGHT - 12}" text-anchor="middle">{step}</text>')
    if files:
        out += activations(files, steps, HEIGHT)
    return "\n".join([*out, "</svg>"]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--out", required=True, help="SVG file to write")
    parser.add_argument("--window", type=int, default=20, help="steps of the thick lines' mean (default 20)")
    parser.add_argument("--activations", action="append", default=[], metavar="FILE", help="one for each run")
    options = parser.parse_args()
    runs = []
    for run in options.runs:
        name, equals, folder = run.rpartition("=")
        if not equals:
            parser.error(f"{run}: a run is given as NAME=FOLDER")
        runs.append((name, losses(folder)))
    with open(options.out, "w") as file:
        file.write(picture(runs, options.window, options.activations))


if __name__ == "__main__":
    main()
