"""What the report shows: frames and PCA pictures as data addresses, curves and correspondences as SVG."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from training.evaluation.metrics.correspondence import cycle_map, match
from training.reporting.measures import changed_patches
from video_distilled_encoder.errors import import_pyplot
from video_distilled_encoder.pca import PCA

FRAME_HEIGHT, FILM_HEIGHT = 270, 180
LINES = 24
"""Correspondences that are drawn, at most."""


def photograph(frame: np.ndarray, height: int = FRAME_HEIGHT) -> str:
    """Return an (H, W, 3) frame, reduced to `height`, as a data address (JPEG)."""
    image = Image.fromarray(frame)
    image.thumbnail((4 * height, height), Image.Resampling.BICUBIC)
    return _address(image, "JPEG", quality=80)


def pca_pictures(grids: Tensor) -> list[str]:
    """Return (T, h, w, C) features as data addresses of PNGs, a pixel per patch, with colours common to all frames."""
    pca = PCA.fit(grids.flatten(0, 2).float())
    size = (grids.shape[1], grids.shape[2])
    return [_address(Image.fromarray(pca.picture(grid.movedim(-1, 0).float(), size)), "PNG") for grid in grids]


def _address(image: Image.Image, kind: str, **options: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def curve(
    title: str,
    label: str,
    lines: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[tuple[float, float]]]],
    levels: Mapping[str, float],
) -> str:
    """Draw lines with bands, and a dashed level for each, as an SVG.

    Args:
        title: above the plot.
        label: of the vertical axis.
        lines: by name, positions, values and (low, high) bands.
        levels: by name, what the line is to be seen against.
    """
    plt = import_pyplot("train")
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        figure, axis = plt.subplots(figsize=(5.6, 3.4), layout="constrained")
        for name, (x, y, band) in lines.items():
            (drawn,) = axis.plot(x, y, marker="o", markersize=3, label=name)
            low, high = zip(*band, strict=True)
            axis.fill_between(x, low, high, color=drawn.get_color(), alpha=0.15, linewidth=0)
            axis.axhline(levels[name], color=drawn.get_color(), linestyle=":", linewidth=1)
        axis.set(title=title, xlabel="seconds between the frames", ylabel=label)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def correspondences(frames: tuple[np.ndarray, np.ndarray], grids: tuple[Tensor, Tensor]) -> str:
    """Draw patches of a frame that change, spread over it, and where they are found in a later one, as an SVG.

    Args:
        frames: two (H, W, 3) frames.
        grids: their (h, w, C) features.
    """
    ties = torch.Generator().manual_seed(0)
    there, _ = match(*grids, ties)
    home = cycle_map(*grids, ties)
    rows, columns = home.shape
    height = FRAME_HEIGHT
    width = round(frames[0].shape[1] * height / frames[0].shape[0])
    gap = 8
    parts = [f'<svg viewBox="0 0 {2 * width + gap} {height}" xmlns="http://www.w3.org/2000/svg">']
    for number, frame in enumerate(frames):
        left = number * (width + gap)
        parts.append(f'<image href="{photograph(frame)}" x="{left}" width="{width}" height="{height}"/>')
    changed = changed_patches(*frames, (rows, columns)).flatten().nonzero()[:, 0]
    for patch in changed[torch.linspace(0, len(changed) - 1, min(LINES, len(changed))).round().long()].tolist():
        row, column = divmod(patch, columns)
        target = int(there[patch])
        x1, y1 = (column + 0.5) / columns * width, (row + 0.5) / rows * height
        x2, y2 = (target % columns + 0.5) / columns * width + width + gap, (target // columns + 0.5) / rows * height
        colour = "#35d07f" if home[row, column] else "#ff5a3c"
        parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="1.2" '
            f'opacity=".8"/><circle cx="{x1:.1f}" cy="{y1:.1f}" r="2.5" fill="{colour}"/>'
            f'<circle cx="{x2:.1f}" cy="{y2:.1f}" r="2.5" fill="{colour}"/>'
        )
    return "".join([*parts, "</svg>"])
