"""The parity gate: an export must give the features of the fp32 torch encoder, on real images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from video_distilled_encoder import Encoder
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.preprocessing import open_image

MIN_COSINE = 0.9999


@dataclass(frozen=True)
class Parity:
    """How far one output is from the reference."""

    min_cosine: float
    """Smallest cosine similarity of a token with the reference's token."""
    mean_cosine: float
    """Their mean."""
    max_abs: float
    """Largest absolute difference of a number."""


def compare(reference: Tensor, result: Tensor) -> Parity:
    """Compare two tensors of tokens (..., C)."""
    reference, result = reference.double().cpu(), result.double().cpu()
    cosine = F.cosine_similarity(reference, result, dim=-1)
    # A NaN anywhere must fail the gate, and min() alone would let some platforms drop it.
    worst = float(cosine.min()) if bool(cosine.isfinite().all()) else float("nan")
    return Parity(worst, float(cosine.mean()), float((reference - result).abs().max()))


def check(
    encoder: Encoder, size: tuple[int, int], run: Callable[[Tensor], Mapping[str, Tensor]], images: list[Path]
) -> dict[str, dict[str, float]]:
    """Run an export on real images, one at a time and as one batch, and compare it with the encoder in fp32.

    Args:
        encoder: the reference, in fp32.
        size: (height, width) of the export's input.
        run: (B, 3, H, W) normalised pixels in, named outputs out.
        images: photographs.

    Returns:
        Per output the worst figures seen.

    Raises:
        InputError: a token's cosine is below 0.9999.
    """
    pixels = encoder.preprocess([open_image(path) for path in images], size=size)
    with torch.no_grad():
        expected = encoder(pixels)._asdict()
    figures: dict[str, Parity] = {}
    for batch, rows in [(pixels, slice(None)), *((pixels[i : i + 1], slice(i, i + 1)) for i in range(len(pixels)))]:
        for name, result in run(batch).items():
            reference = expected[name][rows]
            if name == "grid":
                reference, result = (grid.flatten(2).transpose(1, 2) for grid in (reference, result))
            figures[name] = _worse(figures.get(name), compare(reference, result))
    failed = {name: parity for name, parity in figures.items() if not parity.min_cosine >= MIN_COSINE}
    if failed:
        detail = ", ".join(f"{name} {parity.min_cosine:.6f}" for name, parity in failed.items())
        raise InputError(
            f"the export differs from torch: smallest cosine of a token {detail}, at least {MIN_COSINE} is required; "
            "nothing was written. Try --precision fp32"
        )
    return {name: asdict(parity) for name, parity in figures.items()}


def _worse(one: Parity | None, other: Parity) -> Parity:
    if one is None:
        return other
    return Parity(
        other.min_cosine if not other.min_cosine >= one.min_cosine else one.min_cosine,
        min(one.mean_cosine, other.mean_cosine),
        max(one.max_abs, other.max_abs),
    )
