"""Releases: from videos to a checked encoder with a card (training/releases/*.yaml)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training.common.yaml_files import find_file, read_as
from training.evaluation.evidence import Subject, in_folder, measure_all
from training.models.loading import load_model
from training.reporting.pca_sheet import draw_pca_sheet
from video_distilled_encoder.errors import InputError

RELEASES = Path(__file__).parent


@dataclass(frozen=True)
class Release:
    """What a file in training/releases says."""

    recipe: list[str]
    """Recipes, each on top of those before it."""
    card: str
    """The card's template, from the folder the command is given in."""
    measures: dict[str, str]
    """By name, what follows `python -m training.evaluate`, with folders relative to --evaluation."""
    beside: dict[str, list[int]]
    """Models that are measured as well, each with these seeds."""
    held_out: list[str]
    """Folders in --evaluation of whose pictures none may be in the training."""
    pictures: list[str]
    """Pictures in --evaluation that are shown beside their features."""


def show(
    release: Release, weights: Path, evaluation: Path, results: Path, picture: Path, device: str | None = None
) -> None:
    """Measure the weights and what stands beside them, and draw their features."""
    subjects = [Subject(weights.name, str(weights))]
    subjects += [Subject(name, name, seed) for name, seeds in release.beside.items() for seed in seeds]
    measure_all(release.measures, subjects, evaluation, results, device)
    models = {"these weights": load_model(str(weights)), "random weights": load_model("random")}
    draw_pca_sheet(models, [evaluation / image for image in release.pictures], picture)


def read_release(name: str) -> Release:
    """Read a release by name or path.

    Raises:
        InputError: there is none, or it is not one.
    """
    return read_as(find_file(name, RELEASES, "release"), "release", lambda content: Release(**content))


def check_evaluation(release: Release, evaluation: Path) -> None:
    """Tell what is missing before hours of training.

    Raises:
        InputError: something is.
    """
    for words in release.measures.values():
        in_folder(words, evaluation)
    for name in (*release.held_out, *release.pictures):
        if not (evaluation / name).exists():
            raise InputError(f"there is no {evaluation / name}, which the release is to be shown on")
