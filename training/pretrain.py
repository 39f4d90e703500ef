"""`python -m training.pretrain --data VIDEO_OR_DIR… --out DIR`: videos and robots' recordings in, an encoder out.

The run directory holds recipe.yaml (every setting), run.json (data and machine), views.png (the first clips as the
network sees them), log.jsonl (every step), tensorboard/, curves.png, checkpoints/ and, at the end, encoder/: the
teacher's backbone as a model directory for `Encoder.from_pretrained`, timm and transformers, with handover/, what the
next run needs to go on (`--init-from DIR`). Under torchrun or accelerate launch the same command uses every GPU of
every node.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from training.common import stop
from training.common.cache import frame_stores
from training.common.commands import parse_duration
from training.engine import handover
from training.engine.plan import age_of_process
from training.engine.run import dry_run, pretrain
from training.recipes.recipe import Recipe, parse_settings
from video_distilled_encoder.errors import command
from video_distilled_encoder.sources.options import add_source_options, asked_of


@command
def main() -> None:
    """Run the command."""
    args, recipe = parse_arguments(sys.argv[1:])
    if args.dry_run:
        print(dry_run(args.data, args.out, recipe, args.frames, args.skip_unreadable, asked_of(args)))
        return
    with stop.listening():
        pretrain(
            args.data,
            args.out,
            recipe,
            frames=args.frames,
            asked=asked_of(args),
            resume=args.resume,
            max_seconds=None if args.max_time is None else args.max_time - age_of_process(),
            skip_unreadable=args.skip_unreadable,
            shard_mib=args.shard_size,
        )
    # Python would look through all that is alive once more before it ends, for a second that belongs to no one.
    gc.freeze()


def parse_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, Recipe]:
    """Read the command line: a recipe, any of its settings, and what belongs to this run alone."""
    prog = "python -m training.pretrain"
    usage = f"{prog} --data VIDEO_OR_DIR… --out DIR [--recipe NAME] [--SECTION.SETTING VALUE …]"
    settings, recipe = parse_settings(argv, add_run_arguments, prog=prog, usage=usage, description=__doc__)
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


if __name__ == "__main__":
    main()
