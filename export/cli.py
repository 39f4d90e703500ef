"""`vde-export --format onnx --model ID_OR_DIR --out FILE`: an encoder for another runtime, proven to be the same.

The export is written, reloaded in its runtime, and compared with torch in fp32 on real photographs, output by output
and block by block; it takes its final name only if every token is near enough (fp32: cosine .9999; fp16 .999; bf16 .99;
int8 .98), and every output's relative error is small. FILE.json beside it says what it is and how the comparison went,
and is needed to load it: `video_distilled_encoder.load_runtime(FILE)`.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import fields
from pathlib import Path

from export import onnx
from export.pipeline import FORMATS, export
from video_distilled_encoder.errors import command, tidy_at_sigterm
from video_distilled_encoder.hub import DEFAULT_RELEASE
from video_distilled_encoder.model_config import CROP_MODES
from video_distilled_encoder.runtimes.artefact import FEATURES, LAYOUTS, SUFFIXES, Artefact, Camera, sidecar
from video_distilled_encoder.runtimes.tensorrt import HARDWARE, BuildOptions


@command
def main() -> None:
    """Run the command."""
    tidy_at_sigterm()
    args = parse_arguments()
    camera = None
    if args.uint8_input:
        height, width = args.uint8_input
        camera = Camera(height, width, args.layout or LAYOUTS[0], args.crop_mode)
    out = args.out or Path(f"encoder{SUFFIXES[args.format]}")
    artefact = export(
        args.model,
        out,
        format=args.format,
        precision=args.precision,
        size=args.size,
        dynamic_size=args.dynamic_size,
        batch=args.batch,
        outputs=args.outputs,
        camera=camera,
        calibration=args.calibration,
        device=args.device,
        revision=args.revision,
        layer_parity=not args.no_layer_parity,
        engine=args.engine,
        progress=lambda line: print(f"… {line}", flush=True),
    )
    print(summary(artefact, out))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="vde-export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", choices=FORMATS, required=True, help="of the export")
    parser.add_argument("--model", default=DEFAULT_RELEASE, help="directory, release or Hub name (%(default)s)")
    parser.add_argument("--revision", help="of a model on the Hub")
    parser.add_argument("--out", type=Path, help="the file to write (encoder.onnx, .xml, .pt2 or .engine)")
    parser.add_argument("--size", type=parse_size, help="pixels, SIDE or HEIGHTxWIDTH (the model's own)")
    parser.add_argument("--dynamic-size", action="store_true", help="any multiples of the patch size (onnx, openvino)")
    parser.add_argument("--batch", type=parse_batch, default=(1, 1, 16), help="N, or SMALLEST:USUAL:LARGEST (1:1:16)")
    parser.add_argument(
        "--precision",
        choices=(*onnx.PRECISIONS, "auto"),
        default="fp32",
        help="auto: the fastest that passes (%(default)s)",
    )
    parser.add_argument(
        "--outputs",
        nargs="+",
        default=FEATURES,
        metavar="NAME",
        help="of cls, patches, grid, layer_I (cls patches grid)",
    )
    parser.add_argument(
        "--uint8-input",
        type=parse_size,
        metavar="HEIGHTxWIDTH",
        help="take uint8 RGB frames of this size, and resize, crop and normalise inside",
    )
    parser.add_argument("--layout", choices=LAYOUTS, help=f"of those frames ({LAYOUTS[0]})")
    parser.add_argument("--crop-mode", choices=CROP_MODES, help="of those frames (the model's own)")
    parser.add_argument("--calibration", type=Path, help="folder of your images, to compare on and for int8's ranges")
    parser.add_argument(
        "--device", help="where it is to run: cpu, cuda, or OpenVINO's gpu (cuda for an engine of TensorRT, else cpu)"
    )
    parser.add_argument(
        "--no-layer-parity", action="store_true", help="do not compare every block: half the time of aoti and tensorrt"
    )
    engine = parser.add_argument_group("TensorRT")
    engine.add_argument("--timing-cache", type=Path, help="file of measured kernels: the next build is faster")
    engine.add_argument("--optimization-level", type=int, default=3, help="0 to 5 (%(default)s)")
    engine.add_argument(
        "--workspace", dest="workspace_gib", type=float, metavar="GIB", help="GPU memory of a layer (all)"
    )
    engine.add_argument("--version-compatible", action="store_true", help="runs on later versions too")
    engine.add_argument(
        "--hardware-compatible", choices=HARDWARE, default="none", help="runs on other GPUs too (%(default)s)"
    )
    args = parser.parse_args()
    if (args.layout or args.crop_mode) and not args.uint8_input:
        parser.error("--layout and --crop-mode are of the frames of --uint8-input HEIGHTxWIDTH, which is not given")
    args.engine = BuildOptions(**{option.name: getattr(args, option.name) for option in fields(BuildOptions)})
    if args.engine != BuildOptions() and args.format != "tensorrt":
        parser.error(f"what is listed under TensorRT in --help is of --format tensorrt, not {args.format}")
    return args


def summary(artefact: Artefact, out: Path) -> str:
    """Return what the command prints at the end."""
    lines = [
        f"{name:9} cosine min {figures['min_cosine']:.7f} mean {figures['mean_cosine']:.7f}, "
        f"relative error {figures['norm_error']:.1e}, largest {figures['max_error']:.1e}"
        for name, figures in artefact.facts["parity"].items()
    ]
    layers = artefact.facts["layer_parity"]
    if layers:
        worst = min(layers, key=lambda name: layers[name]["min_cosine"])
        lines.append(f"{'blocks':9} cosine min {layers[worst]['min_cosine']:.7f} ({worst})")
    latency = artefact.facts["latency_ms"]
    where = f"{artefact.precision} on {artefact.facts['device']}"
    lines.append(f"{where}: median {latency['median']:.1f} ms at batch {artefact.batch[1]}")
    megabytes = sum(out.with_name(name).stat().st_size for name in artefact.files) / 2**20
    lines.append(f"{out} ({megabytes:.1f} MiB), facts in {sidecar(out)}")
    return "\n".join(lines)


def parse_size(text: str) -> tuple[int, int]:
    """Turn "224" or "224x320" into (height, width)."""
    sides = re.fullmatch(r"([1-9]\d*)(?:[xX]([1-9]\d*))?", text)
    if not sides:
        raise argparse.ArgumentTypeError(f"a size is SIDE or HEIGHTxWIDTH in pixels, got {text!r}")
    return int(sides[1]), int(sides[2] or sides[1])


def parse_batch(text: str) -> tuple[int, int, int]:
    """Turn "8" or "1:8:32" into (smallest, usual, largest)."""
    numbers = re.fullmatch(r"(\d+)(?::(\d+):(\d+))?", text)
    if not numbers:
        raise argparse.ArgumentTypeError(f"a batch is N or SMALLEST:USUAL:LARGEST, got {text!r}")
    return int(numbers[1]), int(numbers[2] or numbers[1]), int(numbers[3] or numbers[1])


if __name__ == "__main__":
    main()
