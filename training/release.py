"""`python -m training.release NAME --data VIDEO… --evaluation DATA --out DIR`: from videos to a checked release.

A release (training/releases/*.yaml) is one run or several, each from what the one before it learnt, the measures that
its card quotes, and what is measured beside it. The command extracts the videos, trains in DIR/RUN, looks for pictures
of the evaluation among the videos (`python -m training.overlap`), writes the weights in half precision to DIR/NAME,
measures them and what stands beside them, draws features, fills in the card and checks it all (`python -m
training.publish`). Given again, it goes on where it was stopped, training as `--resume` of `python -m
training.pretrain` does; no result of the same weights and settings is measured twice.

`--time 00:25:00` sets the length of all training, as `--max-time` of `python -m training.pretrain` does. Settings
(`--run.compile true`) apply to all runs. Under torchrun the same command trains on every GPU.
"""

from __future__ import annotations

import os
from pathlib import Path

from training.common.commands import command_parser, parse_duration
from training.common.yaml_files import names_in
from training.data.extraction import extract_all
from training.data.frame_store import open_stores
from training.data.overlap import overlap
from training.evaluation.evidence import add_arguments
from training.releases.publishing import Weights, copy_card, describe, fill_page, picture_of, publish
from training.releases.release import RELEASES, check_evaluation, read_release, recipes_of, show, train
from video_distilled_encoder.errors import InputError, command
from video_distilled_encoder.sources.options import asked_of


@command
def main() -> None:
    """Run the command."""
    parser = command_parser("release", __doc__)
    parser.add_argument("release", help=f"a YAML file, or one of: {', '.join(names_in(RELEASES))}")
    parser.add_argument("--out", type=Path, required=True, help="directory of the run, the results and the release")
    parser.add_argument("--recipe", nargs="+", help="in place of the last run's")
    parser.add_argument("--time", type=parse_duration, help="length of all training, HH:MM:SS (the recipes')")
    parser.add_argument("--card", type=Path, help="template of the model card, in place of the release's")
    parser.add_argument("--card-out", type=Path, help="write the card here too")
    parser.add_argument("--page", type=Path, help="fill in the figures of this page too, as README.md")
    parser.add_argument("--results", type=Path, help="folder of results (OUT/results)")
    add_arguments(parser)
    args, settings = parser.parse_known_args()
    release = read_release(args.release)
    template = args.card or Path(release.card)
    if not template.is_file():
        raise InputError(f"there is no card {template}; give its template as --card")
    check_evaluation(release, args.evaluation)
    results, out = args.results or args.out / "results", args.out / Path(args.release).stem
    recipes = recipes_of(release, args.recipe, settings)
    run = train(release, recipes, args.data, args.out, args.frames, args.time, asked_of(args))
    if int(os.environ.get("RANK", "0")):
        return
    apart = results / f"overlap-{out.name}.json"
    if not apart.is_file():
        stores = open_stores(extract_all(args.data, args.frames, recipes[run.name].extract, asked=asked_of(args)))
        overlap(stores, [args.evaluation / folder for folder in release.held_out], apart)
    publish(run, template, results, out, draft=True)
    show(release, out, args.evaluation, results, run / picture_of(out.name), args.device)
    cosine = publish(run, template, results, out)
    if args.card_out:
        copy_card(out, args.card_out)
    if args.page:
        fill_page(args.page, results, [Weights.of(out)])
    print(describe(out, cosine))


if __name__ == "__main__":
    main()
