"""What methods of self-distillation share: a student and a teacher that follows it, and the distillation of tokens.

Legend: B = clips, N = patches, C = width, D = prototypes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from training.common import distributed
from training.methods.method import At, Method, Objective
from training.nn.balance import Balance, TargetKind
from training.nn.distillation import chunk_of, distill
from training.nn.heads import HeadConfig, ProjectionHead
from training.nn.schedules import cosine, linear_warmup
from video_distilled_encoder import model_directory
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.tokens import TokenLayout

_COLLAPSED_STD = 0.02
"""Spread of the features below which all images look the same."""
LONG = 50
"""Steps after which what has gone wrong in all of them is no accident."""


@dataclass(frozen=True)
class TeacherObjective(Objective):
    """Settings that every method with a teacher of its own has."""

    teacher_momentum: tuple[float, float] = (0.996, 1.0)
    """Of the teacher's moving average, at the start and at the end of a cosine (DINO)."""

    def __post_init__(self) -> None:
        if not all(0 <= momentum <= 1 for momentum in self.teacher_momentum):
            raise InputError(f"objective.teacher_momentum must lie in [0, 1], got {list(self.teacher_momentum)}")


@dataclass(frozen=True)
class DistillationObjective(TeacherObjective):
    """Settings that every distillation of tokens has."""

    targets: TargetKind = "centering"
    """How the teacher's patch and class logits become targets: centering (DINO) or sinkhorn_knopp (DINOv2)."""
    center_momentum: float = 0.9
    """Momentum of the running centres (DINO)."""
    student_temperature: float = 0.1
    """tau_S (DINO)."""
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    """tau_T at the start and after its warm-up (DINO's longer recipe; its code's default is 0.04 flat)."""
    teacher_temperature_warmup: float = 0.3
    """Share of the run over which tau_T rises (DINO: 30 of 100 epochs)."""
    freeze_last_layer: float = 0.01
    """Share of the run during which the prototypes stay as they are (DINO: 1 of 100 epochs)."""
    head: HeadConfig = field(default_factory=HeadConfig)
    """The projection head."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.student_temperature, *self.teacher_temperature) <= 0:
            raise InputError("objective temperatures must be positive")
        if not 0 <= self.teacher_temperature_warmup <= 1:
            raise InputError("objective.teacher_temperature_warmup is a share of the run, in [0, 1]")

    def logits_at_once(self) -> int:
        """Return those of a chunk."""
        return chunk_of(self.head.prototypes) * self.head.prototypes


class Network(nn.Module):
    """A backbone, on which heads stand."""

    def __init__(self, backbone: VisionTransformer) -> None:
        super().__init__()
        self.backbone = backbone
        self.tokens = TokenLayout.of(backbone)


class Tower(Network):
    """Backbone and projection head; the patch tokens may have a head of their own."""

    def __init__(self, backbone: VisionTransformer, head: HeadConfig) -> None:
        super().__init__(backbone)
        self.head = ProjectionHead(backbone.embed_dim, head)
        self.own_patch_head = None if head.shared else ProjectionHead(backbone.embed_dim, head)

    @property
    def patch_head(self) -> ProjectionHead:
        """The head of the patch tokens."""
        return self.own_patch_head or self.head


class CollapseWatch:
    """Tells when all images have looked the same for some time."""

    def __init__(self) -> None:
        self._steps = 0

    def __call__(self, row: Mapping[str, float], remedy: str) -> str | None:
        """Return why a run should stop, given what the log holds of a step, and what helps against it."""
        spread = min((value for name, value in row.items() if name.endswith("feature_std")), default=1.0)
        self._steps = self._steps + 1 if spread < _COLLAPSED_STD else 0
        if self._steps < LONG:
            return None
        return (
            f"the features have collapsed: for {LONG} steps their spread has been below {_COLLAPSED_STD}, so all "
            f"images look the same; {remedy}, and train anew"
        )


class StudentAndTeacher(Method):
    """A student trained by gradients and a teacher that is its moving average.

    The teacher's modules are a subset of the student's, under the same names.

    Args:
        objective: settings.
        student: backbone, heads, and what else it needs.
        teacher: backbone and heads.
    """

    student: Network
    teacher: Network
    remedy = "lower optimizer.learning_rate or raise objective.teacher_momentum"
    """Against a collapse."""

    def __init__(self, objective: TeacherObjective, student: Network, teacher: Network) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self._momentum = objective.teacher_momentum
        self._collapse = CollapseWatch()
        self.start_teacher()

    @property
    def trained(self) -> Network:
        """The student."""
        return self.student

    def encoder(self) -> VisionTransformer:
        """Return the teacher's backbone, the better one of the two."""
        return self.teacher.backbone

    def after_step(self, at: At) -> dict[str, float]:
        """Let the teacher follow."""
        momentum = cosine(*self._momentum, at.progress)
        self.update_teacher(momentum)
        return {"teacher_momentum": momentum}

    def start_from(self, state: Mapping[str, Tensor], where: str) -> None:
        """Take a backbone's weights for both."""
        model_directory.load_strictly(self.student.backbone, state, where)
        self.start_teacher()

    def go_on_from(self, state: Mapping[str, Tensor], where: str) -> None:
        """Take all that a run learnt; where blocks stay as they are, they are those of its encoder, in both."""
        super().go_on_from(state, where)
        if not all(parameter.requires_grad for parameter in self.student.backbone.parameters()):
            self.student.backbone.load_state_dict(self.teacher.backbone.state_dict())

    def watch(self, row: Mapping[str, float]) -> str | None:
        """Tell when all images have looked the same for some time."""
        return self._collapse(row, self.remedy)

    def start_teacher(self) -> None:
        """Make the teacher equal to the student; it never receives a gradient."""
        student = self.student.state_dict()
        self.teacher.load_state_dict({name: student[name] for name in self.teacher.state_dict()})
        self.teacher.requires_grad_(False)

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Teacher <- momentum * teacher + (1 - momentum) * student, of what is trained."""
        student = dict(self.student.named_parameters())
        pairs = [(old, student[name]) for name, old in self.teacher.named_parameters() if student[name].requires_grad]
        old, new = zip(*pairs, strict=True)
        torch._foreach_lerp_(list(old), list(new), 1 - momentum)

    def train(self, mode: bool = True) -> StudentAndTeacher:
        """Set the student's mode; the teacher stays in eval mode (no drop path)."""
        super().train(mode)
        self.teacher.eval()
        return self


