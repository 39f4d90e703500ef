"""One page about a clip: how several encoders see it, side by side."""

from __future__ import annotations

import argparse
import html
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training.evaluation.features import extract
from training.evaluation.statistics.student import difference, student_interval
from training.models.loading import load_model
from training.reporting import pictures
from training.reporting.measures import PART, Measures, Series, choose_pairs, measure
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.sources import find_sources
from video_distilled_encoder.sources.source import Asked

_PAGE = Path(__file__).parent / "page.html"
_STEP, _MOVING = 8, 1e-3
"""Grey levels by which a pixel must change, and share of pixels that must, for a clip to move."""


class Clip(NamedTuple):
    """What is read of the video."""

    name: str
    frames: list[np.ndarray]
    """(H, W, 3) uint8 each."""
    times: np.ndarray
    """(T,) seconds."""
    shots: np.ndarray
    """(T,) number of the shot that each frame is of."""


class Subject(NamedTuple):
    """One model on the clip."""

    name: str
    grids: Tensor
    """(T, h, w, C)."""
    measures: Measures
    device: torch.device
    """That it was measured on."""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    title: str
    explanation: str
    find: Callable[[Measures], Series]
    """What it shows; the pairs of frames are the same for all models."""
    higher_is_better: bool | None
    """None: neither."""
    percent: bool = False

    def digits(self, number: float) -> str:
        """Return a number as the line shows it."""
        return f"{number:.1f}" if self.percent else f"{number:.2f}"

    def series(self, measures: Measures) -> Series:
        """Return a model's numbers, in percent if the line is."""
        found = self.find(measures)
        return found._replace(values=100 * found.values) if self.percent else found


def read_clip(video: Path, seconds: float, fps: float, asked: Asked | None = None) -> Clip:
    """Read the beginning of a video, or of the recording of a data set that is asked for.

    Raises:
        InputError: it cannot be read, is not one recording, or is too short to compare frames of.
    """
    if fps <= 0 or seconds <= 0:
        raise InputError(f"--fps and --seconds must be positive, got {fps} and {seconds}")
    source, *others = find_sources([video], asked)
    if others:
        named = "; ".join(map(str, [source, *others[:4]]))
        raise InputError(
            f"{video} holds {1 + len(others)} recordings, and a report is of one: choose it with --cameras and "
            f"--episodes, or name its file; there are {named}{', …' * (len(others) > 4)}"
        )
    frames, times, cuts = [], [], []
    info = source.info()
    expected = min(seconds, info.frames / max(info.fps, 1)) * fps
    for frame in tqdm(source.frames(min_interval=1 / fps), "read", round(expected), unit="frame", dynamic_ncols=True):
        if frame.time > seconds:
            break
        frames.append(frame.image)
        times.append(frame.time)
        cuts.append(frame.new_shot)
    clip = Clip(source.name, frames, np.array(times), np.cumsum(cuts))
    if len(frames) < 2 or not choose_pairs(clip.times, clip.shots):
        raise InputError(f"{video} is too short for a report: it has {len(frames)} frames at --fps {fps:g}")
    return clip


def examine(name: str, clip: Clip, pairs: dict[float, list[tuple[int, int]]], args: argparse.Namespace) -> Subject:
    """Encode the clip with a model and measure it."""
    model = load_model(name, device=args.device, seed=args.seed)
    height, width = clip.frames[0].shape[:2]
    scale = min(1.0, args.short_side / min(height, width))
    size = model.nearest_size(height * scale, width * scale)
    label = str(model.description["name"])
    grids = extract(model, clip.frames, size, cache=args.cache, in_order=True, desc=f"encode {label}").grid
    return Subject(label, grids, measure(model, clip.frames, clip.times, grids, pairs), model.device)


