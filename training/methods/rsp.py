"""Stochastic frame prediction (RSP: Jang et al., ICML 2024): the later of two frames, drawn from the earlier.

1. Two frames some time apart, drawn anew for every clip, are cut to one region and keep their colours.
2. The encoder sees both; noise on the later one keeps its pixels from being copied.
3. A latent of categorical variables says what the earlier frame leaves open of the later one. The posterior sees the
   class tokens of both, the prior that of the earlier frame alone; each is to tell what the other does (KL).
4. A decoder predicts the later frame's pixels from the earlier one's tokens and the latent, which the posterior draws.
5. The same decoder restores patches that are left out of the later frame (MAE).

There is no teacher: the encoder itself is what is kept. The prediction from the prior's latent is for the log alone,
so only some clips get one. Facts are those of the published code; the paper's time between two frames is counted in
frames, and is in seconds here. Legend: B = clips, N = patches, P = prefix tokens, C = width, D = width of the decoder,
V, K = variables and classes of the latent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from training.common import distributed, keyed
from training.data.batch import Batch
from training.data.clips import ClipSpec
from training.data.views import View, pre_crop, random_box
from training.methods.method import At, Build, Losses, Spec
from training.methods.method import Method as BaseMethod
from training.methods.method import Objective as BaseObjective
from training.methods.self_distillation import CollapseWatch, Network, feature_spread
from training.nn.cross_decoder import CrossDecoder, DecoderConfig, sincos_positions
from training.nn.some_patches import encode_some
from video_distilled_encoder.errors import InputError

_NOISE, _POSTERIOR, _PRIOR = range(1, 4)
"""What random numbers are drawn for."""


@dataclass(frozen=True)
class Objective(BaseObjective):
    """Settings of the method."""

    gap: tuple[float, float] = (0.13, 1.6)
    """Seconds between the two frames, drawn uniformly (RSP: 4 to 48 frames, of videos of about 30 a second)."""
    draws: int = 2
    """Pairs of views of each clip that is decoded (RSP), which draws other frames for each; here the region alone."""
    noise: float = 0.5
    """Deviation of the noise on the later frame's normalised pixels (RSP)."""
    variables: int = 32
    """V, categorical variables of the latent (RSP)."""
    classes: int = 32
    """K, classes of each (RSP)."""
    hidden: int = 768
    """Width of the hidden layer of prior and posterior (RSP)."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """The decoder."""
    kl_weight: float = 0.01
    """Weight of the divergence between posterior and prior (RSP; 0.1 and 0.001 are worse)."""
    kl_balance: float = 0.8
    """Share of that divergence by which the prior learns; by the rest the posterior does (RSP)."""
    free_nats: float = 0.1
    """Divergence, averaged over a step's clips, below which it costs nothing (RSP)."""
    mae_weight: float = 1.0
    """Weight of the restored patches' loss (RSP); 0 leaves it out."""
    mask_share: float = 0.75
    """Share of the later frame's patches that are left out for it (RSP, MAE)."""
    norm_pixels: bool = True
    """Predict each patch's pixels less their mean, over their deviation (RSP's command line; off in its code)."""
    positions: Literal["sincos", "learnt"] = "sincos"
    """Of the backbone's patches: fixed sines and cosines (RSP, MAE), or those of its family, trained. An encoder that a
    run starts from brings its own, which stay as they are with `sincos`."""
    weights: Literal["xavier", "timm"] = "xavier"
    """How the backbone's random weights are drawn (RSP, MAE: xavier)."""
    prior_share: float = 0.125
    """Share of the clips, at least one, whose prediction from the prior is compared, for the log (ours: all of them
    cost a fifth of a step)."""
    patience: int | None = 5000
    """Steps after which a latent that never tells more than `free_nats` is taken for dead, and the run stops (ours:
    more than the recipe's warm-up, for at first the decoder learns nothing but what frames have in common); null:
    never."""

    def __post_init__(self) -> None:
        if not 0 < self.gap[0] <= self.gap[1]:
            raise InputError(f"objective.gap must be seconds 0 < low <= high, got {list(self.gap)}")
        if min(self.draws, self.variables, self.hidden) < 1 or self.classes < 2:
            raise InputError("objective.draws, .variables and .hidden must be positive and .classes at least 2")
        if min(self.noise, self.kl_weight, self.free_nats, self.mae_weight) < 0:
            raise InputError("objective.noise, .kl_weight, .free_nats and .mae_weight must not be negative")
        if not (0 <= self.kl_balance <= 1 and 0 < self.mask_share < 1 and 0 <= self.prior_share <= 1):
            raise InputError("objective.kl_balance and .prior_share must lie in [0, 1] and .mask_share between 0 and 1")
        if self.patience is not None and self.patience < 1:
            raise InputError(f"objective.patience is a number of steps, or null, got {self.patience}")


