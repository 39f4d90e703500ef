"""Distillation of a frozen encoder into the student, on frames of one's own video.

1. A frozen teacher, any encoder that `training.models` can load, sees a view of a frame; the student sees the same
   view, or, with `next_frame`, that of an earlier frame, from which a prediction head follows it.
2. A head for each kind of token leads from the student's width to the teacher's. The class token is compared by its
   angle, patch tokens with the teacher's, scaled by statistics of some batches before the first step.
3. Where the grids differ, the finer one is brought to the coarser: the teacher's tokens by averages over areas, the
   head's output bilinearly.

There is no moving average, and the teacher is in no checkpoint: its name and SHA-256 are. The parts are those of
AM-RADIO (arXiv 2312.06709), EUPE, UNIC and lightly-train; the choice and the defaults are ours. Legend: B = clips,
F = frames, N = patches, C = width, W = the teacher's width, h, w = grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from training.data.batch import Batch
from training.data.views import View, pre_crop, random_box
from training.methods.method import At, Build, Losses, Spec
from training.methods.method import Method as BaseMethod
from training.methods.method import Objective as BaseObjective
from training.models.loading import load_model
from training.models.model import Model
from training.nn.heads import Predictor, PredictorConfig
from training.nn.standardize import Moments, Scaling, Standardize
from video_distilled_encoder import EncoderOutput
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.tokens import TokenLayout


@dataclass(frozen=True)
class Objective(BaseObjective):
    """Settings of the method."""

    teacher: str = ""
    """The frozen encoder: a release, a directory, `timm:NAME`, `transformers:NAME`, as `training.evaluate --model`."""
    teacher_scale: float | None = None
    """Side of its input over the student's. Above 1 views are cut from their frames at the teacher's size, and scaled
    down for the student. If not given, they have the student's size, and the teacher gets them at that of which it
    makes as many patches."""
    scaling: Scaling = "standard"
    """Of its patch tokens: standard (mean 0 and deviation 1 per channel), phi_s, l2 or none."""
    scaling_batches: int = 100
    """Batches before the first step from which the statistics of standard and phi_s are taken."""
    cls_weight: float = 1.0
    """Weight of 1 - cosine of the class tokens; 0 leaves it out."""
    patch_weight: float = 1.0
    """Weight of the patch tokens' loss; 0 leaves it out."""
    patch_loss: Literal["smooth_l1", "mse"] = "smooth_l1"
    """How patch tokens are compared."""
    relation_weight: float = 0.0
    """Weight of the divergence of each patch's similarities to all patches of its image (lightly-train's v3)."""
    relation_temperature: float = 0.07
    """Of those similarities."""
    hidden: int = 1536
    """Width of the heads' hidden layer."""
    next_frame: bool = False
    """The student predicts, from the first frame of a clip, the teacher's tokens of the last: `clips.frames` 2."""
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    """The prediction head of `next_frame`."""

    def __post_init__(self) -> None:
        weights = self.cls_weight, self.patch_weight, self.relation_weight
        if min(weights) < 0 or not any(weights):
            raise InputError("objective.cls_weight, .patch_weight and .relation_weight must not be negative, nor all 0")
        if self.relation_temperature <= 0 or min(self.scaling_batches, self.hidden) < 1:
            raise InputError("objective.relation_temperature, .scaling_batches and .hidden must be positive")
        if self.teacher_scale is not None and self.teacher_scale <= 0:
            raise InputError(f"objective.teacher_scale must be positive, got {self.teacher_scale:g}")

    def cut_scale(self) -> float:
        """Return the side of a view, as it is cut from its frame, over that of the student's input."""
        return max(self.teacher_scale or 1.0, 1.0)


def plan_views(rng: np.random.Generator, size: tuple[int, int], spec: Spec) -> list[View]:
    """Return one view, or for `next_frame` one of the first frame and one of the last, of one region."""
    config, side = spec.views, round(spec.views.global_size * spec.objective.cut_scale())
    region = random_box(rng, pre_crop(rng, size, config)[1], config.global_area)
    flip = bool(rng.random() < config.flip)
    frames = (0, spec.clips.frames - 1) if spec.objective.next_frame else (0,)
    return [View("global", number, region, flip, (side, side), "view1") for number in frames]


