"""The words of the command that trains."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from training.common.cache import frame_stores
from training.common.commands import parse_duration
from training.engine import handover
from training.recipes.recipe import Recipe, parse_settings
from video_distilled_encoder.sources.options import add_source_options


def parse_arguments(argv: Sequence[str], description: str | None = None) -> tuple[argparse.Namespace, Recipe]:
    """Read the command line: a recipe, any of its settings, and what belongs to this run alone."""
    prog = "python -m training.pretrain"
    usage = f"{prog} --data VIDEO_OR_DIR… --out DIR [--recipe NAME] [--SECTION.SETTING VALUE …]"
    settings, recipe = parse_settings(argv, add_run_arguments, prog=prog, usage=usage, description=description)
    if settings.init_from:
        recipe = replace(recipe, run=replace(recipe.run, init_from=settings.init_from))
    return settings, recipe


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is not a setting of the recipe."""
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="videos, data sets, or folders of them")
    add_source_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="the run directory")
    parser.add_argument("--init-from", help="the same as --run.init_from")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--max-time", type=parse_duration, help="length of the run, HH:MM:SS, in place of the recipe's")
    parser.add_argument(
        "--shard-size", type=float, default=handover.SHARD_MIB, metavar="MIB", help="largest file of OUT/handover"
    )
    parser.add_argument("--dry-run", action="store_true", help="describe the run and draw its views instead")
    parser.add_argument("--frames", type=Path, help=f"folder of the frame stores, if not {frame_stores()}")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out videos that cannot be read")
