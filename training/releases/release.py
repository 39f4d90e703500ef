"""Releases: from videos to a checked encoder with a card (training/releases/*.yaml)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from export.pipeline import export
from training.common.yaml_files import find_file, read_as
from training.engine.run import pretrain_whole
from training.evaluation.evidence import Subject, check, measure_all
from training.models.loading import load_model
from training.recipes.recipe import Recipe, options, read_recipe
from training.reporting.pca_sheet import draw_pca_sheet
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.model_directory import weights_sha256
from video_distilled_encoder.runtimes.artefact import SUFFIXES, Artefact
from video_distilled_encoder.sources.source import Asked

RELEASES = Path(__file__).parent


@dataclass(frozen=True)
class Run:
    """One of the trainings that make a release."""

    recipe: list[str]
    """Recipes, each on top of those before it."""
    settings: dict[str, Any] = field(default_factory=dict)
    """On top of those, as {"objective.teacher": "nota/vfd-vits16"}."""
    share: float = 1.0
    """Of the time, if one is given, in proportion to those of the other runs."""


@dataclass(frozen=True)
class Peer:
    """A model that is measured beside a release."""

    model: str | None = None
    """What `--model` takes, if it is not its name in the results."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """It is measured with each."""


@dataclass(frozen=True)
class Exported:
    """An export of a release that is measured beside it, of any size of image."""

    format: str = "openvino"
    precision: str = "int8"
    calibration: str | None = None
    """Folder of images in --evaluation that give int8 its ranges."""


@dataclass(frozen=True)
class Release:
    """What a file in training/releases says."""

    runs: dict[str, Run]
    """In the order they are trained in; each begins with what the one before it learnt."""
    card: str
    """The card's template, from the folder the command is given in."""
    measures: dict[str, str]
    """By name, what follows `python -m training.evaluate`, with folders relative to --evaluation."""
    beside: dict[str, Peer]
    """Models that are measured as well, by their names in the results."""
    held_out: list[str]
    """Folders in --evaluation of whose pictures none may be in the training."""
    pictures: list[str]
    """Pictures in --evaluation that are shown beside their features."""
    exports: dict[str, Exported] = field(default_factory=dict)
    """Exports that are measured as well, by their names in the results."""


def recipes_of(release: Release, last: list[str] | None, settings: Sequence[str]) -> dict[str, Recipe]:
    """Return the recipe of each run.

    Args:
        release: the release.
        last: recipes in place of the last run's.
        settings: of all runs, as on a command line, on top of their own.
    """
    layers = {name: run.recipe for name, run in release.runs.items()}
    layers |= {list(layers)[-1]: last} if last else {}
    return {name: read_recipe(layers[name], [*options(run.settings), *settings]) for name, run in release.runs.items()}


def train(
    release: Release,
    recipes: dict[str, Recipe],
    data: Sequence[Path],
    out: Path,
    frames: Path,
    seconds: float | None = None,
    asked: Asked | None = None,
) -> Path:
    """Train one run after the other in `out`, or go on with them; return the directory of the last.

    Args:
        release: the release.
        recipes: of its runs.
        data: video files, or folders of them.
        out: where the runs' directories are.
        frames: folder of the frame stores.
        seconds: how long they may take together.
        asked: cameras and episodes of data sets, and the rate of what has no clock.
    """
    whole = sum(run.share for run in release.runs.values())
    before: Path | None = None
    for name, run in release.runs.items():
        recipe = recipes[name]
        if before:
            recipe = replace(recipe, run=replace(recipe.run, init_from=str(before)))
        pretrain_whole(data, out / name, recipe, frames, seconds and seconds * run.share / whole, asked)
        before = out / name
    assert before
    return before


def show(
    release: Release, weights: Path, evaluation: Path, results: Path, picture: Path, device: str | None = None
) -> None:
    """Measure the weights, their exports and what stands beside them, and draw their features."""
    subjects = [Subject(weights.name, str(weights))]
    subjects += [
        Subject(name, str(write_export(weights, weights.with_name(name), exported, evaluation)))
        for name, exported in release.exports.items()
    ]
    subjects += [
        Subject(name, peer.model or name, seed) for name, peer in release.beside.items() for seed in peer.seeds
    ]
    measure_all(release.measures, subjects, evaluation, results, device)
    models = {
        "these weights": load_model(str(weights), device=device),
        "random weights": load_model("random", device=device),
    }
    draw_pca_sheet(models, [evaluation / image for image in release.pictures], picture)


def write_export(weights: Path, out: Path, exported: Exported, evaluation: Path) -> Path:
    """Export the weights to `out` and the format's suffix, unless they lie there; return the file."""
    out = out.with_name(out.name + SUFFIXES[exported.format])
    if not (out.is_file() and Artefact.read(out).facts["model"]["weights_sha256"] == weights_sha256(weights)):
        calibration = evaluation / exported.calibration if exported.calibration else None
        export(
            weights,
            out,
            format=exported.format,
            precision=exported.precision,
            dynamic_size=True,
            calibration=calibration,
            progress=print,
        )
    return out


def read_release(name: str) -> Release:
    """Read a release by name or path.

    Raises:
        InputError: there is none, or it is not one.
    """
    return read_as(find_file(name, RELEASES, "release"), "release", _release_of)


def _release_of(content: dict[str, Any]) -> Release:
    runs = {name: Run(**run) for name, run in content.pop("runs").items()}
    beside = {name: Peer(**(peer or {})) for name, peer in content.pop("beside").items()}
    exports = {name: Exported(**(exported or {})) for name, exported in content.pop("exports", {}).items()}
    return Release(runs=runs, beside=beside, exports=exports, **content)


def check_evaluation(release: Release, evaluation: Path) -> None:
    """Tell what is missing before hours of training.

    Raises:
        InputError: something is.
    """
    check(release.measures, evaluation)
    calibration = [exported.calibration for exported in release.exports.values() if exported.calibration]
    for name in (*release.held_out, *release.pictures, *calibration):
        if not (evaluation / name).exists():
            raise InputError(f"there is no {evaluation / name}, which the release is to be shown on")
