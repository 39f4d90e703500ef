"""PooDLe (Wang, Hoang et al., ICLR 2025, arXiv 2408.11208) with a vision transformer: what moves is followed by flow.

1. Two frames of a clip are cut to one region, and the optical flow between them is known. Student and teacher see each
   frame through an affine map of their own.
2. A spatial decoder makes a finer map of the patch tokens, of the last block and two earlier ones; a projector follows
   it, and in the student a predictor.
3. Dense loss: the affine maps are undone, the teacher's map of the other frame is brought along by the flow, and the
   two are compared where they see the same point: points that leave the view, or that something else hides in the
   other frame, count nothing.
4. Pooled loss: small crops of a frame are compared with crops of the other frame around where the flow leads.

The paper's network is a ResNet-50; what stands here for its stages, its stride and its batch normalisation is ours, so
no figure of the paper's is to be expected. The paper crops its sub-crops from the coloured view; here they are cut from
the frame, whose pixels they have, and get colours of their own. Where the published code and the paper's intention
differ, the intention is followed; `quirks` is for the code. Legend: B = clips, K = sub-crops of a frame, E = width of a
projection, h, w = grid of patches, n = rows and columns of points that are compared, S = side of a view.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from training.common import distributed
from training.common.digests import remembered_sha256
from training.data.batch import Batch
from training.data.box import Box
from training.data.flow import FlowConfig, Flows, Motion, correspond
from training.data.views import View, pre_crop, random_box
from training.methods.method import At, Build, Losses, Spec, need_first_and_last
from training.methods.self_distillation import LONG, Network, StudentAndTeacher, TeacherObjective, feature_spread
from training.nn.warping import arrivals, middles, read, turn, turned, within
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.tokens import encode_tokens

_LEAST_COUNTED = 0.05
"""Share of the points below which a step teaches next to nothing of places."""
_TRIES = 5
"""After which a sub-crop whose partner leaves the view is compared with one of its own frame (PooDLe)."""
_RATIO = 3 / 4, 4 / 3
"""Aspect ratio of a sub-crop (PooDLe)."""
Norm = Literal["layer", "batch"]


@dataclass(frozen=True)
class Objective(TeacherObjective):
    """Settings of the method."""

    dense_weight: float = 0.5
    """Weight of the dense loss (PooDLe); 0 leaves it out."""
    pooled_weight: float = 0.5
    """Weight of the pooled loss (PooDLe); 0 leaves it out (FlowE, without the decoder: .decoder_steps 0)."""
    flow: FlowConfig = field(default_factory=FlowConfig)
    """The optical flow between the frames."""
    occlusion: tuple[float, float] = (0.1, 0.5)
    """A point is hidden where |f + b|^2 > first (|f|^2 + |b|^2) + second, of the flow f there and the flow b back in
    pixels of the view (PooDLe)."""
    rotation: float = 10.0
    """Of the affine maps, drawn from ± this (degrees; PooDLe)."""
    zoom: tuple[float, float] = (0.9, 1.1)
    """Of the same (PooDLe). They mirror with the probability `views.flip`."""
    decoder_width: int = 256
    """Of the decoder's maps (ours)."""
    decoder_steps: int = 2
    """Times that the decoder doubles the grid of patches of 16 pixels: a stride of 4 pixels (ours; PooDLe's goes from
    32 to 8). 0: no decoder, and each patch is compared."""
    points: Literal["decoder", "image"] = "decoder"
    """Where features are compared: at the decoder's stride (ours: a sixteenth of the work at the same detail), or at
    every pixel of the view, to which they are enlarged (PooDLe)."""
    norm: Norm = "layer"
    """Of decoder and heads. layer: each token by itself. batch: by mean and deviation of the whole batch, of the
    teacher's as well (PooDLe's code, whose teacher stays in training mode); no running averages are kept."""
    hidden: int = 4096
    """Width of the hidden layer of projectors and predictors (PooDLe)."""
    bottleneck: int = 256
    """E, width of what is compared (PooDLe)."""
    pooling: Literal["mean", "cls"] = "mean"
    """What stands for a sub-crop: the mean of its patch tokens (as the ResNet's average), or the class token."""
    cells: int = 4
    """The centres of a frame's sub-crops lie in different cells of a grid of so many rows and columns (ours)."""
    offset: float = 0.1
    """How far the centre of a partner may lie from where the flow leads, as a share of the view's sides (PooDLe)."""
    quirks: Literal["none", "authors"] = "none"
    """`authors`: as the published code computes it, the teacher's map is carried by the flow before its affine map is
    undone, and by places that are up to half a pixel off."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.dense_weight, self.pooled_weight) < 0 or self.dense_weight + self.pooled_weight == 0:
            raise InputError("objective.dense_weight and .pooled_weight must not be negative, nor both 0")
        if min(self.decoder_width, self.hidden, self.bottleneck, self.cells) < 1 or self.decoder_steps < 0:
            raise InputError(
                "objective.decoder_width, .hidden, .bottleneck and .cells must be positive, .decoder_steps at least 0"
            )
        if min(self.occlusion) < 0 or min(self.rotation, self.offset) < 0:
            raise InputError("objective.occlusion, .rotation and .offset must not be negative")
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise InputError(f"objective.zoom must be 0 < low <= high, got {list(self.zoom)}")


def flow_config(spec: Spec) -> FlowConfig:
    """Return how the flow is computed that `plan_views` gets."""
    config: FlowConfig = spec.objective.flow
    return config


def plan_views(rng: np.random.Generator, size: tuple[int, int], spec: Spec, motion: Motion) -> list[View]:
    """Return the views of the first frame and of the last, of one region, and the sub-crops.

    With the former go the `affine` maps of student and teacher, the `flow` to the other frame, and which of the points
    are `inside` the view there and which `occluded`. The sub-crops are the student's of both frames, then the teacher's
    in the same order: those of the other frame where they `followed` the flow.
    """
    config, objective, last = spec.views, spec.objective, spec.clips.frames - 1
    region = random_box(rng, pre_crop(rng, size, config)[1], config.global_area)
    side = config.global_size
    points = side if objective.points == "image" else (side // spec.patch) * 2**objective.decoder_steps
    ways = ((0, motion), (last, motion.reversed()))
    views = []
    for frame, way in ways:
        maps = np.stack([affine(rng, objective, config.flip) for _ in range(2)])
        found = correspond(way, region, side, points, objective.occlusion)
        arrays = {"affine": maps, **found._asdict()}
        views.append(View("global", frame, region, False, (side, side), "view1", arrays))
    small = (config.local_size,) * 2
    own, partners = [], []
    for frame, way in ways:
        for centre in centres(rng, region, objective.cells, config.local_views):
            box, other, followed = sub_crops(rng, region, centre, way, config.local_area, objective.offset)
            arrays = {"followed": np.array(followed)}
            own.append(View("local", frame, box, False, small, "local", arrays))
            partners.append(View("local", last - frame if followed else frame, other, False, small, "local", arrays))
    return [*views, *own, *partners]


def affine(rng: np.random.Generator, objective: Objective, flip: float) -> np.ndarray:
    """Draw a (2, 2) float32 map of the places of a turned, zoomed and perhaps mirrored view to those of the view."""
    angle = math.radians(rng.uniform(-objective.rotation, objective.rotation))
    zoom = rng.uniform(*objective.zoom)
    mirror = -1.0 if rng.random() < flip else 1.0
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return (turn @ np.diag([mirror, 1.0]) / zoom).astype(np.float32)


def centres(rng: np.random.Generator, region: Box, cells: int, count: int) -> np.ndarray:
    """Draw (count, 2) places x, y in pixels of the frame, in different cells of a grid over a region."""
    chosen = rng.choice(cells**2, count, replace=False)
    shares = (np.stack([chosen % cells, chosen // cells], axis=1) + rng.random((count, 2))) / cells
    return np.array(region[:2]) + shares * np.array(region[2:])


def sub_crops(
    rng: np.random.Generator,
    region: Box,
    centre: np.ndarray,
    motion: Motion,
    area: tuple[float, float],
    offset: float,
) -> tuple[Box, Box, bool]:
    """Draw a sub-crop and its partner.

    Args:
        rng: source of randomness.
        region: in which both lie.
        centre: (2,) of the first, x and y in pixels.
        motion: from its frame to the other.
        area: of the first, as a share of the region's; the partner's is at least as large.
        offset: see `Objective.offset`.

    Returns:
        The two, and whether the partner is one of the other frame, or of the same where the flow leads off the region.
    """
    share = rng.uniform(*area)
    corner, extent = np.array(region[:2]), np.array(region[2:])
    there = centre + motion.at(centre)
    box = box_around(rng, region, centre, share)
    for _ in range(_TRIES):
        target = there + rng.uniform(-offset, offset, 2) * extent
        if ((target >= corner) & (target < corner + extent)).all():
            return box, box_around(rng, region, target, rng.uniform(share, area[1])), True
    return box, box_around(rng, region, centre, rng.uniform(share, area[1])), False


def box_around(rng: np.random.Generator, region: Box, centre: np.ndarray, share: float) -> Box:
    """Draw a box of a share of a region's area around a place, moved as far as it must be to lie in the region."""
    aspect = math.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
    target = share * region.width * region.height
    width = min(max(round(math.sqrt(target * aspect)), 1), region.width)
    height = min(max(round(math.sqrt(target / aspect)), 1), region.height)
    left, top = round(centre[0] - width / 2), round(centre[1] - height / 2)
    left = min(max(left, region.left), region.left + region.width - width)
    top = min(max(top, region.top), region.top + region.height - height)
    return Box(left, top, width, height)