class SelfDistillation(StudentAndTeacher):
    """The teacher's distributions over prototypes, which the student learns, token by token.

    Args:
        objective: settings.
        student: the student's backbone and heads, and what else it needs.
        teacher: backbone and heads.
    """

    student: Tower
    teacher: Tower
    remedy = f"set objective.targets to sinkhorn_knopp, {StudentAndTeacher.remedy}"

    def __init__(self, objective: DistillationObjective, student: Tower, teacher: Tower) -> None:
        super().__init__(objective, student, teacher)
        self._settings = objective
        arguments = (objective.head.prototypes, objective.targets, objective.center_momentum)
        self.cls_balance = Balance(*arguments)
        self.patch_balance = Balance(*arguments)

    def held(self, at: At) -> list[nn.Parameter]:
        """Return the student's prototypes and gains at the start of a run."""
        if at.progress >= self._settings.freeze_last_layer:
            return []
        heads = {self.student.head, self.student.patch_head}
        return [parameter for head in heads for parameter in (head.prototypes, head.gain)]

    def teacher_temperature(self, progress: float) -> float:
        """Return tau_T."""
        return linear_warmup(*self._settings.teacher_temperature, self._settings.teacher_temperature_warmup, progress)

    def distill(
        self,
        kind: Literal["cls", "patch"],
        predicted: Tensor,
        tokens: Tensor,
        progress: float,
        metrics: dict[str, Tensor],
        *,
        weights: Tensor | None = None,
        chosen: Tensor | None = None,
    ) -> Tensor:
        """Return the cross-entropy of the student's tokens with the teacher's.

        Args:
            kind: which head and centre to use.
            predicted: (..., C) the student's tokens, or (..., L, C): L for each of the teacher's.
            tokens: (..., C) the teacher's tokens.
            progress: share of the run that is over.
            metrics: receives the statistics of the targets.
            weights: (...,) weight of each of the student's tokens; they sum to 1. The plain mean if not given.
            chosen: (..., k) which of the teacher's (..., N, C) tokens the student's (..., k, C) are compared with; all
                of them balance the targets.
        """
        if kind == "cls":
            student_head, teacher_head, balance = self.student.head, self.teacher.head, self.cls_balance
        else:
            student_head, teacher_head, balance = self.student.patch_head, self.teacher.patch_head, self.patch_balance
        temperature = self.teacher_temperature(progress)
        with torch.no_grad():
            teacher = teacher_head.project(tokens)
            prototypes = teacher_head.weight()
            with self.stopwatch.part("balance_time", teacher.device):
                bias = balance(teacher.flatten(0, -2), prototypes, temperature)
            if chosen is not None:
                teacher = torch.take_along_dim(teacher, chosen[..., None], dim=-2)
        student = student_head.project(predicted.flatten(0, -2))
        with self.stopwatch.part("loss_time", student.device):
            result = distill(
                student,
                student_head.weight(),
                teacher.flatten(0, -2),
                prototypes,
                bias,
                student_temperature=self._settings.student_temperature,
                teacher_temperature=temperature,
                weights=None if weights is None else weights.flatten(),
            )
        metrics[f"{kind}_entropy"] = result.entropy
        metrics[f"{kind}_batch_entropy"] = torch.special.entr(distributed.average(result.mean_target)).sum()
        metrics[f"{kind}_feature_std"], metrics[f"{kind}_feature_rank"] = feature_spread(tokens)
        return result.loss


@torch.no_grad()
def feature_spread(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far and in how many directions (..., C) tokens are spread, of L2-normalised tokens.

    Returns:
        Their standard deviation, averaged over channels, times sqrt(C): 1 for tokens all over the unit sphere, 0 for
        constant ones; and their effective rank, from 1 to C: the participation ratio (sum l)^2 / sum l^2 of the
        eigenvalues l of their covariance, which traces give without finding them.
    """
    unit = nn.functional.normalize(tokens.detach().float().flatten(0, -2), dim=-1)
    centred = unit - unit.mean(0)
    covariance = centred.T @ centred
    rank = covariance.diagonal().sum().square() / covariance.square().sum().clamp(min=1e-30)
    return unit.std(0).mean() * tokens.shape[-1] ** 0.5, rank
