"""`python -m training.evaluate PROTOCOL --model … --data … --out …`: one protocol, one model, one JSON."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import timm
import torch

from training.evaluation import protocols
from training.evaluation.models import load_model
from video_distilled_encoder.errors import command
from video_distilled_encoder.files import atomic_path


@command
def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    choices = parser.add_subparsers(dest="protocol", required=True)
    modules = protocols()
    for name, module in modules.items():
        help_text = (module.__doc__ or "").strip()
        protocol = choices.add_parser(
            name,
            help=help_text.splitlines()[0],
            description=help_text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        protocol.add_argument("--model", required=True, help="a model directory, Hub name, 'random' or 'pixels'")
        protocol.add_argument("--data", required=True, type=Path, help="the data set's folder")
        protocol.add_argument("--out", type=Path, help="write the result here as JSON")
        protocol.add_argument("--device", help="cpu or cuda (cpu)")
        protocol.add_argument("--seed", type=int, default=0, help="of a random model and of training (%(default)s)")
        module.add_arguments(protocol)
    args = parser.parse_args()
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


if __name__ == "__main__":
    main()
