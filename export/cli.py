"""`vde-export --format onnx --model ID_OR_DIR --out FILE`: an encoder for another runtime, proven to be the same.

The export is written, reloaded in its runtime, and compared with torch in fp32 on real photographs; it takes its final
name only if no token's cosine falls below 0.9999. FILE.json beside it says what it is and how the comparison went.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from export import onnx, parity
from export.network import INPUT, OUTPUTS, Network
from video_distilled_encoder import Encoder, model_directory
from video_distilled_encoder.errors import InputError, command
from video_distilled_encoder.files import atomic_path, sha256
from video_distilled_encoder.hub import find_model
from video_distilled_encoder.preprocessing import bundled_photographs

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}
FORMATS = {"onnx": onnx}


@command
def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="vde-export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", choices=FORMATS, required=True, help="of the export")
    parser.add_argument("--model", default="nota/vfd-vits16", help="directory, release or Hub name (%(default)s)")
    parser.add_argument("--revision", help="of a model on the Hub")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--size", type=parse_size, help="pixels, SIDE or HEIGHTxWIDTH (the model's own)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the network (%(default)s)")
    args = parser.parse_args()
    facts = export(
        args.model, args.out, format=args.format, precision=args.precision, size=args.size, revision=args.revision
    )
    for name, figures in facts["parity"].items():
        print(
            f"{name:8} cosine min {figures['min_cosine']:.7f} mean {figures['mean_cosine']:.7f}, "
            f"max abs difference {figures['max_abs']:.2e}"
        )
    print(f"{args.out} ({args.out.stat().st_size / 2**20:.1f} MiB), facts in {sidecar(args.out)}")


def export(
    model: str | Path,
    out: Path,
    *,
    format: str = "onnx",
    precision: str = "fp32",
    size: tuple[int, int] | None = None,
    revision: str | None = None,
) -> dict:
    """Export an encoder; returns the facts that the sidecar holds.

    Args:
        model: model directory, bundled release or Hub name.
        out: the file to write.
        format: one of `FORMATS`.
        precision: one of `PRECISIONS`.
        size: (height, width) of the input; the model's own by default.
        revision: of a model on the Hub.

    Raises:
        InputError: the model or the size is wrong, a package is missing, or the export fails the parity gate; `out` is
            not touched then.
    """
    if out.is_dir():
        raise InputError(f"{out} is a directory; give the file to write, such as {out / 'encoder.onnx'}")
    directory = find_model(model, revision=revision)
    encoder = Encoder.from_pretrained(directory)
    size = size or encoder.image_size
    network = Network(encoder, size, PRECISIONS[precision])
    with atomic_path(out) as temporary:
        FORMATS[format].write(network, temporary)
        images = bundled_photographs()
        figures = parity.check(encoder, size, FORMATS[format].load(temporary), images)
        facts = {
            "format": format,
            "model": {"name": str(model), "weights_sha256": model_directory.weights_sha256(directory)},
            "sha256": sha256(temporary),
            "input": {"name": INPUT, "shape": ["batch", 3, *size], "precision": precision},
            "outputs": list(OUTPUTS),
            "mean": list(encoder.config.mean),
            "std": list(encoder.config.std),
            "parity": figures,
            "parity_images": [image.name for image in images],
            "versions": {name: _version(name) for name in ("torch", "timm", "onnx", "onnxscript", "onnxruntime")},
        }
        with atomic_path(sidecar(out)) as json_file:
            json_file.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return facts


def sidecar(out: Path) -> Path:
    """Return where the facts of an export are written."""
    return out.with_name(f"{out.name}.json")


def parse_size(text: str) -> tuple[int, int]:
    """Turn "224" or "224x320" into (height, width)."""
    try:
        sides = [int(part) for part in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2):
        raise argparse.ArgumentTypeError(f"a size is SIDE or HEIGHTxWIDTH in pixels, got {text!r}")
    return sides[0], sides[-1]


def _version(package: str) -> str | None:
    for name in (package, f"{package}-gpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


if __name__ == "__main__":
    main()
