"""`python -m training.evaluate PROTOCOL --model … --data … --out …`: one protocol, one model, one JSON.

`python -m training.evaluate compare RESULT.json …` puts several results of a protocol into one table, with a row for
each model whatever its seeds, and says which differ from the first.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import timm
import torch

from training.evaluation import comparison
from training.evaluation.features import default_cache
from training.evaluation.models import load_model
from training.evaluation.protocols import protocols
from video_distilled_encoder.errors import command
from video_distilled_encoder.files import atomic_path

_MODELS = "a model directory, release or Hub name, an export, timm:NAME, transformers:NAME, random, pixels or constant"


@command
def main() -> None:
    """Run the command."""
    modules = protocols()
    args = _parser(modules).parse_args()
    if args.protocol == "compare":
        print(comparison.compare(args.results))
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
    table = choices.add_parser(
        "compare",
        help="several results of one protocol as a table",
        description=comparison.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    table.add_argument("results", nargs="+", type=Path, help="JSON files that --out wrote")
    return parser


if __name__ == "__main__":
    main()