def rows(gaps: Sequence[float]) -> list[Row]:
    """Return the lines of the table for the gaps there are."""
    near, far = min(gaps), max(gaps)
    found_again = [
        Row(
            f"finds again what changes, {gap:g} s",
            "of the patches that look different in the later frame, the share whose most similar patch there leads "
            "back to within one patch, less the share that a photograph of another scene leads back: position alone, "
            "or nothing at all, scores 0",
            lambda measures, gap=gap: measures.cycle[gap].above(measures.chance[gap]),  # type: ignore[misc]
            True,
            percent=True,
        )
        for gap in dict.fromkeys((near, far))
    ]
    return [
        *found_again,
        Row(
            f"tells scenes apart, {far:g} s",
            "cosine of patches at one place, less that with a photograph of another scene; constant features score 0",
            lambda measures: measures.similarity[far].above(measures.unrelated),
            True,
        ),
        Row(
            f"similarity, {far:g} s",
            "mean cosine of patches at one place; high is not good by itself: constant features score 1",
            lambda measures: measures.similarity[far],
            None,
        ),
    ]


def nothing_to_tell(clip: Clip) -> str:
    """Return in words why no encoder can be told from another by a clip; empty if one can.

    Where nothing changes all pairs of frames are one pair, and a difference that has no spread looks sure.
    """
    levels = [frame.astype(np.int16) for frame in clip.frames]
    if max(int(np.ptp(frame.reshape(-1, 3), axis=0).max()) for frame in levels) < _STEP:
        return "The clip is of one colour throughout: there is nothing in it to find again"
    if max(float((np.abs(frame - levels[0]) >= _STEP).any(-1).mean()) for frame in levels) < _MOVING:
        return "The clip stands still: all of its frames are one picture"
    return ""


def fill_table(subjects: Sequence[Subject], gaps: Sequence[float], silence: str = "") -> tuple[str, str]:
    """Return the table, and a sentence that sums it up; every model is compared with the first.

    Args:
        subjects: models.
        gaps: seconds between two frames.
        silence: why nothing can be told, if so; then there are no verdicts.
    """
    first = subjects[0]
    heads = "".join(f"<th>{html.escape(subject.name)}</th>" for subject in subjects)
    table = [f"<tr><th></th>{heads}</tr>"]
    found: dict[str, list[str]] = {subject.name: [] for subject in subjects[1:]}
    for row in rows(gaps):
        cells = [cell(row, first, None)[0]]
        for subject in subjects[1:]:
            text, verdict = cell(row, subject, first, tell=not silence)
            cells.append(text)
            if verdict:
                found[subject.name].append(f"{verdict} at “{row.title}”")
        table.append(f"<tr><td>{row.title}<small>{row.explanation}</small></td>{''.join(cells)}</tr>")
    times = "".join(f"<td>{subject.measures.milliseconds:.0f} ms</td>" for subject in subjects)
    table.append(f"<tr><td>one frame<small>median time, preprocessing included</small></td>{times}</tr>")
    sentences = [
        f"<b>{html.escape(name)}</b> against <b>{html.escape(first.name)}</b>: "
        f"{', '.join(verdicts) or 'no difference that this clip can tell'}."
        for name, verdicts in found.items()
    ]
    if silence and len(subjects) > 1:
        return "".join(table), f"{silence}, so it cannot tell these encoders apart."
    return "".join(table), " ".join(sentences) or "One encoder only: add more to --models to compare."


def cell(row: Row, subject: Subject, reference: Subject | None, *, tell: bool = True) -> tuple[str, str]:
    """Return a cell of the table, and whether the model is better or worse than the reference, if it can be told."""
    series = row.series(subject.measures)
    text = f"{row.digits(series.values.mean())}{'%' if row.percent else ''}"
    text += f"<small>{_range(row, *student_interval(series.values, series.parts.tolist()))}</small>"
    if reference is None:
        return f"<td>{text}</td>", ""
    change = difference(series.values, row.series(reference.measures).values, series.parts.tolist())
    verdict = ""
    if tell and row.higher_is_better is not None and change.verdict != "cannot tell":
        verdict = "better" if (change.verdict == "larger") == row.higher_is_better else "worse"
    note = "" if row.higher_is_better is None else verdict or "cannot tell"
    sign = "+" if change.mean >= 0 else "−"
    bounds = _range(row, change.low, change.high)
    text += f'<small class="{verdict}">{sign}{row.digits(abs(change.mean))} {bounds} {note}</small>'
    return f"<td>{text}</td>", verdict


