"""A batch: by group of views, named tensors. Between loading and training it is only collated, split and augmented.

    pixels      (B, n, 3, H, W) uint8; where the device cuts the views, (B, n, 8) int64 (`training.data.resident`)
    photometric (B, n, 11) float32, until it is applied (`training.data.photometric`)
    mask, …     (B, n, …) what the method planned with its views (`View.arrays`)

A method gets the pixels augmented and normalised, in float32. A sample is the same without the leading B.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.utils.data import default_collate

from training.data import photometric

Batch = dict[str, dict[str, Tensor]]


def collate(samples: Sequence[Batch]) -> Batch:
    """Stack samples."""
    batch: Batch = default_collate(list(samples))
    return batch


def split(batch: Batch, parts: int) -> list[Batch]:
    """Split into equal parts along the clips."""
    return [
        {group: {name: tensor.chunk(parts)[number] for name, tensor in found.items()} for group, found in batch.items()}
        for number in range(parts)
    ]


def augment(batch: Batch, mean: Tensor, std: Tensor, cut: Callable[[Tensor], Tensor] | None = None) -> Batch:
    """Return what a method takes, on the device of `mean`.

    Args:
        batch: as it was loaded; a sample will do.
        mean: (3,) of the RGB channels, for the normalisation.
        std: (3,) likewise.
        cut: cuts the views on the device, if that is to be done (`ResidentFrames.cut`).
    """
    return {group: _augment(found, mean, std, cut) for group, found in batch.items()}


def _augment(
    found: dict[str, Tensor], mean: Tensor, std: Tensor, cut: Callable[[Tensor], Tensor] | None
) -> dict[str, Tensor]:
    views = cut(found["pixels"]) if cut else found["pixels"]
    pixels = photometric.apply(views, found["photometric"], mean, std)
    rest = {name: tensor for name, tensor in found.items() if name not in ("pixels", "photometric")}
    return {"pixels": pixels} | {name: tensor.to(mean.device, non_blocking=True) for name, tensor in rest.items()}
