"""`python -m training.extract PATH… `: recordings to frame stores, in parallel, each once; `--list` says what is there.

A path is a video file, a LeRobot data set (v2.0 to v3.0), an MCAP file, a ROS 1 bag, the folder of a ROS 2 bag, an HDF5
file or a Zarr of episodes, an RLDS data set of TFDS, a folder of numbered pictures, or a folder of any of them.
Interrupted, the same command goes on. Under torchrun its processes share the recordings, and so do jobs of their own
with `--shard 0/8` to `--shard 7/8`, on one machine or many, into one folder on shared storage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from training.common.cache import frame_stores
from training.common.commands import command_parser, parse_shard
from training.common.spread import spread
from training.data.frame_store import ExtractConfig
from training.data.listing import describe
from video_distilled_encoder.errors import command
from video_distilled_encoder.sources import look_for_sources
from video_distilled_encoder.sources.options import add_source_options, asked_of


def _spread(function: Callable[[Any], Any], items: Iterable[Any], workers: int) -> Iterator[Any]:
    """Do as `spread`, and show how far it is."""
    found = list(items)
    yield from tqdm(spread(function, found, workers), "list", len(found), leave=False, dynamic_ncols=True)


@command
def main() -> None:
    """Run the command."""
    from training.common import distributed  # torch, which its own processes, that import this file, do without
    from training.data.extraction import extract_together

    parser = command_parser("extract", __doc__)
    parser.add_argument("paths", nargs="+", type=Path, help="videos, data sets, or folders searched for them")
    parser.add_argument("--list", action="store_true", help="only tell what is there, before anything is decoded")
    add_source_options(parser)
    parser.add_argument("--frames", type=Path, default=frame_stores(), help="folder of the frame stores (%(default)s)")
    parser.add_argument("--fps", type=float, help="frames kept per second (all)")
    parser.add_argument("--short-side", type=int, help="resize larger frames to this many pixels (do not)")
    parser.add_argument("--quality", type=int, default=ExtractConfig().quality, help="JPEG quality (%(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes (one per processor)")
    parser.add_argument(
        "--shard", type=parse_shard, metavar="I/N", help="only part I, from 0, of N that have one --frames (all)"
    )
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out recordings that cannot be read")
    args = parser.parse_args()
    asked = asked_of(args)
    if args.list:
        each = partial(_spread, workers=args.workers)
        print(describe(look_for_sources(args.paths, asked, each), each))
        return
    config = ExtractConfig(fps=args.fps, short_side=args.short_side, quality=args.quality)
    world = distributed.start("cpu")
    if args.shard and world.size > 1:
        parser.error(
            "--shard is for jobs that a launcher did not start; its processes share the recordings by themselves"
        )
    count = extract_together(
        world,
        args.paths,
        args.frames,
        config,
        asked=asked,
        workers=args.workers,
        skip_unreadable=args.skip_unreadable,
        shard=args.shard,
    )
    if world.is_main:
        print(f"{count} frame stores in {args.frames / config.folder}")


if __name__ == "__main__":
    main()
