"""What is exported: the encoder's network with named outputs, and nothing left to compute but the features."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from video_distilled_encoder import Encoder
from video_distilled_encoder.preprocessing import plan_resize
from video_distilled_encoder.resize import Bands, apply_bands, both_bands
from video_distilled_encoder.runtimes.artefact import LAYER, Artefact, Camera


class Network(nn.Module):
    """The encoder's network, float32 pixels or uint8 frames in, float32 features out.

    For one size the position embedding is resampled here, once, so that the graph holds no Resize.

    Args:
        encoder: the encoder.
        artefact: size, outputs and camera of the export.
        dtype: of weights and of what is computed in between.
    """

    positions: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder, artefact: Artefact, dtype: torch.dtype) -> None:
        super().__init__()
        self.artefact, self.dtype = artefact, dtype
        backbone = copy.deepcopy(encoder.backbone).eval()
        self.layers = {int(name.removeprefix(LAYER)): name for name in artefact.outputs if name.startswith(LAYER)}
        self.register_buffer("positions", positions(encoder, artefact.size).to(dtype))
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
        return self.positions.device

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) normalised pixels, or frames -> the artefact's outputs, in order."""
        pixels = self.preprocess(inputs) if self.artefact.camera else inputs
        patches = self.backbone.patch_embed(pixels.to(self.dtype))  # (B, h, w, C)
        grid = patches.shape[1:3]
        assert self.backbone.cls_token is not None
        cls = self.backbone.cls_token.expand(patches.shape[0], -1, -1)
        tokens = torch.cat([cls, patches.flatten(1, 2)], dim=1) + self.positions_of(grid)
        tokens = self.backbone.norm_pre(tokens)
        outputs = {}
        for number, block in enumerate(self.backbone.blocks):
            tokens = block(tokens)
            if number in self.layers:
                outputs[self.layers[number]] = self.backbone.norm(tokens)
        tokens = self.backbone.norm(tokens)
        outputs["cls"], outputs["patches"] = tokens[:, 0], tokens[:, 1:]
        outputs["grid"] = outputs["patches"].transpose(1, 2).unflatten(2, grid)
        return tuple(outputs[name].float() for name in self.artefact.outputs)

    def positions_of(self, grid: Sequence[int]) -> Tensor:
        """Return the position embedding of a grid of patches, (1, 1 + N, C)."""
        if self.artefact.size is not None:
            return self.positions
        side = self.backbone.patch_embed.grid_size
        own = self.positions[:, 1:].unflatten(1, side).permute(0, 3, 1, 2)
        rows, columns = (cubic_weights(have, want, own) for have, want in zip(side, grid, strict=True))
        resampled = (rows @ own @ columns.T).flatten(2).transpose(1, 2)
        return torch.cat([self.positions[:, :1], resampled], dim=1)

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
    resized, crop = plan_resize(frame, size, camera.crop_mode, config.crop_pct, encoder.patch_size)
    return both_bands(frame, resized, crop, config.interpolation, encoder.device)


class _InFloat32(nn.Module):
    """A module that computes in float32: ONNX has no convolution in bf16 before opset 22."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module.float(), dtype

    def forward(self, values: Tensor) -> Tensor:
        return self.module(values.float()).to(self.dtype)


def positions(encoder: Encoder, size: tuple[int, int] | None) -> Tensor:
    """Return the position embedding, (1, 1 + N, C), resampled to `size` pixels if there is a fixed one."""
    assert encoder.backbone.pos_embed is not None
    embedding = encoder.backbone.pos_embed.detach().float()
    prefix = 0 if encoder.backbone.no_embed_class else 1
    if size:
        grid, own = ([side // encoder.patch_size for side in sides] for sides in (size, encoder.image_size))
        embedding = resample_abs_pos_embed(embedding, grid, own, num_prefix_tokens=prefix)
    return embedding if prefix else F.pad(embedding, (0, 0, 1, 0))


def cubic_weights(source: int, target: int, like: Tensor) -> Tensor:
    """Return (target, source) weights of torch's antialiased bicubic filter, in operations every runtime knows.

    Runtimes' own Resize differ from torch's: OpenVINO's by up to .001 in a feature.

    Args:
        source: number of pixels; may be symbolic.
        target: number of pixels; may be symbolic.
        like: of the device and type to return.
    """
    scale = source / target
    width: Any = torch.sym_max(scale, 1.0)  # of the filter: one source pixel, or one target pixel
    middle = (torch.arange(target, device=like.device) + 0.5) * scale
    x = (torch.arange(source, device=like.device) + 0.5 - middle[:, None]).abs() / width
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    return (weights / weights.sum(1, keepdim=True)).to(like.dtype)
