"""One protocol, one model, one JSON."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch

from training.common.commands import command_parser, parse_whole
from training.common.yaml_files import find_file
from training.evaluation.cache import default_cache
from training.evaluation.data.fingerprint import fingerprint
from training.evaluation.finetune.presets import PRESETS, preset_names
from training.evaluation.protocols import protocols
from training.evaluation.statistics import comparison
from training.models.loading import load_model
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.files import write_json
from video_distilled_encoder.float32 import full_float32

_MODELS = "a model directory, release or Hub name, an export, timm:NAME, transformers:NAME, random, pixels or constant"
_NOT_OF_THE_PROTOCOL = ("protocol", "model", "out", "masks", "pictures", "reuse", "device", "seed", "cache")


def evaluate(argv: Sequence[str]) -> dict[str, Any]:
    """Measure a model by a protocol, as the command line says; write the result to --out if it is given.

    Args:
        argv: what follows `python -m training.evaluate`.

    Raises:
        InputError: the model or the data cannot be used.
    """
    args = parser().parse_args(argv)
    model = load_model(args.model, device=args.device, seed=args.seed)
    arguments = {name: value for name, value in vars(args).items() if name not in _NOT_OF_THE_PROTOCOL}
    asked = {
        "protocol": args.protocol,
        "model": model.description,
        "arguments": {name: value.name if isinstance(value, Path) else value for name, value in arguments.items()},
        "seed": args.seed,
        "preprocessing": model.preprocessing,
        "fingerprint": _fingerprints(args, arguments),
    }
    if args.reuse and (found := _known(args.out, asked)):
        print(f"{args.out} is this result already, of the same model, data and options: it is reused", file=sys.stderr)
        return found
    with full_float32():  # whatever training in this process has chosen
        found = protocols()[args.protocol].evaluate(model, args)
    result = {
        **asked,
        **found,
        "device": model.device.type,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__},
    }
    if args.out:
        write_json(args.out, result)
    return result


def _fingerprints(args: argparse.Namespace, arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return what tells the data of a result, and its preset, from others of the same name."""
    files = {name: value for name, value in arguments.items() if isinstance(value, Path) and value.exists()}
    if preset := arguments.get("preset"):
        files["preset"] = find_file(preset, PRESETS, "preset", preset_names(args.protocol))
    if prepare := getattr(protocols()[args.protocol], "prepare", None):
        files = {**{name: path for name, path in files.items() if name != "data"}, **prepare(args)}
    beside = [path for path in (args.out, args.cache) if path]
    return {name: fingerprint(path, beside) for name, path in files.items()}


def _known(path: Path | None, asked: dict[str, Any]) -> dict[str, Any] | None:
    """Return the result at `path`, if it is of what is asked."""
    if path is None or not path.is_file():
        return None
    try:
        result = comparison.read_result(path)
    except InputError:
        return None
    written = json.loads(json.dumps(asked))  # which knows lists only
    return result if all(result.get(key) == value for key, value in written.items()) else None


def parser(description: str | None = None) -> argparse.ArgumentParser:
    """Return what reads the command line of `python -m training.evaluate`."""
    whole = command_parser("evaluate", description)
    choices = whole.add_subparsers(dest="protocol", required=True)
    for name, module in protocols().items():
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
        protocol.add_argument(
            "--reuse", action="store_true", help="measure nothing if --out is of these data, model and options"
        )
        protocol.add_argument("--device", help="cpu or cuda (cuda where there is one)")
        protocol.add_argument(
            "--seed", type=parse_whole, default=0, help="of a random model and of training (%(default)s)"
        )
        protocol.add_argument(
            "--cache",
            type=Path,
            default=default_cache(),
            help="folder of features and trained weights (%(default)s)",
        )
        module.add_arguments(protocol)
    table = choices.add_parser(
        "compare",
        help="several results of one protocol as a table",
        description=comparison.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    table.add_argument("results", nargs="+", type=Path, help="JSON files that --out wrote")
    return whole
