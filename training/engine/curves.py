"""The curves of a run as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from training.engine.log import read_log
from video_distilled_encoder.errors import import_pyplot
from video_distilled_encoder.files import atomic_path

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


def panels_of(row: Mapping[str, float]) -> dict[str, list[str]]:
    """Return what is drawn together, by title: what is known to belong together, and each other number by itself."""
    known = {title: [name for name in names if name in row] for title, names in _PANELS.items()}
    rest = [name for name in row if name != "step" and not any(name in names for names in _PANELS.values())]
    known |= {name.replace("_", " "): [name] for name in rest}
    return {title: names for title, names in known.items() if names} or {"no step": []}


def plot_curves(log: Path, picture: Path) -> None:
    """Draw the log of a run (`log.jsonl`) as a PNG."""
    plt = import_pyplot("train")
    rows = read_log(log)
    steps = [row["step"] for row in rows]
    known = panels_of({name: 0.0 for row in rows for name in row})  # resumed elsewhere, a run logs other things
    height = -(-len(known) // _COLUMNS)
    figure, axes = plt.subplots(height, _COLUMNS, figsize=(20, 3.2 * height), squeeze=False)
    # Margins and titles by hand, and few ticks: matplotlib draws every label twice to find the places itself.
    figure.subplots_adjust(0.04, 0.16 / height, 0.99, 1 - 0.1 / height, wspace=0.25, hspace=0.4)
    for axis in axes.flat[len(known) :]:
        axis.set_axis_off()
    for axis, (title, names) in zip(axes.flat, known.items(), strict=False):
        for name in names:
            axis.plot(steps, [row.get(name, math.nan) for row in rows], label=name.replace("_", " "), linewidth=1)
        axis.set_title(title, fontsize=10, y=1)
        axis.set_xlabel("step")
        axis.ticklabel_format(useOffset=False)
        axis.locator_params(nbins=5)
        axis.grid(alpha=0.3)
        if len(names) > 1:
            axis.legend(fontsize=8, loc="upper right")
    with atomic_path(picture) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