def clip_spec(spec: Spec) -> ClipSpec:
    """Return clips of two frames a random time apart."""
    return ClipSpec((0.0,), gap=spec.objective.gap, draws=spec.objective.draws)


def plan_views(rng: np.random.Generator, size: tuple[int, int], spec: Spec) -> list[View]:
    """Return a view of each frame, of one region, the later one with the patches that MAE is shown."""
    config = spec.views
    region = random_box(rng, pre_crop(rng, size, config)[1], config.global_area)
    flip, shape = bool(rng.random() < config.flip), (config.global_size,) * 2
    count = (config.global_size // spec.patch) ** 2
    shown = rng.permutation(count)[: shown_of(count, spec.objective.mask_share)]
    return [
        View("now", 0, region, flip, shape, None),
        View("later", 1, region, flip, shape, None, {"shown": np.sort(shown)}),
    ]


def shown_of(patches: int, mask_share: float) -> int:
    """Return how many of the patches MAE is shown, at least one."""
    return max(int(patches * (1 - mask_share)), 1)


class Student(Network):
    """Backbone, prior and posterior, and the decoder."""

    def __init__(self, backbone: VisionTransformer, objective: Objective, patch: int) -> None:
        super().__init__(backbone)
        width, latent = backbone.embed_dim, objective.variables * objective.classes
        self.prior, self.posterior = (
            nn.Sequential(nn.Linear(inputs, objective.hidden), nn.ReLU(), nn.Linear(objective.hidden, latent))
            for inputs in (width, 2 * width)
        )
        self.decoder = CrossDecoder(objective.decoder, 3 * patch**2)
        self.from_latent, self.from_frame, self.from_shown = (
            nn.Linear(inputs, objective.decoder.width) for inputs in (latent, width, width)
        )
        new = [part for name, part in self.named_children() if name != "backbone" or objective.weights == "xavier"]
        for part in new:
            part.apply(_xavier)
        if objective.positions == "sincos":
            fix_positions(backbone)


@torch.no_grad()
def _xavier(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(layer.weight.flatten(1))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


@torch.no_grad()
def fix_positions(backbone: VisionTransformer) -> None:
    """Give the patches sines and cosines for positions, prefix tokens none; rotary positions are fixed as they are."""
    positions = backbone.pos_embed
    if positions is not None:
        rows, columns = backbone.patch_embed.grid_size
        fixed = sincos_positions((rows, columns), positions.shape[-1])
        positions.copy_(F.pad(fixed, (0, 0, positions.shape[1] - len(fixed), 0)))
        positions.requires_grad_(False)


class Latent(NamedTuple):
    """Distributions of the latent, in float32 at least."""

    posterior: Tensor
    """(B, V, K) logits."""
    prior: Tensor
    """(B, V, K) logits."""


class Method(BaseMethod):
    """Prediction of a later frame's pixels, and restoring of left out ones."""

    def __init__(self, spec: Spec, build: Build) -> None:
        super().__init__()
        objective: Objective = spec.objective
        if spec.clips.frames != 2:
            raise InputError(
                f"rsp takes two frames of a clip, objective.gap apart: clips.frames must be 2, got {spec.clips.frames}"
            )
        self.objective, self.patch = objective, spec.patch
        self.grid = (spec.views.global_size // spec.patch,) * 2
        self.student = Student(build(True), objective, spec.patch)
        self._collapse = CollapseWatch()
        self._dead = 0

    @property
    def trained(self) -> Student:
        """The student."""
        return self.student

    def encoder(self) -> VisionTransformer:
        """Return the student's backbone."""
        return self.student.backbone

    def forward(self, batch: Batch, at: At) -> Losses:
        """Add the losses of the predicted pixels, of the latent and of the restored pixels."""
        objective = self.objective
        now, later = batch["now"]["pixels"][:, 0], batch["later"]["pixels"][:, 0]
        rows = at.first_row + torch.arange(len(now), device=now.device)
        tokens_B2NC = self.encode(now, later, rows, at)
        now_BNC = tokens_B2NC[:, 0]
        latent = self.infer(self.student.tokens.cls(tokens_B2NC))
        posterior_BVK = torch.softmax(latent.posterior, dim=-1)
        chances_BV = keyed.uniform(keyed.key_of(at.key, _POSTERIOR), rows, objective.variables)
        drawn_BVK = straight_through(posterior_BVK, chances_BV)
        target_BNE = patchify(later, self.patch, objective.norm_pixels)
        errors_BN = self.errors(self.predict(now_BNC, drawn_BVK), target_BNE)
        pixels, kl = errors_BN.mean(), divergence(latent, objective.kl_balance).mean()
        total = pixels + objective.kl_weight * at_least(kl, objective.free_nats)
        metrics = {"pixel_loss": pixels.detach(), "kl": kl.detach()}
        if objective.mae_weight:
            restored = self.restore(later, batch["later"]["shown"][:, 0], target_BNE)
            total = total + objective.mae_weight * restored
            metrics["mae_loss"] = restored.detach()
        with torch.no_grad():
            few = slice(max(1, round(objective.prior_share * len(now))))
            guess = self.guess(now_BNC.detach()[few], latent.prior.detach()[few], rows[few], at)
            metrics["prior_gap"] = (self.errors(guess, target_BNE[few]) - errors_BN[few]).mean()
            metrics |= self.describe(posterior_BVK, latent.prior)
            spread, rank = feature_spread(self.student.tokens.patches(now_BNC))
        return Losses(total, metrics | {"patch_feature_std": spread, "patch_feature_rank": rank})

    def encode(self, now: Tensor, later: Tensor, rows: Tensor, at: At) -> Tensor:
        """Encode (B, 3, H, W) frames, the later with noise: (B, 2, P + N, C)."""
        noise = keyed.normal(keyed.key_of(at.key, _NOISE), rows, later[0].numel()).view_as(later)
        pixels = torch.stack([now, later + self.objective.noise * noise], dim=1)
        return self.student.backbone.forward_features(pixels.flatten(0, 1)).unflatten(0, (len(now), 2))

    def infer(self, cls: Tensor) -> Latent:
        """(B, 2, C) class tokens -> what they tell of the latent."""
        shape = (self.objective.variables, self.objective.classes)
        with torch.autocast(cls.device.type, enabled=False):
            wide = cls.to(torch.promote_types(cls.dtype, torch.float32))
            return Latent(
                self.student.posterior(wide.flatten(1)).unflatten(1, shape),
                self.student.prior(wide[:, 0]).unflatten(1, shape),
            )

    def predict(self, now: Tensor, latent: Tensor) -> Tensor:
        """(B, P + N, C) tokens of the earlier frame and (B, V, K) -> (B, N, 3 patch^2) pixels of the later one."""
        memory, positions = self._with_positions(self.student.from_frame(now))
        token = self.student.from_latent(latent.flatten(1))[:, None]
        return self.student.decoder(torch.cat([token.to(memory.dtype), memory], dim=1), positions)

    def guess(self, now: Tensor, prior: Tensor, rows: Tensor, at: At) -> Tensor:
        """Predict with a latent that the prior draws."""
        chances = keyed.uniform(keyed.key_of(at.key, _PRIOR), rows, self.objective.variables)
        return self.predict(now, straight_through(torch.softmax(prior, dim=-1), chances))

    def restore(self, later: Tensor, shown: Tensor, target: Tensor) -> Tensor:
        """Return the loss of the patches that are not shown.

        Args:
            later: (B, 3, H, W) without noise.
            shown: (B, k) numbers of the patches that are.
            target: (B, N, 3 patch^2).
        """
        student, layout = self.student, self.student.tokens
        tokens = student.from_shown(encode_some(student.backbone, later, shown))
        gaps = student.decoder.mask_token.to(tokens.dtype).expand(*target.shape[:2], -1)
        places = shown[..., None].expand(-1, -1, tokens.shape[-1])
        whole = layout.with_patches(tokens, gaps.scatter(1, places, layout.patches(tokens)))
        errors = self.errors(student.decoder(*self._with_positions(whole)), target)
        return masked_mean(errors, shown)

    def errors(self, predicted: Tensor, target: Tensor) -> Tensor:
        """(B, N, 3 patch^2) twice -> (B, N) mean squared errors."""
        return (predicted.to(target.dtype) - target).square().mean(-1)

    def _with_positions(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, P + N, D) tokens, their patches with positions, and the (N, D) positions."""
        patches = self.student.tokens.patches(tokens)
        side = round(patches.shape[1] ** 0.5)
        fixed = sincos_positions((side, side), tokens.shape[-1], of=self.grid, device=tokens.device)
        return self.student.tokens.with_patches(tokens, patches + fixed), fixed

    def describe(self, posterior: Tensor, prior_logits: Tensor) -> dict[str, Tensor]:
        """Return entropies, in nats, summed over variables: of the latent that (B, V, K) shares and logits tell."""
        entropy = torch.special.entr(posterior).sum((1, 2)).mean()
        mean = torch.special.entr(distributed.average(posterior.mean(0))).sum()
        return {
            "posterior_entropy": entropy,
            "posterior_batch_entropy": mean,
            "prior_entropy": torch.special.entr(torch.softmax(prior_logits, dim=-1)).sum((1, 2)).mean(),
        }

    def watch(self, row: Mapping[str, float]) -> str | None:
        """Tell when all images look the same, or when the latent has told nothing for very long."""
        self._dead = self._dead + 1 if row["kl"] <= self.objective.free_nats else 0
        if self.objective.patience is not None and self._dead >= self.objective.patience:
            return (
                f"for {self._dead} steps the latent has told no more than {self.objective.free_nats:g} nats of the "
                "later frame, so frames are predicted as if nothing were open: lower objective.kl_weight, raise "
                "objective.free_nats, or set objective.patience null to go on"
            )
        return self._collapse(row, "lower optimizer.learning_rate")


def straight_through(probabilities: Tensor, chances: Tensor) -> Tensor:
    """Draw one class of each variable: exactly one-hot, with the gradient of the probabilities.

    Args:
        probabilities: (B, V, K).
        chances: (B, V) in [0, 1), by which the classes are drawn.

    Returns:
        (B, V, K).
    """
    edges = probabilities.detach().cumsum(-1)
    drawn = (chances[..., None] >= edges).sum(-1).clamp(max=probabilities.shape[-1] - 1)
    return F.one_hot(drawn, probabilities.shape[-1]) + (probabilities - probabilities.detach())


def divergence(latent: Latent, balance: float) -> Tensor:
    """Return KL(posterior || prior) of each clip, summed over variables, in nats: (B,).

    By a share `balance` of it the prior learns, by the rest the posterior does.
    """
    posterior, prior = (torch.log_softmax(logits, dim=-1) for logits in latent)

    def kl(q: Tensor, p: Tensor) -> Tensor:
        return (q.exp() * (q - p)).sum((1, 2))

    return balance * kl(posterior.detach(), prior) + (1 - balance) * kl(posterior, prior.detach())


def at_least(kl: Tensor, free: float) -> Tensor:
    """Return the mean divergence of a process's clips, or `free` without gradient where all processes' is below it."""
    return torch.where(distributed.average(kl.detach()) > free, kl, torch.full_like(kl, free))


def patchify(pixels: Tensor, patch: int, norm: bool) -> Tensor:
    """(B, 3, H, W) -> (B, N, 3 patch^2) pixels of each patch, if `norm` of mean 0 and (unbiased) variance 1."""
    patches = F.pixel_unshuffle(pixels, patch).flatten(2).mT
    if not norm:
        return patches
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def masked_mean(errors: Tensor, shown: Tensor) -> Tensor:
    """Return the mean of (B, N) errors over the patches that are not among the (B, k) shown ones."""
    left_out = torch.ones_like(errors).scatter(1, shown, 0.0)
    return (errors * left_out).sum() / left_out.sum()
