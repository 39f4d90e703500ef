"""`python -m training.report VIDEO --models A B C --out report.html`: encoders side by side on your own video.

One page that needs no other file and no network: the clip with each encoder's features as colours, how features change
and find their way back over time, where patches go, latency, and a table that says which encoder is better at what, by
how much, and how sure that is. Nothing is labelled and nothing is trained.
"""

from __future__ import annotations

from pathlib import Path

from training.common.commands import command_parser, parse_whole
from training.evaluation.cache import default_cache
from training.reporting.measures import choose_pairs
from training.reporting.page import examine, read_clip, write_page
from video_distilled_encoder.errors import command
from video_distilled_encoder.files import atomic_path
from video_distilled_encoder.sources.options import add_source_options, asked_of


@command
def main() -> None:
    """Run the command."""
    parser = command_parser("report", __doc__)
    parser.add_argument("video", type=Path, help="a video, or a data set of which the options choose one recording")
    add_source_options(parser)
    parser.add_argument(
        "--models", nargs="+", required=True, help="as `python -m training.evaluate --model` takes them"
    )
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (%(default)s)")
    parser.add_argument("--seconds", type=float, default=12.0, help="of the video that are read (%(default)s)")
    parser.add_argument("--fps", type=float, default=8.0, help="frames per second that are read (%(default)s)")
    parser.add_argument("--short-side", type=int, default=240, help="pixels that frames are encoded at (%(default)s)")
    parser.add_argument("--device", help="cpu or cuda (cuda where there is one)")
    parser.add_argument("--seed", type=parse_whole, default=0, help="of a random model (%(default)s)")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder of features (%(default)s)")
    args = parser.parse_args()
    clip = read_clip(args.video, args.seconds, args.fps, asked_of(args))
    pairs = choose_pairs(clip.times, clip.shots)
    subjects = [examine(name, clip, pairs, args) for name in args.models]
    names = [subject.name for subject in subjects]
    subjects = [
        subject._replace(name=f"{subject.name} ({model})") if names.count(subject.name) > 1 else subject
        for subject, model in zip(subjects, args.models, strict=True)
    ]
    page = write_page(clip, subjects, pairs)
    with atomic_path(args.out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(args.out)


if __name__ == "__main__":
    main()
