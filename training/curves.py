"""The curves of a run as a picture."""

from __future__ import annotations

from pathlib import Path

from training.log import read_log
from video_distilled_encoder.errors import MissingExtra
from video_distilled_encoder.files import atomic_path

_PANELS = {
    "loss": ("loss", "dense_loss", "global_loss"),
    "entropy of the teacher's targets (nats)": ("patch_entropy", "cls_entropy"),
    "entropy of their mean over the batch (nats)": ("patch_batch_entropy", "cls_batch_entropy"),
    "spread of the teacher's features": ("patch_feature_std", "cls_feature_std"),
    "effective rank of the teacher's features": ("patch_feature_rank", "cls_feature_rank"),
    "largest gradient norm of a tensor": ("grad_norm",),
    "clips per second": ("clips_per_second",),
    "seconds of a step waiting for data": ("data_wait",),
}


def plot_curves(log: Path, picture: Path) -> None:
    """Draw the log of a run (`log.jsonl`) as a PNG."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtra("matplotlib", "train") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = read_log(log)
    steps = [row["step"] for row in rows]
    figure, axes = plt.subplots(2, 4, figsize=(17, 6.5), layout="constrained")
    for axis, (title, names) in zip(axes.flat, _PANELS.items(), strict=True):
        for name in names:
            if rows and name in rows[0]:
                axis.plot(steps, [row[name] for row in rows], label=name.replace("_", " "), linewidth=1)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if rows and len(names) > 1:
            axis.legend(fontsize=8)
    with atomic_path(picture) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
