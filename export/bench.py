"""`vde-bench`: how fast this machine runs the encoder, in every runtime and precision that is here, as one table.

Each row is measured in a process of its own, one after another, in several rounds of which the best counts: the network
alone from normalised pixels, end to end from a uint8 frame in memory, the very first call, and the most memory.
Beside them stands the matmul floor: the time of the network's matrix products alone at the best float32 rate of this
machine (a runtime that computes in less, such as bf16, may go below it). What cannot run here, or takes longer
than --timeout, is listed with the reason. DIR gets bench.csv, bench.json, bench.png, and the exports, which the next
run of the same versions uses again. Interrupted, it prints and writes what it has measured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import timm
import torch

from export.benchmark import report
from export.benchmark.floor import Floor, count_flops
from export.benchmark.picture import draw
from export.benchmark.plan import PRECISIONS, TORCH, Wanted, plan
from export.benchmark.report import Report
from export.benchmark.rounds import Rounds
from export.benchmark.subjects import transformers_config
from export.cli import parse_size
from export.pipeline import FORMATS
from video_distilled_encoder import Encoder
from video_distilled_encoder.errors import InputError, command, import_pyplot, tidy_at_sigterm
from video_distilled_encoder.hub import DEFAULT_RELEASE, find_model
from video_distilled_encoder.runtimes.artefact import Artefact
from video_distilled_encoder.runtimes.cuda_graph import cuda_device
from video_distilled_encoder.tokens import check_size


@command
def main() -> None:
    """Run the command."""
    tidy_at_sigterm()
    args = parse_arguments()
    import_pyplot("export")  # before an hour of measuring, not after it
    directory = find_model(args.model, revision=args.revision)
    encoder = Encoder.from_pretrained(directory)
    args.against = [f"timm:{encoder.config.architecture}"] if args.against is None else args.against
    args.size = args.size or [encoder.image_size]
    check_arguments(args, encoder)
    found = bench(args, directory, encoder)
    print(report.table(found))
    if not found.results:
        raise InputError("nothing could be measured; the reasons are above")
    report.write(found, args.out)
    draw(found, args.out / "bench.png")
    print(f"\n{args.out / 'bench.csv'}, bench.json, bench.png")
    if found.interrupted:
        raise InputError("interrupted; what was measured until then is above and in these files")


def bench(args: argparse.Namespace, directory: Path, encoder: Encoder) -> Report:
    """Measure what the command line asks for.

    Args:
        args: checked, with nothing left open.
        directory: of the model.
        encoder: the model.
    """
    machine = report.machine(args.device, args.threads)
    wanted = Wanted(
        directory=directory,
        sizes=args.size,
        batches=args.batch,
        formats=args.formats,
        precisions=args.precisions,
        against=args.against,
        artefacts=args.artefact,
        device=args.device,
        cache=args.out / "exports",
        frame=args.frame,
        threads=args.threads,
        seconds=args.seconds,
        rounds=args.rounds,
        timeout=args.timeout,
    )
    rows, failures = plan(wanted)
    rounds = Rounds(rows, wanted)
    rounds.run()
    groups = dict.fromkeys([*wanted.groups, *(row.group for row in rows)])
    floors = [Floor(*group, count_flops(encoder.config, *group) / 1e9, rounds.rates) for group in groups]
    asked = json.loads(json.dumps(vars(args), default=str))
    return Report(machine, asked, rounds.results, floors, [*failures, *rounds.failures], rounds.interrupted)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="vde-bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=DEFAULT_RELEASE, help="directory, release or Hub name (%(default)s)")
    parser.add_argument("--revision", help="of a model on the Hub")
    parser.add_argument("--size", type=parse_size, nargs="+", help="pixels, SIDE or HEIGHTxWIDTH (the model's own)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="images in one call (1)")
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=(*TORCH, *FORMATS),
        default=["torch", *FORMATS],
        help="of the network (all but torch-compile)",
    )
    parser.add_argument(
        "--precisions", nargs="+", choices=PRECISIONS, help="(all; of --against fp32 only, unless given)"
    )
    parser.add_argument(
        "--against",
        nargs="*",
        metavar="NAME",
        help="other models, timm:NAME or transformers:DIR_OR_ID, run eagerly with random weights; the first is what "
        "speed-ups are against (the same architecture in timm)",
    )
    parser.add_argument(
        "--artefact", nargs="+", type=Path, default=[], metavar="FILE", help="exports of vde-export, measured too"
    )
    parser.add_argument("--frame", type=parse_size, default=(720, 1280), help="HEIGHTxWIDTH of a frame (720x1280)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1 (%(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU (%(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="spent on a figure in each round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="over all rows; the best counts (%(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=900.0, help="seconds that a row may take in each round (%(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("bench"), metavar="DIR", help="for the results (%(default)s)")
    return parser.parse_args()


def check_arguments(args: argparse.Namespace, encoder: Encoder) -> None:
    """Refuse what cannot be measured, before work begins.

    Raises:
        InputError: a word is unknown, a number is out of its range, or a model or an export is not to be had.
    """
    for size in args.size:
        check_size(size, encoder.patch_size)
    least = min([*args.batch, args.threads, args.rounds])
    if least < 1 or not 0 < args.seconds < float("inf") or not args.timeout > 0:
        raise InputError("--batch, --threads and --rounds are 1 or more, and --timeout and --seconds more than 0")
    if args.device != "cpu":
        args.device = str(cuda_device(args.device))
    for name in args.against:
        check_other(name)
    for path in args.artefact:
        check_artefact(path, args.device)


def check_other(name: str) -> None:
    """Refuse a model of `--against` that cannot be made.

    Raises:
        InputError: there is no such model.
    """
    library, _, rest = name.partition(":")
    if library == "timm":
        if not timm.is_model(rest):
            raise InputError(f"timm has no model {rest!r}; see timm.list_models()")
    elif library == "transformers":
        transformers_config(rest)
    else:
        raise InputError(f"--against takes timm:NAME and transformers:DIR_OR_ID, got {name!r}")


def check_artefact(path: Path, device: str) -> None:
    """Refuse an export that is damaged or made for another device.

    Raises:
        InputError: it is.
    """
    artefact = Artefact.read(path)
    kind = device.split(":")[0]
    made_for = artefact.device or kind
    if made_for != kind:
        raise InputError(f"{path} was made for {made_for}; give --device {made_for}, or export it for {kind}")


if __name__ == "__main__":
    main()
