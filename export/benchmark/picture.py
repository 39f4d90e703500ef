"""The latencies as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.benchmark.report import Record, Report
from video_distilled_encoder.errors import import_pyplot
from video_distilled_encoder.files import atomic_path

_NETWORK, _PREPROCESSING, _BOTH, _FLOOR = "#3b6ea5", "#e8a33d", "#7a6c9c", "#444444"
_LEGEND = {"network": _NETWORK, "preprocessing of the frame": _PREPROCESSING, "network, preprocessing inside": _BOTH}


def draw(report: Report, path: Path) -> None:
    """Draw a bar for each row, network and preprocessing, one panel for each size and batch, as a PNG."""
    plt = import_pyplot("export")
    from matplotlib import lines, patches

    records = report.records()
    panels = list(dict.fromkeys((record["size"], record["batch"]) for record in records))
    rows = [[record for record in records if (record["size"], record["batch"]) == panel] for panel in panels]
    heights = [len(members) + 1.5 for members in rows]
    figure, axes = plt.subplots(
        len(panels),
        1,
        figsize=(10, 0.32 * sum(heights) + 1.2),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for axis, members in zip(axes[:, 0], rows, strict=True):
        _draw_panel(axis, members)
    machine = report.machine
    figure.suptitle(f"{machine['gpu'] or machine['cpu']}, CPU threads: {machine['threads']}", fontsize=11)
    both = any(record["preprocessing_inside"] for record in records)
    handles: list[Any] = [
        patches.Patch(color=colour, label=label) for label, colour in _LEGEND.items() if colour != _BOTH or both
    ]
    handles.append(lines.Line2D([], [], color=_FLOOR, linestyle=":", label="matmul floor, fp32"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)
    plt.close(figure)


def _draw_panel(axis: Any, records: list[Record]) -> None:
    places = list(range(len(records)))[::-1]  # the fastest on top
    total = [record["end_to_end_median_ms"] for record in records]
    network = [min(record["network_median_ms"], whole) for record, whole in zip(records, total, strict=True)]
    rest = [whole - part for whole, part in zip(total, network, strict=True)]
    colours = [_BOTH if record["preprocessing_inside"] else _NETWORK for record in records]
    axis.barh(places, network, color=colours)
    axis.barh(places, rest, left=network, color=_PREPROCESSING)
    floor = records[0]["floor_ms"]
    if floor is not None:
        axis.axvline(floor, color=_FLOOR, linestyle=":")
    for place, record, whole in zip(places, records, total, strict=True):
        speedup = record["speedup_end_to_end"]
        text = f"{whole:.{1 if whole < 100 else 0}f} ms" + (f" ({speedup:.2f}x)" if speedup else "")
        behind = {"color": "white", "pad": 1}  # the floor's line must not run through the figures
        axis.annotate(text, (whole, place), (4, 0), textcoords="offset points", va="center", fontsize=8, bbox=behind)
    axis.set_yticks(places, [record["name"] for record in records], fontsize=9)
    axis.set_xlim(0, 1.18 * max(*total, floor or 0))
    axis.set_ylim(-0.6, len(records) - 0.4)
    over = records[0]["speedup_over"]
    beside = f"; in brackets: times as fast as {over}" if over else ""
    axis.set_title(f"{records[0]['size']}, batch {records[0]['batch']}{beside}", fontsize=10, loc="left")
    axis.set_xlabel("milliseconds from uint8 frame to features (median)", fontsize=9)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
