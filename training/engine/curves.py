"""The curves of a run as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from math import ceil, floor, isfinite, log10
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.common.tiles import write_tiles
from training.engine.log import read_log

_PANELS: dict[str, tuple[str, ...]] = {
    "loss": ("loss", "dense_loss", "global_loss"),
    "entropy of the teacher's targets (nats)": ("patch_entropy", "cls_entropy"),
    "entropy of their mean over the batch (nats)": ("patch_batch_entropy", "cls_batch_entropy"),
    "spread of the teacher's features": ("patch_feature_std", "cls_feature_std"),
    "effective rank of the teacher's features": ("patch_feature_rank", "cls_feature_rank"),
    "largest gradient norm of a tensor": ("grad_norm",),
    "clips per second": ("clips_per_second",),
    "seconds of a step, and of its parts": ("seconds", "data_wait", "balance_time", "loss_time"),
    "TFLOP per second": ("tflop_per_second",),
    "peak memory (GiB)": ("memory_gib",),
}
_COLUMNS = 5
_SIZE = (440, 320)
"""Pixels of a panel, width and height."""
_SCALE = 2
"""So many times larger it is drawn, for smooth lines."""
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728")
"""Of the curves of a panel, in their order."""


def panels_of(row: Mapping[str, float]) -> dict[str, list[str]]:
    """Return what is drawn together, by title: what is known to belong together, and each other number by itself."""
    known = {title: [name for name in names if name in row] for title, names in _PANELS.items()}
    rest = [name for name in row if name != "step" and not any(name in names for names in _PANELS.values())]
    known |= {name.replace("_", " "): [name] for name in rest}
    return {title: names for title, names in known.items() if names} or {"no step": []}


def plot_curves(log: Path, picture: Path) -> None:
    """Draw the log of a run (`log.jsonl`) as a PNG: a panel for each of `panels_of`."""
    rows = read_log(log)
    steps = [row["step"] for row in rows]
    panels = [
        draw_panel(title, steps, {name.replace("_", " "): [row[name] for row in rows] for name in names})
        for title, names in panels_of(rows[0] if rows else {}).items()
    ]
    panels += [np.full_like(panels[0], 255)] * (-len(panels) % _COLUMNS)
    write_tiles(picture, [panels[at : at + _COLUMNS] for at in range(0, len(panels), _COLUMNS)], 0)


def draw_panel(title: str, steps: Sequence[float], curves: Mapping[str, Sequence[float]]) -> np.ndarray:
    """Draw curves over the steps, as uint8 of shape (320, 440, 3); numbers that are not finite leave a gap.

    Not by matplotlib, which takes two seconds for what a run logs, nearly all of them for ticks and the layout.
    """
    font = ImageFont.load_default(20)
    image = Image.new("RGB", (_SCALE * _SIZE[0], _SCALE * _SIZE[1]), "white")
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = 110, 50, image.width - 30, image.height - 70
    x = _Scale(steps, left, right)
    y = _Scale([value for values in curves.values() for value in values], bottom, top)
    for value in x.ticks(5):
        draw.line((x(value), top, x(value), bottom), "#e0e0e0", 2)
        draw.text((x(value), bottom + 8), f"{value:.6g}", "black", font, "ma")
    for value in y.ticks(6):
        draw.line((left, y(value), right, y(value)), "#e0e0e0", 2)
        draw.text((left - 8, y(value)), f"{value:.6g}", "black", font, "rm")
    draw.rectangle((left, top, right, bottom), outline="black", width=2)
    draw.text(((left + right) / 2, top - 10), title, "black", ImageFont.load_default(24), "ms")
    draw.text(((left + right) / 2, image.height - 8), "step", "black", font, "ms")
    for number, (name, values) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        for finite, part in groupby(zip(steps, values, strict=True), lambda point: isfinite(point[1])):
            if finite:
                line = [(x(step), y(value)) for step, value in part]
                draw.line([(line[0][0] - 4, line[0][1]), *line] if len(line) == 1 else line, colour, 3)
        if len(curves) > 1:
            draw.text((right - 12, top + 8 + 26 * number), name, colour, font, "ra")
    return np.asarray(image.reduce(_SCALE))


class _Scale:
    """Where on one side of a panel a number lies."""

    def __init__(self, values: Sequence[float], begin: float, end: float) -> None:
        finite = [value for value in values if isfinite(value)] or [0.0, 1.0]
        self.low, self.high = min(finite), max(finite)
        if self.low == self.high:
            around = abs(self.low) / 20 or 0.05
            self.low, self.high = self.low - around, self.high + around
        margin = (self.high - self.low) / 20
        self.low, self.high = self.low - margin, self.high + margin
        self.begin, self.end = begin, end

    def __call__(self, value: float) -> float:
        return self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)

    def ticks(self, most: int) -> list[float]:
        """Return at most so many round numbers that lie on it: 1, 2 or 5 times a power of ten apart."""
        least = (self.high - self.low) / most
        power = 10.0 ** floor(log10(least))
        apart = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least)
        return [number * apart for number in range(ceil(self.low / apart), floor(self.high / apart) + 1)]
