"""DoRA (Venkataramanan et al., ICLR 2024, arXiv 2310.08584): objects are found in a clip's first frame and followed.

1. The frames of a clip are cut to one region; local views are cut from every frame.
2. The teacher encodes all frames. Some heads of its last block, drawn at random, name an object each: the mean of the
   first frame's queries, weighted by what the class token attends to. Sinkhorn-Knopp shares the first frame's patches
   out among the objects, and each object becomes the sum of its patches.
3. In every frame, the object attends to the last block's keys: where it is, more than elsewhere, is its mask.
4. The student sees each frame once for each object, with all patches gray but the object's; and the local views.
5. Their class tokens learn the teacher's of the same frame, half of the loss each. Time enters through the masks alone.

Where the published code and the paper's formulas differ, the formulas are followed; `quirks` is for the code. The code
draws the heads once for a batch, and so does this. Legend: B = clips, T = frames, O = objects, L = local views per
frame, N = patches, C = width, h = heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.common import distributed, keyed
from training.data.batch import Batch
from training.data.views import View, pre_crop, random_box
from training.methods import dino
from training.methods.method import At, Build, Losses, Spec
from training.methods.self_distillation import LONG, DistillationObjective, SelfDistillation, Tower
from training.nn.attention import LastBlock, check_last_block, last_block
from video_distilled_encoder.errors import InputError

_LEAST_KEPT, _MOST_KEPT = 0.01, 0.99
"""Shares of the patches below and above which masks hide nearly everything, or nothing."""


@dataclass(frozen=True)
class Objective(DistillationObjective):
    """Settings of the method."""

    teacher_temperature: tuple[float, float] = (0.04, 0.04)
    """tau_T at the start and after its warm-up (the published script leaves it flat)."""
    objects: int = 3
    """O, heads of the last block that name an object each (DoRA)."""
    sinkhorn_temperature: float = 0.05
    """Of the sharing out of patches (DoRA)."""
    sinkhorn_rounds: int = 30
    """Of the same (DoRA)."""
    local_flip: float = 0.0
    """Probability of a mirrored local view: the published code mirrors only the whole clip (`views.flip`)."""
    quirks: Literal["none", "authors"] = "none"
    """`authors`: as the published code computes it, and not the formulas: a later object's loss takes up a T-th of
    those before it, the first local view of each frame counts nothing, and masks begin at the whole batch's mean."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.objects, self.sinkhorn_rounds) < 1 or self.sinkhorn_temperature <= 0:
            raise InputError("objective.objects, .sinkhorn_rounds and .sinkhorn_temperature must be positive")
        if not 0 <= self.local_flip <= 1:
            raise InputError(f"objective.local_flip is a probability, got {self.local_flip}")


def plan_views(rng: np.random.Generator, size: tuple[int, int], spec: Spec) -> list[View]:
    """Return one global view per frame, all of one region, then the local views frame by frame."""
    config, frames = spec.views, range(spec.clips.frames)
    frame, cropped = pre_crop(rng, size, config)
    region = random_box(rng, cropped, config.global_area)
    flip = bool(rng.random() < config.flip)
    large, small = (config.global_size,) * 2, (config.local_size,) * 2
    views = [View("global", number, region, flip, large, "view1") for number in frames]
    source = cropped if config.local_from == "pre_crop" else frame
    for number in frames:
        for _ in range(config.local_views):
            box = random_box(rng, source, config.local_area)
            views.append(View("local", number, box, bool(rng.random() < spec.objective.local_flip), small, "local"))
    return views


class Method(SelfDistillation):
    """Cross-entropy of class tokens of followed objects, and of local views, with those of their frames."""

    def __init__(self, spec: Spec, build: Build) -> None:
        objective: Objective = spec.objective
        least = 2 if objective.quirks == "authors" else 1
        if spec.views.local_views < least:
            raise InputError(
                f"dora learns from local views of every frame: views.local_views must be at least {least}, got "
                f"{spec.views.local_views}"
            )
        student, teacher = build(True), build(False)
        heads = check_last_block(student).attn.num_heads
        if objective.objects > heads:
            raise InputError(
                f"objective.objects is {objective.objects}, and each is named by one of the {heads} heads of the "
                "backbone's last block: lower it"
            )
        super().__init__(objective, Tower(student, objective.head), Tower(teacher, objective.head))
        self.objective, self.patch = objective, spec.patch
        self._useless = 0

    def forward(self, batch: Batch, at: At) -> Losses:
        """Average over frames and objects."""
        frames, local = batch["global"]["pixels"], batch["local"]["pixels"]
        taught_BTC, mask_BTON = self.teach(frames, at)
        seen = show(frames, mask_BTON, self.patch)
        objects_BTOC = dino.encode_cls(self.student, seen.flatten(1, 2)).unflatten(1, mask_BTON.shape[1:3])
        local_BTLC = dino.encode_cls(self.student, local).unflatten(1, (frames.shape[1], -1))
        learnt = torch.cat([objects_BTOC, local_BTLC], dim=2)
        counts = frames.shape[1], mask_BTON.shape[2], local_BTLC.shape[2]
        weights_V = view_weights(*counts, self.objective.quirks == "authors")
        scale = weights_V.sum().item()  # what `distill` takes sums to 1
        share_V = (weights_V / scale / taught_BTC[..., 0].numel()).to(torch.promote_types(learnt.dtype, torch.float32))
        weights_BTV = share_V.to(learnt.device).expand(learnt.shape[:3])
        metrics: dict[str, Tensor] = {}
        loss = scale * self.distill("cls", learnt, taught_BTC, at.progress, metrics, weights=weights_BTV)
        metrics |= {"global_loss": loss.detach(), "kept": mask_BTON.float().mean(), "overlap": overlap(mask_BTON)}
        return Losses(loss, metrics)

    @torch.no_grad()
    def teach(self, frames: Tensor, at: At) -> tuple[Tensor, Tensor]:
        """Encode (B, T, 3, H, W) clips: (B, T, C) class tokens, and the (B, T, O, N) masks of what is kept."""
        backbone, objective = self.teacher.backbone, self.objective
        last = LastBlock(
            *(found.unflatten(0, frames.shape[:2]) for found in last_block(backbone, frames.flatten(0, 1)))
        )
        order = [keyed.number(keyed.key_of(at.key, 1), head) for head in range(last.attention.shape[2])]
        heads = sorted(range(len(order)), key=order.__getitem__)[: objective.objects]
        with torch.autocast(frames.device.type, enabled=False):
            objects_BOC = find_objects(
                LastBlock(*(found[:, 0] for found in last)),
                heads,
                temperature=objective.sinkhorn_temperature,
                rounds=objective.sinkhorn_rounds,
            )
            places_BTON = follow(objects_BOC, last.keys)
            return self.teacher.tokens.cls(last.tokens), binarise(places_BTON, self.objective.quirks == "authors")

    def watch(self, row: Mapping[str, float]) -> str | None:
        """Tell when all images look the same, or when masks have hidden all or nothing for some time."""
        self._useless = 0 if _LEAST_KEPT < row["kept"] < _MOST_KEPT else self._useless + 1
        if self._useless >= LONG:
            return (
                f"for {LONG} steps the objects' masks have kept {row['kept']:.1%} of the patches, so they tell nothing "
                "of where the objects are: lower optimizer.learning_rate, or start from an encoder (--init-from)"
            )
        return super().watch(row)