class BatchNorm(nn.Module):
    """Normalisation of (…, C) by mean and variance of all else, over all processes; in evaluation as in training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, scale and shift."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32)).flatten(0, -2)
        centred = wide - distributed.average_with_gradient(wide.mean(0))
        variance = distributed.average_with_gradient(centred.square().mean(0))
        return (centred * (variance + 1e-5).rsqrt() * self.weight + self.bias).view(x.shape)


def make_norm(kind: Norm, width: int) -> nn.Module:
    """Return what stands for the ResNet's batch normalisation."""
    return BatchNorm(width) if kind == "batch" else nn.LayerNorm(width, eps=1e-6)


def head(width: int, objective: Objective) -> nn.Sequential:
    """Return a projector or predictor."""
    hidden = objective.hidden
    return nn.Sequential(
        nn.Linear(width, hidden), make_norm(objective.norm, hidden), nn.ReLU(), nn.Linear(hidden, objective.bottleneck)
    )


class Bottleneck(nn.Module):
    """The ResNet's block: to a quarter of the width, a 3x3 convolution, and back; (B, h, w, C) as it comes."""

    def __init__(self, width: int, norm: Norm) -> None:
        super().__init__()
        inner = max(width // 4, 1)
        self.inwards = nn.Sequential(nn.Linear(width, inner), make_norm(norm, inner), nn.ReLU())
        self.conv = nn.Conv2d(inner, inner, 3, padding=1)
        self.outwards = nn.Sequential(
            make_norm(norm, inner), nn.ReLU(), nn.Linear(inner, width), make_norm(norm, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add what the block finds."""
        found = self.conv(self.inwards(x).movedim(-1, 1)).movedim(1, -1)
        return F.relu(x + self.outwards(found))


class Decoder(nn.Module):
    """The last block's tokens, enlarged step by step, each time with a linear map of an earlier block's added.

    Of twelve blocks and two steps the earlier ones are the eighth and the fourth. All tokens are taken after the
    backbone's final norm, as `Encoder.intermediate_layers` gives them.
    """

    def __init__(self, width: int, depth: int, objective: Objective) -> None:
        super().__init__()
        steps, inner = objective.decoder_steps, objective.decoder_width
        self.blocks = [max(round(depth * (steps - n) / (steps + 1)), 1) - 1 for n in range(steps)]
        """Numbers of the earlier blocks, from 0, in the order they are taken."""
        self.entry = nn.Linear(width, inner)
        self.steps = nn.ModuleList(Bottleneck(inner, objective.norm) for _ in range(steps))
        self.laterals = nn.ModuleList(nn.Linear(width, inner) for _ in range(steps))

    def forward(self, last: Tensor, earlier: list[Tensor]) -> Tensor:
        """(B, h, w, C) of the last block and of the earlier ones -> (B, h 2^steps, w 2^steps, decoder_width)."""
        x = self.entry(last)
        for step, lateral, tokens in zip(self.steps, self.laterals, earlier, strict=True):
            x = enlarge(step(x), 2 * x.shape[1], 2 * x.shape[2])
            x = x + enlarge(lateral(tokens), *x.shape[1:3])
        return x


def enlarge(maps: Tensor, height: int, width: int) -> Tensor:
    """Resize (B, h, w, C) maps, bilinearly."""
    if maps.shape[1:3] == (height, width):
        return maps
    resized = F.interpolate(maps.movedim(-1, 1), (height, width), mode="bilinear", align_corners=False)
    return resized.movedim(1, -1)


class Projected(Network):
    """Backbone, decoder and projectors."""

    def __init__(self, backbone: VisionTransformer, objective: Objective) -> None:
        super().__init__(backbone)
        width = backbone.embed_dim
        self.decoder = Decoder(width, len(backbone.blocks), objective)
        self.dense_projector = head(objective.decoder_width, objective)
        self.pooled_projector = head(width, objective)
        self.pooling = objective.pooling

    def dense(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S) -> (B, N, C) patch tokens, and the (B, h, w, E) projection of the decoder's map."""
        tokens, layers = encode_tokens(self.backbone, pixels, self.decoder.blocks)
        grid = self.tokens.grid((pixels.shape[-2], pixels.shape[-1]))
        maps = [
            self.tokens.patches(found).unflatten(1, grid)
            for found in (tokens, *(layers[number] for number in self.decoder.blocks))
        ]
        return maps[0].flatten(1, 2), self.dense_projector(self.decoder(maps[0], maps[1:]))

    def pooled(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, E) projection of what stands for an image."""
        tokens, layout = self.backbone.forward_features(pixels), self.tokens
        return self.pooled_projector(layout.cls(tokens) if self.pooling == "cls" else layout.patches(tokens).mean(1))


class Student(Projected):
    """The same with predictors."""

    def __init__(self, backbone: VisionTransformer, objective: Objective) -> None:
        super().__init__(backbone, objective)
        self.dense_predictor = head(objective.bottleneck, objective)
        self.pooled_predictor = head(objective.bottleneck, objective)


class Method(StudentAndTeacher):
    """Half the dense loss and half the pooled one."""

    student: Student
    teacher: Projected

    def __init__(self, spec: Spec, build: Build) -> None:
        objective: Objective = spec.objective
        need_first_and_last("poodle", spec)
        most = objective.cells**2
        if objective.pooled_weight and not 1 <= spec.views.local_views <= most:
            raise InputError(
                f"poodle compares sub-crops, one in each of {most} cells at most: views.local_views must be 1 to "
                f"{most}, got {spec.views.local_views}; raise objective.cells, or set objective.pooled_weight 0"
            )
        Flows(objective.flow)  # before hours of video are extracted
        student, teacher = build(True), build(False)
        super().__init__(objective, Student(student, objective), Projected(teacher, objective))
        self.objective = objective
        self._lost = 0

    def outside(self) -> dict[str, str]:
        """Return the weights of the optical flow, if it has any."""
        weights = self.objective.flow.weights
        return {"optical flow": remembered_sha256(Path(weights))} if weights else {}

    def provenance(self) -> str:
        """Return the same in words."""
        return "".join(
            f"\nIt followed what moves by optical flow of RAFT (SHA-256 of the weights {digest}).\n"
            for digest in self.outside().values()
        )

    def forward(self, batch: Batch, at: At) -> Losses:
        """Add the two losses."""
        objective = self.objective
        parts: list[Tensor] = []
        metrics: dict[str, Tensor] = {}
        if objective.dense_weight:
            loss = self.dense_loss(batch["global"], metrics)
            metrics["dense_loss"] = loss.detach()
            parts.append(objective.dense_weight * loss)
        if objective.pooled_weight:
            loss = self.pooled_loss(batch["local"], metrics)
            metrics["pooled_loss"] = loss.detach()
            parts.append(objective.pooled_weight * loss)
        return Losses(torch.stack(parts).sum(), metrics)

    def dense_loss(self, views: Mapping[str, Tensor], metrics: dict[str, Tensor]) -> Tensor:
        """Compare points of each frame with those of the other that the flow leads to.

        Args:
            views: `pixels` (B, 2, 3, S, S) of the two frames, `affine` (B, 2, 2, 2, 2) by frame, student and teacher,
                `flow` (B, 2, 2, n, n), `inside` and `occluded` (B, 2, n, n).
            metrics: receives what the log is to hold.
        """
        pixels, flow = views["pixels"], views["flow"].flatten(0, 1).to(views["pixels"].dtype)
        affine = views["affine"].to(pixels.dtype)
        own, others = affine[:, :, 0].flatten(0, 1), affine[:, :, 1].flatten(0, 1)
        frames = pixels.flatten(0, 1)
        _, learnt = self.student.dense(turn(frames, own))
        learnt = self.student.dense_predictor(learnt)
        with torch.no_grad():
            patches, taught = self.teacher.dense(turn(frames, others))
        with torch.autocast(pixels.device.type, enabled=False):
            learnt, taught = (
                maps.to(torch.promote_types(maps.dtype, torch.float32)).movedim(-1, 1) for maps in (learnt, taught)
            )
            metrics["dense_feature_std"], metrics["dense_feature_rank"] = feature_spread(taught.movedim(1, -1))
            metrics["patch_feature_std"], metrics["patch_feature_rank"] = feature_spread(patches)
            taught, others = (found.unflatten(0, (-1, 2)).flip(1).flatten(0, 1) for found in (taught, others))
            learnt, seen = undo(learnt, own, flow.shape[-1])
            carry = carry_like_authors if self.objective.quirks == "authors" else carry_and_undo
            taught, found = carry(taught, others, flow, pixels.shape[-1])
            inside, hidden = views["inside"].flatten(0, 1), views["occluded"].flatten(0, 1)
            counted = seen & found & inside & ~hidden
            loss = distance(learnt, taught, counted)
            metrics["dense_loss_of_others"] = distance(learnt.detach(), taught.roll(2, 0), counted)
        shares = {"left_view": ~inside, "occluded": hidden & inside, "counted": counted}
        metrics |= {name: mask.float().mean() for name, mask in shares.items()}
        metrics["flow_pixels"] = flow.norm(dim=1).mean()
        return loss

    def pooled_loss(self, views: Mapping[str, Tensor], metrics: dict[str, Tensor]) -> Tensor:
        """Compare (B, 4 K, 3, s, s) sub-crops: the student's of both frames, then the teacher's."""
        own, partners = (part.flatten(0, 1) for part in views["pixels"].chunk(2, dim=1))
        learnt = self.student.pooled_predictor(self.student.pooled(own))
        with torch.no_grad():
            taught = self.teacher.pooled(partners)
        metrics["pooled_feature_std"], metrics["pooled_feature_rank"] = feature_spread(taught)
        metrics["followed"] = views["followed"].float().mean()
        with torch.autocast(own.device.type, enabled=False):
            wide = torch.promote_types(learnt.dtype, torch.float32)
            return 2 - 2 * F.cosine_similarity(learnt.to(wide), taught.to(wide), dim=-1).mean()

    def watch(self, row: Mapping[str, float]) -> str | None:
        """Tell when all images look the same, or when hardly any point has been compared for some time."""
        self._lost = self._lost + 1 if row.get("counted", 1.0) < _LEAST_COUNTED else 0
        if self._lost >= LONG:
            return (
                f"for {LONG} steps less than {_LEAST_COUNTED:.0%} of the points have been seen in both frames "
                f"(occluded {row['occluded']:.0%}, out of view {row['left_view']:.0%}), so nothing can be learnt of "
                "them: lower clips.stride, or look at objective.flow"
            )
        return super().watch(row)


def undo(maps: Tensor, affine: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """Bring (B, E, h, w) maps of turned views back to n x n points of the views; tell which (B, n, n) they show."""
    places = turned(middles((points, points), maps), torch.linalg.inv_ex(affine).inverse)
    return read(maps, places), within(places)


def carry_and_undo(maps: Tensor, affine: Tensor, flow: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Bring maps of turned views to the points of another view from which a flow leads there.

    Args:
        maps: (B, E, h, w).
        affine: (B, 2, 2), through which the views were seen.
        flow: (B, 2, n, n) from the points of the other view, in pixels.
        side: of the views in pixels.

    Returns:
        (B, E, n, n), and (B, n, n) whether a turned view shows the point.
    """
    places = turned(arrivals(flow, side, side), torch.linalg.inv_ex(affine).inverse)
    return read(maps, places), within(places)


def carry_like_authors(maps: Tensor, affine: Tensor, flow: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Do the same as PooDLe's code does it.

    The turned map is carried by the flow of the view that is not turned, and turned back after; what was measured from
    middle to middle of the outermost points is taken for what lies between the edges.
    """
    points = flow.shape[-1]
    cells = torch.arange(points, dtype=flow.dtype, device=flow.device)
    ends = torch.stack(torch.meshgrid(cells, cells, indexing="xy"), dim=-1) + flow.movedim(1, -1) * points / side
    large = F.interpolate(maps, (points, points), mode="bilinear", align_corners=False)
    return undo(read(large, 2 * ends / max(points - 1, 1) - 1), affine, points)


def distance(learnt: Tensor, taught: Tensor, counted: Tensor) -> Tensor:
    """Return |z - z'|^2 of (B, E, n, n) features of unit length, averaged over the points that count of each image."""
    apart = 2 - 2 * F.cosine_similarity(learnt, taught, dim=1)
    return ((apart * counted).sum((1, 2)) / counted.sum((1, 2)).clamp(min=1)).mean()
