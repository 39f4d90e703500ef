"""AttMask (Kakogeorgiou et al. 2022, arXiv 2203.12719): iBOT whose masks follow the teacher's attention.

1. The teacher encodes the unmasked global views; its last block tells how much the class token attends to each patch.
2. Of a masked view the student loses the patches that are attended to most (`high`), of which a few of the very highest
   are shown again as a hint (`hint`), or, for comparison, least (`low`).

As the published code has it, and its figures come from: the share that is masked is drawn once for a batch, and that of
the hint apart from it. Everything else is iBOT's. Legend: B = clips, V = views, N = patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from training.common import keyed
from training.data.batch import Batch
from training.data.views import View
from training.methods import dino, ibot
from training.methods.method import At, Build, Spec
from training.nn.attention import check_last_block, last_block
from video_distilled_encoder.errors import InputError

Mode = Literal["hint", "high", "low"]


@dataclass(frozen=True)
class Objective(ibot.Objective):
    """Settings of the method."""

    mask_mode: Mode = "hint"
    """Which patches are masked: those attended to most (high), most of those (hint), or those attended to least."""
    hint_share: float = 0.1
    """Share of a view's patches, the most attended to, of which some are shown again; a draw of `mask_share` decides
    how many of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.hint_share <= self.mask_share[0]:
            raise InputError(
                f"objective.hint_share must lie in [0, {self.mask_share[0]:g}], the lower end of mask_share, for what "
                f"is shown again was masked; got {self.hint_share:g}"
            )


def plan_views(rng: np.random.Generator, size: tuple[int, int], spec: Spec) -> list[View]:
    """Return DINO's views; which patches are masked is known when the teacher has seen them."""
    return dino.plan_views(rng, size, spec)


class Method(ibot.Method):
    """iBOT with masks from the teacher's attention."""

    objective: Objective

    def __init__(self, spec: Spec, build: Build) -> None:
        super().__init__(spec, build)
        check_last_block(self.teacher.backbone)

    @torch.no_grad()
    def teach(self, batch: Batch, at: At) -> tuple[Tensor, Tensor]:
        """Encode the global views by the teacher, and mask what it attends to."""
        pixels = batch["global"]["pixels"]
        last = last_block(self.teacher.backbone, pixels.flatten(0, 1))
        objective = self.objective
        low, high = objective.mask_share
        key = keyed.key_of(at.key, 1)
        share, hint = (low + (high - low) * keyed.number(key, column) for column in (0, 1))
        rows = at.first_row * pixels.shape[1] + torch.arange(len(last.tokens), device=pixels.device)
        patches = last.attention.shape[-1]
        chance, order = keyed.uniform(key, rows, 1 + patches).split([1, patches], 1)
        mask = attention_mask(last.attention.mean(1), objective.mask_mode, share, hint, objective.hint_share, order)
        mask = mask & (chance < objective.mask_probability)
        return last.tokens.unflatten(0, pixels.shape[:2]), mask.unflatten(0, pixels.shape[:2])


def attention_mask(
    attention: Tensor, mode: Mode, share: float, hint: float, hint_share: float, order: Tensor
) -> Tensor:
    """Choose patches by how much they are attended to.

    Args:
        attention: (B, N).
        mode: "high", "hint" or "low".
        share: of the patches that are masked; a part of a patch counts as none.
        hint: of the `hint_share` most attended to, those that are shown again.
        hint_share: see there.
        order: (B, N) random numbers in [0, 1), by which they are chosen.

    Returns:
        (B, N) bool.
    """
    patches = attention.shape[-1]
    mask = _top(attention, int(share * patches), last=mode == "low")
    if mode == "hint":
        candidates = _top(attention, int(hint_share * patches))
        shown = _top(torch.where(candidates, order, -1.0), int(hint_share * hint * patches))
        mask = mask & ~shown
    return mask


def _top(values: Tensor, count: int, last: bool = False) -> Tensor:
    """Return a mask of the `count` largest of (B, N) values in each row, or of the last in that order."""
    order = values.argsort(dim=-1, descending=True, stable=True)
    places = order[:, values.shape[-1] - count :] if last else order[:, :count]
    return torch.zeros_like(values, dtype=torch.bool).scatter(-1, places, True)
