"""`python -m training.publish RUN --card TEMPLATE --results DIR --out RELEASE`: from a run to a checked release.

The release is the run's encoder in half precision, with a card whose every number comes from the run or from results of
`python -m training.evaluate`. In the template,

    {{run: recipe.clips.stride}}                 is a fact of the run,
    {{distill: recipe.objective.teacher}}        of a run before it, by the name of its directory beside,
    {{overlap-vfd-vits16: bits}}                 an entry of overlap-vfd-vits16.json in the results' folder,
    {{latency: rows.onnx int8.load_seconds}}     of a list in such a file (latency.json: a bench.json) that of a name,
    {{study: methods}}                           the table of a study, studies/methods.md beside the template,
    {{camvid: random miou}}                      a figure of the results camvid-random.json, camvid-random-seed1.json, …
                                                 in the results' folder: the mean over seeds [its interval],
    {{cycle: vfd-vits16 against random}}         by how much one exceeds the other, and whether it can be told, as
                                                 `python -m training.evaluate compare` says.

RELEASE.pca.png in the run directory, if it is there, goes with the card. `--page README.md` fills in that page as well:
what stands between `<!-- figures: TEMPLATE -->` and `<!-- end -->` there, from results alone; without RUN it does
nothing else.

The release's own results are those of the name of its directory. It is refused if a number is missing, if one of these
results belongs to other weights, if the card's metadata are not what the Hub reads, or if timm, transformers and this
package do not load the same features.
"""

from __future__ import annotations

from pathlib import Path

from training.common.commands import command_parser
from training.releases.publishing import (
    Weights,
    bundled_weights,
    copy_card,
    describe,
    fill_page,
    publish,
    push,
)
from video_distilled_encoder.errors import InputError, command


@command
def main() -> None:
    """Run the command."""
    parser = command_parser("publish", __doc__)
    parser.add_argument("run", type=Path, nargs="?", help="the run directory")
    parser.add_argument("--card", type=Path, help="template of the model card")
    parser.add_argument("--results", type=Path, required=True, help="folder of results")
    parser.add_argument("--out", type=Path, help="the release's model directory")
    parser.add_argument("--card-out", type=Path, help="write the card here too")
    parser.add_argument("--page", type=Path, help="fill in the figures of this page too")
    parser.add_argument(
        "--draft", action="store_true", help="numbers may be missing: to have weights that can be evaluated"
    )
    parser.add_argument("--push-to", help="upload it to the Hub as OWNER/NAME")
    args = parser.parse_args()
    if args.run is None and args.page:
        fill_page(args.page, args.results, bundled_weights())
        return
    if not (args.run and args.card and args.out):
        raise InputError("give RUN, --card and --out to make a release, or --page without RUN to fill in a page")
    cosine = publish(args.run, args.card, args.results, args.out, draft=args.draft)
    if args.card_out:
        copy_card(args.out, args.card_out)
    if args.page:
        fill_page(args.page, args.results, [Weights.of(args.out)])
    print(describe(args.out, cosine))
    if args.push_to:
        print(push(args.out, args.push_to))


if __name__ == "__main__":
    main()