def find_objects(first: LastBlock, heads: list[int], *, temperature: float, rounds: int) -> Tensor:
    """Find objects in the first frames of clips.

    Args:
        first: what the last block sees in them.
        heads: the O heads that name an object each.
        temperature: of the sharing out of patches.
        rounds: of the same.

    Returns:
        (B, O, C), each the sum of its patches' tokens of unit length.
    """
    wide = torch.promote_types(first.tokens.dtype, torch.float32)
    queries_BNC = first.queries.transpose(1, 2).flatten(2).to(wide)
    named_BOC = first.attention[:, heads].to(wide) @ queries_BNC
    patches_BNC = F.normalize(first.patches.to(wide), dim=-1)
    return share_out(patches_BNC @ named_BOC.mT, temperature, rounds).mT @ patches_BNC


def share_out(logits: Tensor, temperature: float, rounds: int) -> Tensor:
    """Return (B, N, O) shares of each image's patches in its objects, by Sinkhorn-Knopp of exp(logits / temperature).

    The shares of a patch sum to 1, and those in an object tend to N / O. In logarithms: at the usual temperature the
    logits span hundreds.
    """
    scores = logits / temperature
    for _ in range(rounds):
        scores = torch.log_softmax(torch.log_softmax(scores, dim=1), dim=2)
    return scores.exp()


def follow(objects: Tensor, keys: Tensor) -> Tensor:
    """Return (B, T, O, N): where (B, O, C) objects are among the patches of each frame, given (B, T, h, N, d) keys."""
    keys_BTNC = keys.transpose(2, 3).flatten(3).to(objects.dtype)
    return torch.softmax(objects[:, None] @ keys_BTNC.mT / objects.shape[-1] ** 0.5, dim=-1)


def binarise(places: Tensor, of_batch: bool = False) -> Tensor:
    """Keep the patches where (B, T, O, N) objects are more than on average.

    Args:
        places: sum to 1 over N.
        of_batch: the average is that of the whole batch, for each frame and object, of places of unit length; else that
            of the image, 1 / N.

    Returns:
        (B, T, O, N) bool.
    """
    unit = F.normalize(places, dim=-1)
    mean = distributed.average(unit.mean((0, 3)))[..., None] if of_batch else unit.mean(-1, keepdim=True)
    return unit > mean


def show(frames: Tensor, mask: Tensor, patch: int) -> Tensor:
    """Return (B, T, O, 3, H, W): of (B, T, 3, H, W) normalised frames what (B, T, O, N) masks keep, and 0 elsewhere."""
    height, width = (side // patch for side in frames.shape[-2:])
    pixels = mask.unflatten(3, (height, width)).repeat_interleave(patch, 3).repeat_interleave(patch, 4)
    return frames[:, :, None] * pixels[:, :, :, None]


def view_weights(frames: int, objects: int, local_views: int, quirks: bool = False) -> Tensor:
    """Return the (O + L,) float64 weights of a frame's masked and local views; their sum is 1 but for `quirks`."""
    each = torch.full((objects,), 1 / objects, dtype=torch.float64)
    if quirks:  # object o is counted again, by a T-th of what it was, with every object after it
        times = [sum(frames**-later for later in range(objects - number)) for number in range(objects)]
        each *= torch.tensor(times, dtype=each.dtype)
    local = torch.ones(local_views, dtype=torch.float64)
    if quirks:
        local[0] = 0
    return torch.cat([each, each.sum() * local / local.sum()]) / 2


def overlap(mask: Tensor) -> Tensor:
    """Return the mean intersection over union of the masks of two objects of one frame; 1 where there is but one.

    Args:
        mask: (B, T, O, N) bool.
    """
    found = mask.float()
    both = found @ found.mT
    areas = found.sum(-1)
    either = (areas[..., :, None] + areas[..., None, :] - both).clamp(min=1)
    objects = mask.shape[2]
    others = ~torch.eye(objects, dtype=torch.bool, device=mask.device)
    of_others = both.numel() // objects * (objects - 1)
    return (both / either * others).sum() / of_others if objects > 1 else both.new_ones(())
