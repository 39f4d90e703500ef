"""Label propagation: the labels of a video's first frame are carried on by the similarity of patch features.

The context of a frame is the first frame, whose labels are given, and the last few frames, whose labels were carried to
them. A patch is compared with the patches of the context that lie within a square neighbourhood of its place; the
labels of the most similar ones, weighted by exp(cosine / temperature), are averaged. Nothing is trained. This is the
evaluation of DINO's `eval_video_segmentation.py`; the variants of it that are in use differ in their numbers only:

            input                                           context     radius  top-k  temperature
    dino    shorter side 480, longer floored to 64          first + 7   12      5      0.1
    rsp     480 x 880                                       first + 30  30      7      0.1
    siammae 480 x 880                                       first + 20  20      7      0.7

Sides are then floored to whole patches. Sources: the public code of DINO and of RSP; the numbers called siammae are
those that later papers state. (RSP's code floors its 880 to 64 once more, to 832; here it stays 880.)
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from training.nn.propagation import TIE, mean_of_best

TILE = 12
"""Patches on a side of the squares that are worked on at once: small ones compare little beyond the neighbourhood."""


@dataclass(frozen=True)
class Variant:
    """The numbers of a propagation; exactly one of `size`, `short_side` and `width` says how large the frames are."""

    name: str
    context: int
    """Frames before the current one that are looked at, besides the first."""
    radius: int
    """Rows and columns of patches to each side that a patch is compared with."""
    top_k: int
    temperature: float
    size: tuple[int, int] | None = None
    """(height, width) in pixels."""
    short_side: int | None = None
    """Pixels; the aspect ratio is kept."""
    width: int | None = None
    """Pixels; the aspect ratio is kept."""
    multiple: int = 1
    """With `short_side`, the longer side is floored to multiples of this."""

    def input_size(self, height: int, width: int, patch_size: int) -> tuple[int, int]:
        """Return the (height, width) that a frame of a size is encoded at, in whole patches."""
        if self.size:
            sides = self.size
        elif self.short_side:
            long_side = max(height, width) * self.short_side // min(height, width) // self.multiple * self.multiple
            sides = (long_side, self.short_side) if height > width else (self.short_side, long_side)
        elif self.width:
            sides = (height * self.width // width, self.width)
        else:
            raise ValueError("a variant needs a size")
        return max(sides[0] // patch_size, 1) * patch_size, max(sides[1] // patch_size, 1) * patch_size

    def setting(self) -> dict[str, object]:
        """Return its name and every number, for a result."""
        values = dataclasses.asdict(self)
        return {"variant": values.pop("name"), **{name: v for name, v in values.items() if v is not None}}


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("dino", context=7, radius=12, top_k=5, temperature=0.1, short_side=480, multiple=64),
        Variant("rsp", context=30, radius=30, top_k=7, temperature=0.1, size=(480, 880)),
        Variant("siammae", context=20, radius=20, top_k=7, temperature=0.7, size=(480, 880)),
    )
}


def propagate(
    features: Tensor, labels: Tensor, variant: Variant, device: torch.device | str = "cpu"
) -> Iterator[Tensor]:
    """Carry the labels of the first frame to all others, one by one.

    Args:
        features: (n, h, w, C) of the frames in order, of any floating type.
        labels: (h, w, L) soft labels of the first frame.
        variant: context, radius, top-k and temperature.
        device: where it is computed.

    Yields:
        (h, w, L) float32 labels of the second frame, the third, …
    """
    first = (_unit(features[0], device), labels.to(device, torch.float32))
    recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=variant.context)
    for frame in features[1:]:
        query = _unit(frame, device)
        carried = carry(query, [first, *recent], variant)
        recent.append((query, carried))
        yield carried


def carry(query: Tensor, context: Sequence[tuple[Tensor, Tensor]], variant: Variant) -> Tensor:
    """Return the labels (h, w, L) of one frame.

    Args:
        query: (h, w, C) its features, of unit length.
        context: features (h, w, C), of unit length, and labels (h, w, L) of each context frame.
        variant: radius, top-k and temperature.
    """
    height, width, _ = query.shape
    carried = query.new_empty(height, width, context[0][1].shape[-1])
    for rows, near_rows in _spans(height, variant.radius):
        for columns, near_columns in _spans(width, variant.radius):
            tile = query[rows, columns]
            near = [(keys[near_rows, near_columns], values[near_rows, near_columns]) for keys, values in context]
            # One product per frame: the neighbourhoods of all frames side by side would be a large copy.
            cosines = torch.stack([tile.flatten(0, 1) @ keys.flatten(0, 1).mT for keys, _ in near], dim=1)
            far = (
                _far(rows, near_rows, variant.radius, query.device)[:, None, :, None]
                | _far(columns, near_columns, variant.radius, query.device)[:, None]
            )
            cosines.masked_fill_(far.flatten(2).flatten(0, 1)[:, None], -torch.inf)
            values = torch.stack([values for _, values in near]).flatten(0, 2)
            carried[rows, columns] = _mean_of_best(cosines.flatten(1), values, variant).unflatten(0, tile.shape[:2])
    return carried


def _mean_of_best(cosines: Tensor, values: Tensor, variant: Variant) -> Tensor:
    """Cosines (q, s) and the sources' values (s, L) -> (q, L) weighted means over each row's top k, ties included."""
    best, sources = cosines.topk(min(variant.top_k, cosines.shape[1]))
    chosen = cosines >= best[:, -1:] - TIE
    if chosen.count_nonzero() == best.numel():
        weights = (best / variant.temperature).softmax(1)
        return (weights[..., None] * values[sources]).sum(1)
    return mean_of_best(cosines, values, variant.top_k, variant.temperature)


def _unit(features: Tensor, device: torch.device | str) -> Tensor:
    return F.normalize(features.to(device, torch.float32), dim=-1)


def _spans(side: int, radius: int) -> Iterator[tuple[slice, slice]]:
    """Cut a side into tiles; yield each, and what lies within the radius of any of it."""
    for start in range(0, side, TILE):
        stop = min(start + TILE, side)
        yield slice(start, stop), slice(max(start - radius, 0), min(stop + radius, side))


def _far(tile: slice, near: slice, radius: int, device: torch.device) -> Tensor:
    """(tile, near) bool: what is beyond the radius along one axis."""
    places, others = (torch.arange(part.start, part.stop, device=device) for part in (tile, near))
    return (places[:, None] - others).abs() > radius


def labels_on_grid(labels: np.ndarray, numbers: Sequence[int], grid: tuple[int, int]) -> Tensor:
    """(H, W) labels -> (h, w, L) one-hot: the label at each patch's centre; channel i is the label numbers[i]."""
    small = np.asarray(Image.fromarray(labels).resize((grid[1], grid[0]), Image.Resampling.NEAREST))
    return torch.from_numpy(small[..., None] == np.asarray(numbers)).float()


def decide(carried: Tensor, numbers: Sequence[int], size: tuple[int, ...]) -> np.ndarray:
    """Return the (H, W) uint8 label of each pixel.

    As in DINO's code each channel is stretched to [0, 1] over the frame, so that small objects are not lost.

    Args:
        carried: (h, w, L) propagated labels.
        numbers: the label of each channel.
        size: (H, W), to which the channels are upsampled bilinearly.
    """
    maps = F.interpolate(carried.movedim(-1, 0)[None], tuple(size), mode="bilinear")[0]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    maps = torch.where(high > low, (maps - low) / (high - low), maps)
    return np.asarray(numbers, dtype=np.uint8)[maps.argmax(0).cpu().numpy()]
