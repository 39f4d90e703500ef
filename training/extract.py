"""`python -m training.extract VIDEO_OR_DIR… `: videos to frame stores, in parallel, each video once."""

from __future__ import annotations

from pathlib import Path

from training.common.cache import frame_stores
from training.common.commands import command_parser
from training.data.extraction import extract_all
from training.data.frame_store import ExtractConfig
from video_distilled_encoder.errors import command


@command
def main() -> None:
    """Run the command."""
    defaults = ExtractConfig()
    parser = command_parser("extract", __doc__)
    parser.add_argument("videos", nargs="+", type=Path, help="video files, or folders searched for them")
    parser.add_argument("--frames", type=Path, default=frame_stores(), help="folder of the frame stores (%(default)s)")
    parser.add_argument("--fps", type=float, help="frames kept per second (all)")
    parser.add_argument("--short-side", type=int, help="resize larger frames to this many pixels (do not)")
    parser.add_argument("--quality", type=int, default=defaults.quality, help="JPEG quality (%(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes (one per processor)")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out videos that cannot be read")
    args = parser.parse_args()
    config = ExtractConfig(fps=args.fps, short_side=args.short_side, quality=args.quality)
    stores = extract_all(args.videos, args.frames, config, workers=args.workers, skip_unreadable=args.skip_unreadable)
    print(f"{len(stores)} frame stores in {args.frames / config.folder}")


if __name__ == "__main__":
    main()
