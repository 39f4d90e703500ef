"""`python -m training.benchmark --data VIDEO… --recipe NAME`: how fast this machine extracts, loads and trains.

Prints frames/s extracted, clips/s loaded (with the recipe's workers and nothing else to do), and of real training steps
clips/s, the shares of the time that go into waiting for data, balancing the targets and the loss, TFLOP/s beside what
the card can do (null where that is not known), and peak memory. The first steps are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from training.engine.throughput import measure
from training.recipes.recipe import parse_settings
from video_distilled_encoder.errors import command
from video_distilled_encoder.sources.options import add_source_options, asked_of


@command
def main() -> None:
    """Run the command."""
    prog = "python -m training.benchmark"
    usage = f"{prog} --data VIDEO… [--recipe NAME] [--steps N] [--SECTION.SETTING VALUE …]"
    settings, recipe = parse_settings(sys.argv[1:], _add_arguments, prog=prog, usage=usage, description=__doc__)
    figures = measure(settings.data, recipe, settings.steps, asked_of(settings))
    print(json.dumps(figures, indent=2))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="videos, data sets, or folders of them")
    add_source_options(parser)
    parser.add_argument("--steps", type=int, default=10, help="training steps measured")


if __name__ == "__main__":
    main()
