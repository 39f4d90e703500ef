"""What commands ask of sources."""

from __future__ import annotations

import argparse
import re
import sys

from video_distilled_encoder.sources.source import Asked


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add --cameras, --episodes, --source-fps and --source-bgr; `asked_of` reads them."""
    parser.add_argument("--cameras", default="*", metavar="GLOB", help="cameras, or topics, of data sets (all)")
    parser.add_argument("--episodes", type=parse_range, metavar="A:B", help="episodes of data sets, B left out (all)")
    parser.add_argument("--source-fps", type=float, metavar="FPS", help="frames per second of what has no clock")
    parser.add_argument("--source-bgr", action="store_true", help="swap red and blue, in arrays of data sets")


def asked_of(args: argparse.Namespace) -> Asked:
    """Return what the options ask.

    Raises:
        InputError: the rate is not positive.
    """
    return Asked(args.cameras, args.episodes, args.source_fps, args.source_bgr)


def parse_range(text: str | range) -> range:
    """Turn A:B into the numbers from A to before B; either may be left out. jsonargparse hands in its own result again.

    Raises:
        ArgumentTypeError: it is not written so, or holds no number.
    """
    if isinstance(text, range):
        return text
    match = re.fullmatch(r"(\d*):(\d*)", text)
    numbers = range(int(match[1] or 0), int(match[2] or sys.maxsize)) if match else range(0)
    if not numbers:
        raise argparse.ArgumentTypeError(f"a range is written A:B, with A before B, got {text!r}")
    return numbers