def _range(row: Row, low: float, high: float) -> str:
    return f"[{row.digits(low)}, {row.digits(high)}]" if np.isfinite(low) else ""


def draw_curves(subjects: Sequence[Subject]) -> str:
    """Return the two plots over time as SVG."""
    plots = []
    for title, label, least, by_gap, level in (
        ("Changed patches that find their way back", "share", 0, "cycle", "chance"),
        ("Similarity at one place", "cosine", -1, "similarity", "unrelated"),
    ):
        lines, levels = {}, {}
        for subject in subjects:
            values = getattr(subject.measures, by_gap)
            bands = [student_interval(found.values, found.parts.tolist()) for found in values.values()]
            bands = [(max(low, least), min(high, 1)) for low, high in bands]  # what there can be
            lines[subject.name] = (list(values), [float(found.values.mean()) for found in values.values()], bands)
            control = getattr(subject.measures, level)
            controls = control.values() if isinstance(control, dict) else [control]
            levels[subject.name] = float(np.mean([found.values.mean() for found in controls]))
        plots.append(f"<div>{pictures.curve(title, label, lines, levels)}</div>")
    return "".join(plots)


def draw_correspondences(clip: Clip, subjects: Sequence[Subject], pair: tuple[int, int]) -> str:
    """Return a picture for each model."""
    frames = (clip.frames[pair[0]], clip.frames[pair[1]])
    return "".join(
        f'<figure class="pair"><figcaption>{html.escape(subject.name)}</figcaption>'
        f"{pictures.correspondences(frames, (subject.grids[pair[0]], subject.grids[pair[1]]))}</figure>"
        for subject in tqdm(subjects, "draw", unit="model", dynamic_ncols=True)
    )


def write_page(clip: Clip, subjects: Sequence[Subject], pairs: dict[float, list[tuple[int, int]]]) -> str:
    """Return the whole page."""
    gap = min(pairs, key=lambda seconds: abs(seconds - 1.0))
    films = [[pictures.photograph(frame, pictures.FILM_HEIGHT) for frame in clip.frames]]
    films += [pictures.pca_pictures(subject.grids) for subject in subjects]
    screens = [f'<figure><img class="photo" alt="frame"><figcaption>{html.escape(clip.name)}</figcaption></figure>']
    shape = clip.frames[0].shape[1] / clip.frames[0].shape[0]
    for subject in subjects:
        screens.append(
            f'<figure><img alt="features" style="aspect-ratio:{shape:.4f}">'
            f"<figcaption>{html.escape(subject.name)}</figcaption></figure>"
        )
    table, verdict = fill_table(subjects, list(pairs), nothing_to_tell(clip))
    step = float(np.median(np.diff(clip.times)))
    return Template(_PAGE.read_text(encoding="utf-8")).substitute(
        title=html.escape(f"Encoders on {clip.name}"),
        facts=f"{len(clip.frames)} frames, {clip.times[-1]:.1f} s, {1 / step:.1f} per second. "
        f"{_machine(subjects[0].device)}, torch {torch.__version__}.",
        screens="".join(screens),
        frames=json.dumps(films),
        times=json.dumps([round(float(time), 3) for time in clip.times]),
        last=len(clip.times) - 1,
        interval=round(1000 * step),
        table=table,
        verdict=verdict,
        measures=f"In brackets Student's 95 % interval over parts of the clip, as many as have {PART:g} s and the time "
        "between two frames; below it the difference from the first encoder, pair by pair, with its own "
        "interval. Where that holds 0, or there is one part only, the clip cannot tell: choose a longer one.",
        curves=draw_curves(subjects),
        gap=f"{gap:g} s",
        correspondences=draw_correspondences(clip, subjects, pairs[gap][len(pairs[gap]) // 2]),
    )


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} processor, {torch.get_num_threads()} threads"
