"""DINO on video frames (Caron et al. 2021), the papers' baselines.

1. Two global views and the local views are cut from one frame; with `clips.frames` 2 ("time-aug"), the first global
   view and half of the local views come from the first frame, the others from the second.
2. The teacher encodes the global views, the student all views.
3. The class tokens of every student view learn those of every teacher view but its own.

A pre-crop (`views.pre_crop_area`) is one for all frames of a clip. Legend: B = clips, V = views, C = width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.data.batch import Batch
from training.data.views import View, pre_crop, random_box
from training.methods.method import At, Build, Losses, Spec
from training.methods.self_distillation import DistillationObjective, Network, SelfDistillation, Tower
from video_distilled_encoder.errors import InputError


@dataclass(frozen=True)
class Objective(DistillationObjective):
    """Settings of the method: those of every self-distillation."""


def plan_views(rng: np.random.Generator, size: tuple[int, int], spec: Spec) -> list[View]:
    """Return two global views, in DINO's two styles, and `views.local_views` local views."""
    config = spec.views
    frame, region = pre_crop(rng, size, config)
    last = spec.clips.frames - 1

    def flip() -> bool:
        return bool(rng.random() < config.flip)

    large, small = (config.global_size,) * 2, (config.local_size,) * 2
    views = [
        View("global", 0, random_box(rng, region, config.global_area), flip(), large, "view1"),
        View("global", last, random_box(rng, region, config.global_area), flip(), large, "view2"),
    ]
    source = region if config.local_from == "pre_crop" else frame
    for number in range(config.local_views):
        chosen = 0 if number < config.local_views / 2 else last
        views.append(View("local", chosen, random_box(rng, source, config.local_area), flip(), small, "local"))
    return views


class Method(SelfDistillation):
    """Cross-entropy of class tokens between views."""

    def __init__(self, spec: Spec, build: Build) -> None:
        objective: Objective = spec.objective
        if spec.clips.frames not in (1, 2):
            raise InputError(f"dino takes clips of 1 frame, or 2 for time-aug; clips.frames is {spec.clips.frames}")
        student, teacher = build(True), build(False)
        super().__init__(objective, Tower(student, objective.head), Tower(teacher, objective.head))

    def forward(self, batch: Batch, at: At) -> Losses:
        """Average the loss over all pairs of a teacher's view and another student's view."""
        with torch.no_grad():
            taught = encode_cls(self.teacher, batch["global"]["pixels"])
        learnt = [encode_cls(self.student, found["pixels"]) for found in batch.values()]
        metrics: dict[str, Tensor] = {}
        loss = self.distill("cls", pair_views(torch.cat(learnt, dim=1)), taught, at.progress, metrics)
        return Losses(loss, metrics | {"global_loss": loss.detach()})


def encode_cls(network: Network, views: Tensor) -> Tensor:
    """(B, V, 3, H, W) -> (B, V, C) class tokens."""
    tokens = network.backbone.forward_features(views.flatten(0, 1))
    return network.tokens.cls(tokens).unflatten(0, views.shape[:2])


def pair_views(learnt: Tensor) -> Tensor:
    """(B, V, C) student's views, the two global ones first -> (B, 2, V - 1, C): for each teacher's view all others."""
    first, second, rest = learnt[:, :1], learnt[:, 1:2], learnt[:, 2:]
    return torch.stack([torch.cat([second, rest], dim=1), torch.cat([first, rest], dim=1)], dim=1)
