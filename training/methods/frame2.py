"""FRAME's second stage (arXiv 2506.05543): to an encoder of single frames, memory and anticipation.

1. A window of frames is cut to one region and keeps its colours. The encoder, from which the run begins and which stays
   as it is, sees the newest frame and those before it.
2. A memory keeps a few channels of the earlier frames' patches; the newest frame's tokens attend to it, and to
   themselves.
3. Four decoders lead from the enriched tokens to frozen teachers': the spatial one's patches and the semantic one's
   class token, of the newest frame and of frames to come, which the model does not see. They are as in `frame1`.
4. Each loss is divided by its running mean.

The paper's window ("5 past, 1 current, 1 future") contradicts its two distances, 2 and 4 frames ahead: the distances
are kept. Its frame rate is not stated: 10 a second here (`clips.stride`). It makes the teachers' features beforehand,
and holds back a part of the data to stop early; here they are computed as they are needed, and the last step is taken.

What is learnt has a state and is no encoder: it is `video_encoder/` of the run (`training.models.video_encoder`), and
`encoder/` is what the run began with. Legend: B = clips, T = frames, N = patches, C = width, W = a teacher's width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from training.data.batch import Batch
from training.data.clips import ClipSpec
from training.data.views import View, pre_crop, random_box
from training.methods.distill import credit, explained, identify
from training.methods.frame1 import Teachers, TeachersObjective, add, angle, on_grid
from training.methods.method import At, Build, Losses, Spec
from training.methods.method import Method as BaseMethod
from training.methods.self_distillation import CollapseWatch, feature_spread
from training.models import video_encoder
from training.models.video_encoder import VideoEncoder, VideoEncoderConfig
from training.nn.mean_scaling import MeanScaling
from video_distilled_encoder.errors import InputError


@dataclass(frozen=True)
class Objective(TeachersObjective):
    """Settings of the method."""

    patch_ahead: int = 2
    """Frames from the newest to the one whose patches are anticipated (FRAME)."""
    cls_ahead: int = 4
    """Frames to the one whose class token is (FRAME)."""
    patch_ahead_weight: float = 1.0
    """Weight of the anticipated patches' loss (FRAME tuned its weights on DAVIS and does not give them: ours)."""
    cls_ahead_weight: float = 1.0
    """Weight of the anticipated class token's loss (likewise)."""
    memory_width: int = 64
    """Channels that the memory keeps of a patch (FRAME: fewer than the encoder's, as in SAM 2, whose 64 this is)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.patch_ahead, self.cls_ahead, self.memory_width) < 1:
            raise InputError("objective.patch_ahead, .cls_ahead and .memory_width must be at least 1")
        if min(self.patch_ahead_weight, self.cls_ahead_weight) < 0:
            raise InputError("objective.patch_ahead_weight and .cls_ahead_weight must not be negative")


def numbers(spec: Spec) -> list[int]:
    """Return the frames of a clip, counted in `clips.stride`: those that are seen, then those that are anticipated."""
    objective, newest = spec.objective, spec.clips.frames - 1
    return [*range(newest + 1), *sorted({newest + objective.patch_ahead, newest + objective.cls_ahead})]


def clip_spec(spec: Spec) -> ClipSpec:
    """Return clips of `clips.frames` frames, and of those that are anticipated."""
    return ClipSpec(tuple(round(spec.clips.stride * number, 6) for number in numbers(spec)))


def plan_views(rng: np.random.Generator, size: tuple[int, int], spec: Spec) -> list[View]:
    """Return a view of every frame, all of one region, in the frames' own colours."""
    config = spec.views
    region = random_box(rng, pre_crop(rng, size, config)[1], config.global_area)
    flip, shape = bool(rng.random() < config.flip), (config.global_size,) * 2
    return [View("global", frame, region, flip, shape, None) for frame in range(len(numbers(spec)))]