class Student(nn.Module):
    """Backbone, prediction head if asked for, and a head for each kind of token."""

    def __init__(self, backbone: VisionTransformer, objective: Objective, widths: tuple[int, int]) -> None:
        super().__init__()
        self.backbone, self.tokens = backbone, TokenLayout.of(backbone)
        self.predictor = Predictor(backbone.embed_dim, objective.predictor) if objective.next_frame else nn.Identity()
        self.cls_head, self.patch_head = (_head(backbone.embed_dim, objective.hidden, width) for width in widths)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> class (B, W) and patch tokens (B, N, W), as the teacher should have them."""
        tokens = self.predictor(self.backbone.forward_features(pixels))
        return self.cls_head(self.tokens.cls(tokens)), self.patch_head(self.tokens.patches(tokens))


def _head(width: int, hidden: int, out: int) -> nn.Sequential:
    first, last = nn.Linear(width, hidden), nn.Linear(hidden, out)
    for layer in (first, last):
        trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.LayerNorm(width, eps=1e-6), first, nn.GELU(), last)


class Method(BaseMethod):
    """Regression of a frozen teacher's tokens."""

    def __init__(self, spec: Spec, build: Build) -> None:
        super().__init__()
        objective: Objective = spec.objective
        if objective.next_frame and spec.clips.frames < 2:
            raise InputError(f"objective.next_frame wants clips.frames of at least 2, got {spec.clips.frames}")
        if not objective.teacher:
            raise InputError("distill wants an encoder to learn from: set objective.teacher, as to nota/vfd-vits16")
        self.objective, self.patch, self.config = objective, spec.patch, spec.config
        backbone = build(True)
        with torch.random.fork_rng(devices=[]):  # whatever the teacher is, the student's weights are the same
            self.teacher = load_model(objective.teacher, device="cpu")
        side = round(spec.views.global_size * objective.cut_scale())
        with torch.no_grad():
            seen = self.teach(torch.zeros(1, 3, side, side))
        self.student = Student(backbone, objective, (seen.cls.shape[-1], seen.patches.shape[-1]))
        self.scaling = Standardize(seen.patches.shape[-1], objective.scaling)

    @property
    def trained(self) -> Student:
        """The student."""
        return self.student

    def encoder(self) -> VisionTransformer:
        """Return the student's backbone."""
        return self.student.backbone

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Take the statistics of the teacher's patch tokens."""
        if not self.scaling.fitted:
            return
        moments = Moments()
        for batch in islice(batches, self.objective.scaling_batches):
            moments.add(self.teach(batch["global"]["pixels"][:, -1]).patches.flatten(0, 1))
        self.scaling.fit(moments)

    def outside(self) -> dict[str, str]:
        """Return the teacher's name and hash."""
        return identify([self.teacher])

    def provenance(self) -> str:
        """Return name, licence and hash of the teacher."""
        return credit([self.teacher])

    def teach(self, pixels: Tensor) -> EncoderOutput:
        """(B, 3, H, W) pixels of a view, normalised for the student -> the teacher's features, at most one a patch."""
        scale, cut, own = self.objective.teacher_scale, self.objective.cut_scale(), self.teacher.patch_size
        height, width = (round(n / cut * scale) if scale else n // self.patch * own for n in pixels.shape[-2:])
        if height % own or width % own:
            raise InputError(
                f"objective.teacher_scale {scale} gives {self.teacher.description['name']} views of {width}x{height} "
                f"pixels; it takes multiples of {own}"
            )
        taught = self.teacher.features(pixels, self.config, (height, width))
        rows, columns = (round(n / cut) // self.patch for n in pixels.shape[-2:])
        if max(taught.grid.shape[-2:]) <= max(rows, columns):
            return taught
        coarser = F.adaptive_avg_pool2d(taught.grid, (rows, columns))
        return taught._replace(patches=coarser.flatten(2).mT, grid=coarser)

    def shrink(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) pixels of a view -> those that the student sees."""
        cut = self.objective.cut_scale()
        if cut == 1:
            return pixels
        size = [round(n / cut) for n in pixels.shape[-2:]]
        return F.interpolate(pixels, size, mode="bicubic", antialias=True)

    def forward(self, batch: Batch, at: At) -> Losses:
        """Add the losses of class tokens, patch tokens and relations."""
        frames = batch["global"]["pixels"]
        taught = self.teach(frames[:, -1])  # in the precision of the run
        with torch.autocast(frames.device.type, enabled=False):
            target = self.scaling(taught.patches)
            pixels = self.shrink(frames[:, 0])
        cls, patches = (tokens.to(target.dtype) for tokens in self.student(pixels))
        grid = tuple(side // self.patch for side in pixels.shape[-2:])
        patches = resize(patches, (grid[0], grid[1]), (taught.grid.shape[-2], taught.grid.shape[-1]))
        with torch.autocast(frames.device.type, enabled=False):
            parts = self.compare(cls, patches, taught, target)
        weights = {name: getattr(self.objective, name.replace("_loss", "_weight")) for name in parts}
        total = torch.stack([weights[name] * loss for name, loss in parts.items()]).sum()
        metrics = {name: loss.detach() for name, loss in parts.items()}
        return Losses(total, metrics | {"patch_r2": explained(patches.detach(), target)})

    def compare(self, cls: Tensor, patches: Tensor, taught: EncoderOutput, target: Tensor) -> dict[str, Tensor]:
        """Return the losses that have a weight.

        Args:
            cls: (B, W) the student's.
            patches: (B, N, W) the student's, on the teacher's grid.
            taught: the teacher's.
            target: (B, N, W) the teacher's patch tokens, scaled.
        """
        objective = self.objective
        losses = {}
        if objective.cls_weight:
            losses["cls_loss"] = (1 - F.cosine_similarity(cls, taught.cls, dim=-1)).mean()
        if objective.patch_weight:
            compare = F.smooth_l1_loss if objective.patch_loss == "smooth_l1" else F.mse_loss
            losses["patch_loss"] = compare(patches, target)
        if objective.relation_weight:
            losses["relation_loss"] = relation_divergence(patches, taught.patches, objective.relation_temperature)
        return losses


def identify(teachers: Sequence[Model]) -> dict[str, str]:
    """Return the names and SHA-256 of frozen teachers."""
    of = [teacher.description for teacher in teachers]
    return {str(facts["name"]): str(facts.get("weights_sha256", facts)) for facts in of}


def credit(teachers: Sequence[Model]) -> str:
    """Return what the card of what learnt from frozen teachers is to say of them; Markdown."""
    return "".join(
        f"\nIt learnt from the features of `{name}` (SHA-256 {digest}), whose weights come under "
        f"{teacher.licence}; what that says of models that learn from them holds here too.\n"
        for teacher in teachers
        for name, digest in identify([teacher]).items()
    )


def resize(patches: Tensor, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Resize (B, N, W) tokens of one grid (h, w) to another, bilinearly."""
    if grid == wanted:
        return patches
    resized = F.interpolate(patches.mT.unflatten(2, grid), wanted, mode="bilinear", align_corners=False)
    return resized.flatten(2).mT


def relation_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compare (B, N, …) tokens by each one's similarities to all of its image: mean KL(teacher || student)."""
    learnt, taught = (
        torch.log_softmax(unit @ unit.mT / temperature, dim=-1)
        for unit in (F.normalize(student, dim=-1), F.normalize(teacher, dim=-1))
    )
    return F.kl_div(learnt, taught, reduction="none", log_target=True).sum(-1).mean()


def explained(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the share of the variance of (B, N, W) targets that is predicted: R^2, over all channels.

    In the first pass over the data every clip is new to the student when this is measured.
    """
    centred = target - target.mean((0, 1))
    return 1 - (predicted - target).square().sum() / centred.square().sum().clamp(min=1e-12)
