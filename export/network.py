"""What is exported: the encoder's network with named outputs, and nothing left to compute but the features."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from timm.layers import pos_embed_sincos
from timm.models import eva, vision_transformer
from torch import Tensor, nn

from video_distilled_encoder import Encoder
from video_distilled_encoder.preprocessing import plan_resize
from video_distilled_encoder.resize import Bands, apply_bands, both_bands, weights
from video_distilled_encoder.runtimes.artefact import LAYER, Artefact, Camera
from video_distilled_encoder.tokens import encode_tokens


class Network(nn.Module):
    """The encoder's network, float32 pixels or uint8 frames in, float32 features out.

    For one size the position embedding is resampled here, once, so that the graph holds no Resize.

    Args:
        encoder: the encoder.
        artefact: size, outputs and camera of the export.
        dtype: of weights and of what is computed in between.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder, artefact: Artefact, dtype: torch.dtype) -> None:
        super().__init__()
        self.artefact, self.dtype, self.tokens = artefact, dtype, encoder.tokens
        backbone: Any = copy.deepcopy(encoder.backbone).eval()
        if artefact.size is not None:
            fix_size(backbone, artefact.size)
        for module in backbone.modules():
            if hasattr(module, "relative_position_bias_table"):
                module.fused_attn = False  # which torch cannot decompose for ONNX with BEiT's biases
        self.backbone = backbone.to(dtype)
        if dtype == torch.bfloat16:
            backbone.patch_embed.proj = _InFloat32(backbone.patch_embed.proj, dtype)
        mean, std = (
            torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (artefact.mean, artefact.std)
        )
        self.register_buffer("mean", mean.to(encoder.device))
        self.register_buffer("std", std.to(encoder.device))
        if artefact.camera and artefact.size:
            self.bands = camera_bands(artefact.camera, artefact.size, encoder)
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mean.device

    def giving(self, outputs: tuple[str, ...]) -> Network:
        """Return the same network, weights shared, with other outputs."""
        other = copy.copy(self)
        other.artefact = dataclasses.replace(self.artefact, outputs=outputs)
        return other

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) normalised pixels, or frames -> the artefact's outputs, in order."""
        pixels = (self.preprocess(inputs) if self.artefact.camera else inputs).to(self.dtype)
        names = {int(name.removeprefix(LAYER)): name for name in self.artefact.outputs if name.startswith(LAYER)}
        with _traceable_positions():
            tokens, layers = encode_tokens(self.backbone, pixels, names)
        patches = self.tokens.patches(tokens)
        outputs = {
            "cls": self.tokens.pooled(self.backbone, tokens) if "cls" in self.artefact.outputs else None,
            "patches": patches,
            "grid": patches.transpose(1, 2).unflatten(2, self.tokens.grid((pixels.shape[2], pixels.shape[3]))),
            "registers": self.tokens.register_tokens(tokens),
            **{names[number]: layer for number, layer in layers.items()},
        }
        return tuple(outputs[name].float() for name in self.artefact.outputs)

    def preprocess(self, frames: Tensor) -> Tensor:
        """Uint8 frames in their layout -> (B, 3, H, W) normalised pixels, always in float32."""
        assert self.artefact.camera is not None
        # TensorRT takes uint8 at its inputs only, so the cast comes first.
        images = apply_bands(frames.float(), *self.bands, channels_last=self.artefact.camera.layout == "NHWC")
        return ((images / 255).clamp(0, 1) - self.mean) / self.std


def camera_bands(camera: Camera, size: tuple[int, int], encoder: Encoder) -> tuple[Bands, Bands]:
    """Return the weights with which rows and columns of a frame are resized: constants, made before tracing."""
    config = encoder.config
    frame = (camera.height, camera.width)
    resized, crop = plan_resize(frame, size, camera.crop_mode or config.crop_mode, config.crop_pct, encoder.patch_size)
    return both_bands(frame, resized, crop, config.interpolation, encoder.device)


class _InFloat32(nn.Module):
    """A module that computes in float32: ONNX has no convolution in bf16 before opset 22."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module.float(), dtype

    def forward(self, values: Tensor) -> Tensor:
        return self.module(values.float()).to(self.dtype)


def fix_size(backbone: Any, size: tuple[int, int]) -> None:
    """Resample a backbone's positions to images of (height, width) pixels, and leave it nothing to choose."""
    backbone.set_input_size(img_size=size)
    if getattr(backbone, "dynamic_img_size", False):
        backbone.dynamic_img_size = False
        backbone.patch_embed.flatten = True
    if getattr(backbone, "rope", None) is not None:
        backbone.rope = _FixedRotation(backbone.rope.get_embed(shape=list(backbone.patch_embed.grid_size)))


class _FixedRotation(nn.Module):
    """Rotary positions of one grid of patches."""

    embedding: Tensor

    def __init__(self, embedding: Tensor) -> None:
        super().__init__()
        self.register_buffer("embedding", embedding)

    def get_embed(self, shape: Sequence[int] | None = None) -> Tensor:
        """Return them, whatever is asked for."""
        return self.embedding


@contextmanager
def _traceable_positions() -> Iterator[None]:
    """Let timm compute positions, where the size is free, in operations that trace and that every runtime knows."""
    with (
        patch.object(vision_transformer, "resample_abs_pos_embed", resample_positions),
        patch.object(eva, "resample_abs_pos_embed", resample_positions),
        patch.object(pos_embed_sincos, "_build_grid", _build_grid, create=True),
    ):
        yield


_timms_grid: Any = getattr(pos_embed_sincos, "_build_grid", None)


def _build_grid(feat_shape: Sequence[int], grid_type: str = "index", **options: Any) -> Tensor:
    """Do what timm's does for DINOv3, whose `float(rows)` would be taken for a constant; (rows, columns, 2)."""
    if grid_type != "centered" or options.get("normalize_coords") != "separate":
        return _timms_grid(feat_shape, grid_type=grid_type, **options)
    offset = 0.5 + options["grid_offset"]
    sides = [(torch.arange(side, dtype=torch.float32) + offset) / torch.sym_float(side) for side in feat_shape]
    return 2 * torch.stack(torch.meshgrid(sides, indexing="ij"), dim=-1) - 1


def resample_positions(
    positions: Tensor, new_size: Sequence[int], old_size: Sequence[int], num_prefix_tokens: int = 1, **unused: Any
) -> Tensor:
    """Do what timm's `resample_abs_pos_embed` does, (1, P + N, C) -> (1, P + M, C), by matrix products.

    Args:
        positions: the embedding.
        new_size: (rows, columns) of the patches, M; may be symbolic.
        old_size: of the patches that the embedding was made for, N.
        num_prefix_tokens: P, which stay as they are.
        **unused: what timm passes besides.
    """
    prefix, own = positions[:, :num_prefix_tokens], positions[:, num_prefix_tokens:]
    own = own.unflatten(1, tuple(old_size)).permute(0, 3, 1, 2)
    rows, columns = (
        weights(have, want, "bicubic", torch.float32, own.device).to(own.dtype)
        for have, want in zip(old_size, new_size, strict=True)
    )
    resampled = (rows @ own @ columns.T).flatten(2).transpose(1, 2)
    return torch.cat([prefix, resampled], dim=1)