class Method(BaseMethod):
    """Regression of two frozen teachers' tokens, of the newest frame and of later ones."""

    def __init__(self, spec: Spec, build: Build) -> None:
        super().__init__()
        objective: Objective = spec.objective
        if spec.clips.frames < 2:
            raise InputError(
                f"frame2 remembers earlier frames: clips.frames must be at least 2, got {spec.clips.frames}"
            )
        self.objective, self.patch, self.config = objective, spec.patch, spec.config
        self.seen = spec.clips.frames
        order = numbers(spec)
        self.places = [order.index(self.seen - 1 + ahead) for ahead in (objective.patch_ahead, objective.cls_ahead)]
        backbone = build(False)
        side = spec.views.global_size
        self.teachers = Teachers(objective, spec.config, spec.patch, side)
        sizes = VideoEncoderConfig(
            grid=(side // spec.patch,) * 2,
            frames=self.seen - 1,
            memory_width=objective.memory_width,
            spatial_width=self.teachers.spatial_width,
            semantic_width=self.teachers.semantic_width,
            ahead=objective.patch_ahead,
        )
        self.student = VideoEncoder(backbone, sizes)
        self.scaling = MeanScaling(2 * len(self.teachers.all()), objective.scale_momentum)
        self._begun = False
        self._collapse = CollapseWatch()

    @property
    def trained(self) -> VideoEncoder:
        """The video encoder, whose backbone has no gradients."""
        return self.student

    def encoder(self) -> VisionTransformer:
        """Return the backbone, as the run began with it."""
        return self.student.backbone

    def start_from(self, state: Mapping[str, Tensor], where: str) -> None:
        """Take the encoder."""
        super().start_from(state, where)
        self._begun = True

    def go_on_from(self, state: Mapping[str, Tensor], where: str) -> None:
        """Take all that a run of the same parts learnt."""
        super().go_on_from(state, where)
        self._begun = True

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Refuse to begin with random weights, which would stay random.

        Raises:
            InputError: no encoder was given.
        """
        if not self._begun:
            raise InputError("frame2 keeps the encoder as it is: say which with --init-from, as a run of frame1")

    def outside(self) -> dict[str, str]:
        """Return the teachers' names and hashes."""
        return identify(self.teachers.all())

    def provenance(self) -> str:
        """Return names, licences and hashes of the teachers, and what is where."""
        return (
            f"{credit(self.teachers.all())}\nThese are the weights that the run of `frame2` began with. What it learnt "
            f"from the teachers, a memory and decoders, is `{video_encoder.FOLDER}/` of the run.\n"
        )

    def save_beside(self, out: Path) -> None:
        """Write the video encoder."""
        video_encoder.save(out / video_encoder.FOLDER, self.student, self.config)

    def forward(self, batch: Batch, at: At) -> Losses:
        """Add the losses of the newest frame and of later ones, each over its running mean."""
        frames, student, teachers = batch["global"]["pixels"], self.student, self.teachers
        newest, patches_later, cls_later = (frames[:, n] for n in (self.seen - 1, *self.places))
        with torch.autocast(frames.device.type, enabled=False):
            taught = [teachers.patches(pixels) for pixels in (newest, patches_later)]
        tokens = student(frames[:, : self.seen])
        patches, cls = student.patches(tokens), student.tokens.cls(tokens)
        now, ahead = (
            on_grid(decode(patches), newest, self.patch, taught[0]).to(taught[0].patches.dtype)
            for decode in (student.spatial, student.spatial_ahead)
        )
        losses = {
            "patch_loss": F.mse_loss(now, taught[0].patches),
            "patch_ahead_loss": F.mse_loss(ahead, taught[1].patches),
        }
        if student.semantic is not None and student.semantic_ahead is not None:
            losses["cls_loss"] = angle(student.semantic(cls), teachers.cls(newest))
            losses["cls_ahead_loss"] = angle(student.semantic_ahead(cls), teachers.cls(cls_later))
        total = add(losses, self.objective, self.scaling)
        spread, rank = feature_spread(patches)
        metrics = {name: loss.detach() for name, loss in losses.items()}
        metrics |= {
            "patch_r2": explained(now.detach(), taught[0].patches),
            "patch_ahead_r2": explained(ahead.detach(), taught[1].patches),
            "held_r2": explained(taught[0].patches, taught[1].patches),
        }
        return Losses(total, metrics | {"patch_feature_std": spread, "patch_feature_rank": rank})

    def watch(self, row: Mapping[str, float]) -> str | None:
        """Tell when all images have looked the same for some time."""
        return self._collapse(row, "lower optimizer.learning_rate")
