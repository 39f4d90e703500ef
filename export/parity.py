"""The parity gate: an export must give the features of the fp32 torch encoder, on real images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from video_distilled_encoder import Encoder
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.float32 import full_float32
from video_distilled_encoder.runtimes.artefact import LAYER, Artefact
from video_distilled_encoder.runtimes.runtime import Runtime
from video_distilled_encoder.tokens import tokens_after

MIN_COSINE = {"fp32": 0.9999, "fp16": 0.999, "bf16": 0.99, "int8": 0.98}
"""Least cosine similarity of any token, by precision."""
MEAN_COSINE = {"fp32": 0.99999, "fp16": 0.9999, "bf16": 0.999, "int8": 0.995}
"""Least mean over tokens."""
NORM_ERROR = {"fp32": 0.005, "fp16": 0.015, "bf16": 0.05, "int8": 0.1}
"""Largest norm of an output's difference, over the norm of the reference: a cosine sees no wrong scale."""
MAX_ERROR = {"fp32": 0.01, "fp16": 0.03, "bf16": 0.1, "int8": 0.2}
"""Largest difference of a number, over the reference's largest number."""


@dataclass(frozen=True)
class Parity:
    """How far one output is from the reference."""

    min_cosine: float
    """Smallest cosine similarity of a token with the reference's token."""
    mean_cosine: float
    """Their mean."""
    max_abs: float
    """Largest absolute difference of a number."""
    norm_error: float
    """Norm of the difference, over the norm of the reference."""
    max_error: float
    """`max_abs` over the largest absolute number of the reference."""

    def badness(self) -> float:
        """Return what is larger the worse it is; NaN is worst."""
        return math.inf if math.isnan(self.min_cosine) else max(1 - self.mean_cosine, self.norm_error**2 / 2)

    def passes(self, precision: str) -> bool:
        """Tell whether it is near enough; NaN is not."""
        return (
            self.min_cosine >= MIN_COSINE[precision]
            and self.mean_cosine >= MEAN_COSINE[precision]
            and self.norm_error <= NORM_ERROR[precision]
            and self.max_error <= MAX_ERROR[precision]
        )


def compare(reference: Tensor, result: Tensor) -> Parity:
    """Compare two tensors of tokens (..., C)."""
    reference, result = reference.double().cpu(), result.double().cpu()
    cosine = F.cosine_similarity(reference, result, dim=-1)
    # A NaN anywhere must fail the gate, and min() alone would let some platforms drop it.
    worst = float(cosine.min()) if bool(cosine.isfinite().all()) else float("nan")
    difference = reference - result
    largest = difference.abs().max()
    return Parity(
        min_cosine=worst,
        mean_cosine=float(cosine.mean()),
        max_abs=float(largest),
        norm_error=float(difference.norm() / reference.norm()),
        max_error=float(largest / reference.abs().max()),
    )


def measure(encoder: Encoder, runtime: Runtime, images: Sequence[Tensor]) -> dict[str, Parity]:
    """Run an export on real images, one at a time and all together, and compare it with the encoder.

    Args:
        encoder: the reference, in fp32.
        runtime: the export, loaded.
        images: uint8 (3, H, W) each; of the camera's size, if the export takes frames.

    Returns:
        Per output the figures of all tokens of both ways.
    """
    artefact = runtime.artefact
    expected: dict[str, list[Tensor]] = {name: [] for name in artefact.outputs}
    results: dict[str, list[Tensor]] = {name: [] for name in artefact.outputs}
    for size in sizes(artefact):
        reference = run_reference(encoder, artefact, images, size)
        inputs = torch.cat([runtime.preprocess(image, size=size)[0] for image in images])
        runs = [runtime.run(inputs), *(runtime.run(image) for image in inputs.split(1))]
        for name in artefact.outputs:
            expected[name] += 2 * [_tokens(name, reference[name])]
            results[name] += [_tokens(name, run[name]) for run in runs]
    return {name: compare(torch.cat(expected[name]), torch.cat(results[name])) for name in artefact.outputs}


def sizes(artefact: Artefact) -> list[tuple[int, int]]:
    """Return the (height, width) of the network's input at which to compare: where it is free, another one too."""
    if artefact.size is not None:
        return [artefact.size]
    height, width = artefact.default_size
    return [artefact.default_size, (height + artefact.patch_size, width + 3 * artefact.patch_size)]


def run_reference(
    encoder: Encoder, artefact: Artefact, images: Sequence[Tensor], size: tuple[int, int]
) -> dict[str, Tensor]:
    """Return the outputs as the torch encoder gives them, preprocessing included."""
    crop_mode = artefact.camera.crop_mode if artefact.camera else None
    with torch.no_grad(), full_float32():
        pixels = torch.cat([encoder.preprocess(image, size=size, crop_mode=crop_mode) for image in images])
        outputs = encoder(pixels)._asdict()
        numbers = [int(name.removeprefix(LAYER)) for name in artefact.outputs if name.startswith(LAYER)]
        layers = tokens_after(encoder.backbone, pixels, numbers) if numbers else {}
    return {**outputs, **{f"{LAYER}{number}": layer for number, layer in layers.items()}}


def _tokens(name: str, output: Tensor) -> Tensor:
    """Return an output as (tokens, C)."""
    return (output.flatten(2).transpose(1, 2) if name == "grid" else output).flatten(0, -2).cpu()


def require(figures: Mapping[str, Parity], layers: Mapping[str, Parity], precision: str) -> None:
    """Let pass what is near enough.

    Args:
        figures: of the export's outputs.
        layers: of the blocks, to name the worst.
        precision: of the export.

    Raises:
        InputError: an output's cosines are below, or its relative errors above, what the precision must reach.
    """
    failed = {name: parity for name, parity in figures.items() if not parity.passes(precision)}
    if not failed:
        return
    detail = ", ".join(
        f"{name} {p.min_cosine:.6f} (mean {p.mean_cosine:.6f}, error {p.norm_error:.4f}, largest {p.max_error:.4f})"
        for name, p in failed.items()
    )
    worst = sorted(layers, key=lambda name: layers[name].badness(), reverse=True)
    first = next((name for name, parity in layers.items() if not parity.passes(precision)), None)
    named = ", ".join(f"{name} {layers[name].mean_cosine:.6f}" for name in worst[:3])
    raise InputError(
        f"the export differs from torch: smallest cosine of a token {detail}, of {precision} {MIN_COSINE[precision]} "
        f"(mean {MEAN_COSINE[precision]}, relative error {NORM_ERROR[precision]}, largest {MAX_ERROR[precision]}) is "
        "required; "
        + (f"first block too far off {first}, worst by mean cosine {named}; " if first else "")
        + "nothing was written. Try a higher --precision"
    )


def as_facts(figures: Mapping[str, Parity]) -> dict[str, dict[str, float]]:
    """Return the figures as JSON holds them."""
    return {name: asdict(parity) for name, parity in figures.items()}
