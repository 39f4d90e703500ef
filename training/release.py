"""`python -m training.release NAME --data VIDEO… --evaluation DATA --out DIR`: from videos to a checked release.

A release (training/releases/*.yaml) is a recipe, the measures that its card quotes, and what is measured beside it. The
command extracts the videos, looks for pictures of the evaluation among them (`python -m training.overlap`), trains in
DIR/run, writes the weights in half precision to DIR/NAME, measures them and what stands beside them, draws features,
fills in the card and checks it all (`python -m training.publish`). Given again, it goes on where it was stopped,
training as `--resume` of `python -m training.pretrain` does; no result of the same weights and settings is measured
twice.

`--time 00:25:00` sets the training's length, as `--max-time` of `python -m training.pretrain` does. Under torchrun the
same command trains on every GPU.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from training.evaluation.models import load_model
from training.evidence import Subject, add_arguments, in_folder, measure_all
from training.extract import extract_all
from training.frame_store import open_stores
from training.overlap import overlap
from training.pca_sheet import draw_pca_sheet
from training.pretrain import parse_duration, pretrain_whole
from training.publish import PICTURE, copy_card, describe, publish
from training.recipe import read_recipe
from training.yaml_files import find_file, names_in, read_mapping
from video_distilled_encoder.errors import InputError, command

RELEASES = Path(__file__).parent / "releases"


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


@command
def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m training.release", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("release", help=f"a YAML file, or one of: {', '.join(names_in(RELEASES))}")
    parser.add_argument("--out", type=Path, required=True, help="directory of the run, the results and the release")
    parser.add_argument("--recipe", nargs="+", help="in place of the release's")
    parser.add_argument("--time", type=parse_duration, help="length of the training, HH:MM:SS (the recipe's)")
    parser.add_argument("--card", type=Path, help="template of the model card, in place of the release's")
    parser.add_argument("--card-out", type=Path, help="write the card here too")
    parser.add_argument("--results", type=Path, help="folder of results (OUT/results)")
    add_arguments(parser)
    args, settings = parser.parse_known_args()
    release = read_release(args.release)
    template = args.card or Path(release.card)
    if not template.is_file():
        raise InputError(f"there is no card {template}; give its template as --card")
    check_evaluation(release, args.evaluation)
    run, results, out = args.out / "run", args.results or args.out / "results", args.out / Path(args.release).stem
    recipe = read_recipe(args.recipe or release.recipe, settings)
    pretrain_whole(args.data, run, recipe, args.frames, args.time)
    if int(os.environ.get("RANK", "0")):
        return
    if not (results / "overlap.json").is_file():
        stores = open_stores(extract_all(args.data, args.frames, recipe.extract))
        overlap(stores, [args.evaluation / folder for folder in release.held_out], results)
    publish(run, template, results, out, draft=True)
    show(release, out, args.evaluation, results, run / PICTURE, args.device)
    cosine = publish(run, template, results, out)
    if args.card_out:
        copy_card(out, args.card_out)
    print(describe(out, cosine))


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
    path = find_file(name, RELEASES, "release")
    content = read_mapping(path, "release")
    try:
        return Release(**content)
    except TypeError as error:
        raise InputError(f"{path} is not a release: {error}") from error


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


if __name__ == "__main__":
    main()
