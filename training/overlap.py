"""`python -m training.overlap --data VIDEO… --evaluation DIR… --out DIR`: is any of the evaluation in the training.

Every training frame and every evaluation image is reduced to a difference hash (Krawetz 2013): 256 bits, whether grey
falls from one cell of a 16 x 17 grid to the next. Copies that were scaled and compressed differ in few bits, different
pictures in about half. What a copy would give is measured too: each evaluation image against itself at half the size as
a JPEG of quality 30. Cropped or mirrored copies are not found.

DIR receives overlap.json and overlap.png, the evaluation images nearest to a training frame beside that frame.
"""

from __future__ import annotations

import json
from pathlib import Path

from training.common.cache import frame_stores
from training.common.commands import command_parser
from training.data.extraction import extract_all
from training.data.frame_store import ExtractConfig, open_stores
from training.data.overlap import overlap
from video_distilled_encoder.errors import command
from video_distilled_encoder.sources.options import add_source_options, asked_of


@command
def main() -> None:
    """Run the command."""
    parser = command_parser("overlap", __doc__)
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="videos of the training, or their folders")
    add_source_options(parser)
    parser.add_argument("--evaluation", nargs="+", type=Path, required=True, help="folders of images")
    parser.add_argument("--out", type=Path, required=True, help="folder of overlap.json and overlap.png")
    parser.add_argument("--fps", type=float, default=10, help="training frames compared per second (%(default)s)")
    parser.add_argument("--frames", type=Path, default=frame_stores(), help="folder of the frame stores (%(default)s)")
    args = parser.parse_args()
    config = ExtractConfig(fps=args.fps, short_side=256)
    stores = open_stores(extract_all(args.data, args.frames, config, asked=asked_of(args)))
    print(json.dumps(overlap(stores, args.evaluation, args.out / "overlap.json"), indent=2))


if __name__ == "__main__":
    main()
