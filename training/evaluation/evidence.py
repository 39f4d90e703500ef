"""Evidence: models measured by protocols, each result one JSON in one folder, and nothing measured twice.

A measure is a name and what follows `python -m training.evaluate`, with folders relative to that of all evaluation
data: "linear-segmentation --data camvid --future 1".
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from training.common.cache import frame_stores
from training.evaluation.measure import evaluate, parser
from training.evaluation.statistics.comparison import read_result
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.sources.options import add_source_options

_FOLDERS = ("--data", "--video")


class Subject(NamedTuple):
    """What is measured."""

    name: str
    """In the names of results."""
    model: str
    """What `--model` takes."""
    seed: int = 0
    """Of a random model, and of training probes."""

    def result_of(self, measure: str) -> str:
        """Return the name of the result of a measure."""
        return f"{measure}-{self.name}" + (f"-seed{self.seed}" if self.seed else "")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what a command takes that trains and measures."""
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="videos, data sets, or folders of them")
    add_source_options(parser)
    parser.add_argument("--evaluation", type=Path, required=True, help="the folder that holds the measures' folders")
    parser.add_argument("--device", help="to measure on: cpu or cuda (cuda where there is one)")
    parser.add_argument("--frames", type=Path, default=frame_stores(), help="folder of the frame stores (%(default)s)")


def measure_all(
    measures: Mapping[str, str], subjects: Sequence[Subject], data: Path, results: Path, device: str | None = None
) -> None:
    """Measure all subjects and write `results/MEASURE-SUBJECT[-seedN].json`.

    A result that is there already stays, if it is of the same data, by content, and of the same weights and options.

    Args:
        measures: by name, see above.
        subjects: models.
        data: the folder that the measures' folders are in.
        results: where results are, and go.
        device: "cpu" or "cuda".

    Raises:
        InputError: a folder of data is missing (before anything is measured), or a model cannot be used.
    """
    command_lines = {name: in_folder(words, data) for name, words in measures.items()}
    results.mkdir(parents=True, exist_ok=True)
    for subject in subjects:
        for name, command_line in command_lines.items():
            path = results / f"{subject.result_of(name)}.json"
            options = ["--model", subject.model, "--seed", str(subject.seed), "--out", str(path), "--reuse"]
            result = evaluate([*command_line, *options, *(["--device", device] if device else [])])
            headline, figure = next(iter(result["figures"].items()))
            print(f"{path.stem}: {headline} {figure}", flush=True)


def in_folder(words: str, data: Path) -> list[str]:
    """Return a measure as arguments, its folders found in `data`.

    Raises:
        InputError: a folder is not there.
    """
    arguments = shlex.split(words)
    for number, word in enumerate(arguments):
        if number and arguments[number - 1] in _FOLDERS:
            folder = data / word
            if not folder.exists():
                raise InputError(f"there is no {folder}; {words!r} is to be measured on it")
            arguments[number] = str(folder)
    return arguments


def check(measures: Mapping[str, str], data: Path) -> None:
    """Tell what cannot be measured, before anything is.

    Raises:
        InputError: a folder of data is missing.
        SystemExit: a measure is none that `python -m training.evaluate` knows; it says why.
    """
    for words in measures.values():
        parser().parse_args([*in_folder(words, data), "--model", "constant"])


def read_figure(results: Path, subject: Subject, figure: str) -> float | None:
    """Return a figure of a subject, "MEASURE NAME", as "camvid miou"; None if it has not been measured, or is none.

    Raises:
        InputError: the measure has no such figure.
    """
    measure, name = figure.split()
    path = results / f"{subject.result_of(measure)}.json"
    if not path.is_file():
        return None
    found = read_result(path)["figures"]
    if name not in found:
        raise InputError(f"{path} has no figure {name}; it has {', '.join(found)}")
    return None if found[name] is None else float(found[name])
