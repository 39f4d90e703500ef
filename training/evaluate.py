"""`python -m training.evaluate PROTOCOL --model … --data … --out …`: one protocol, one model, one JSON.

`python -m training.evaluate compare RESULT.json …` puts several results of a protocol into one table.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from pathlib import Path

import timm
import torch

from training.evaluation.bootstrap import difference
from training.evaluation.features import default_cache
from training.evaluation.models import load_model
from training.evaluation.protocols import protocols
from video_distilled_encoder.errors import InputError, command
from video_distilled_encoder.files import atomic_path

_MODELS = "a model directory, release or Hub name, timm:NAME, transformers:NAME, random, pixels or constant"


@command
def main() -> None:
    """Run the command."""
    modules = protocols()
    args = _parser(modules).parse_args()
    if args.protocol == "compare":
        print(compare(args.results))
        return
    model = load_model(args.model, device=args.device, seed=args.seed)
    result = {
        "protocol": args.protocol,
        "model": model.description,
        **modules[args.protocol].evaluate(model, args),
        "seed": args.seed,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__},
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        with atomic_path(args.out) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def compare(paths: Sequence[Path]) -> str:
    """Return a table of results, a row each and a column for each plain figure.

    Where the results hold a figure for each video, a last column says how the mean of these differs from the first
    row's, with a 95 % bootstrap interval over videos, or that it cannot be told.

    Raises:
        InputError: a file is no result, or they are of several protocols, settings or data.
    """
    results = [_read(path) for path in paths]
    for key in ("protocol", "setting", "data"):
        different = [path.name for path, r in zip(paths, results, strict=True) if r[key] != results[0][key]]
        if different:
            raise InputError(f"{different[0]} has another {key} than {paths[0].name}; only like is compared with like")
    columns = [name for name, value in results[0]["figures"].items() if isinstance(value, int | float)]
    rows = [["model", *columns]]
    for result in results:
        rows.append([str(result["model"]["name"]), *(f"{result['figures'][name]:.2f}" for name in columns)])
    by_video = [_by_video(result) for result in results]
    if all(by_video) and len(results) > 1:
        rows[0].append(f"by video, against {rows[1][0]}")
        rows[1].append("")
        for row, videos in zip(rows[2:], by_video[1:], strict=True):
            row.append(_against(videos, by_video[0]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        numbers = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([name.ljust(widths[0]), *numbers]))
    return "\n".join(lines)


def _by_video(result: dict) -> dict[str, float]:
    """Return a result's figure for each video; none if it has several, or no, figures of a video."""
    videos = result["figures"].get("videos", {})
    return videos if all(isinstance(value, int | float) for value in videos.values()) else {}


def _against(videos: dict[str, float], reference: dict[str, float]) -> str:
    found = difference([videos[name] for name in reference], list(reference.values()))
    return f"{found.mean:+.2f} [{found.low:.2f}, {found.high:.2f}] {found.verdict}"


def _read(path: Path) -> dict:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a result of this command: {error}") from error
    if not isinstance(result, dict) or not {"protocol", "model", "figures", "setting", "data"} <= result.keys():
        raise InputError(f"{path} is not a result of this command")
    return result


def _parser(modules: dict) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choices = parser.add_subparsers(dest="protocol", required=True)
    for name, module in modules.items():
        help_text = (module.__doc__ or "").strip()
        protocol = choices.add_parser(
            name,
            help=help_text.splitlines()[0],
            description=help_text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        protocol.add_argument("--model", required=True, help=_MODELS)
        protocol.add_argument("--data", required=True, type=Path, help="the data set's folder")
        protocol.add_argument("--out", type=Path, help="write the result here as JSON")
        protocol.add_argument("--device", help="cpu or cuda (cpu)")
        protocol.add_argument("--seed", type=int, default=0, help="of a random model and of training (%(default)s)")
        protocol.add_argument("--cache", type=Path, default=default_cache(), help="folder of features (%(default)s)")
        module.add_arguments(protocol)
    table = choices.add_parser("compare", help="several results of one protocol as a table")
    table.add_argument("results", nargs="+", type=Path, help="JSON files that --out wrote")
    return parser


if __name__ == "__main__":
    main()
