"""A source of features, of whatever origin: what is evaluated, and what a student learns from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_distilled_encoder import EncoderOutput, ModelConfig
from video_distilled_encoder.preprocessing import Images, preprocess


class Model(ABC):
    """A source of features.

    Args:
        description: what identifies it in a result and in the cache: name, and hash or seed.
        patch_size: side of a patch in pixels.
        config: how images become its input.
        device: where it computes.
    """

    licence = "a licence that is not stated"
    """Of the weights, as their source names it."""

    def __init__(self, description: dict[str, object], patch_size: int, config: ModelConfig, device: str) -> None:
        self.description = description
        self.patch_size = patch_size
        self.config = config
        self.device = torch.device(device)

    @property
    def preprocessing(self) -> dict[str, object]:
        """How images become its input."""
        return {name: getattr(self.config, name) for name in ("mean", "std", "interpolation", "crop_pct")}

    @property
    def identity(self) -> dict[str, object]:
        """All that its features depend on besides the images: what it is, and how they become its input."""
        return {"model": self.description, "preprocessing": self.preprocessing}

    def resizing(self, crop_mode: str = "squash") -> str:
        """Return in words how images come to the size of its input."""
        return f"{crop_mode}, {self.config.interpolation} with antialiasing"

    def nearest_size(self, height: float, width: float) -> tuple[int, int]:
        """Return the (height, width) in whole patches nearest to a size in pixels."""
        side = self.patch_size
        return max(round(height / side), 1) * side, max(round(width / side), 1) * side

    @torch.no_grad()
    def encode(
        self, images: Images, size: int | tuple[int, int], *, layers: int = 1, crop_mode: str = "squash"
    ) -> EncoderOutput:
        """Return the features of images.

        Args:
            images: as `Encoder.encode` takes them.
            size: pixels of the network's input, (height, width), multiples of the patch size.
            layers: number of last blocks whose tokens are concatenated along the channels, each after the final norm.
            crop_mode: "squash", "center" or "whole", as in `Encoder.encode`.

        Returns:
            cls (B, C), patches (B, N, C), grid (B, C, h, w), float32, on the model's device.

        Raises:
            InputError: the model cannot give the features of several blocks.
        """
        pixels = preprocess(
            images, self.config, size=size, crop_mode=crop_mode, multiple=self.patch_size, device=self.device
        )
        cls, grid = self._features(pixels, layers)
        return _output(cls, grid)

    @torch.no_grad()
    def features(self, pixels: Tensor, config: ModelConfig, size: tuple[int, int]) -> EncoderOutput:
        """Return the features of pixels that were made for another model, as a frozen teacher gives them.

        Args:
            pixels: (B, 3, H, W), normalised as `config` has it.
            config: of the model that they were made for.
            size: pixels of this network's input, (height, width), multiples of the patch size.

        Returns:
            cls (B, C), patches (B, N, C), grid (B, C, h, w), float32, on the device of the pixels.
        """
        if pixels.device != self.device:
            self.to(pixels.device)
        if size != pixels.shape[-2:]:
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)
        facts = tuple(tuple(values) for values in (config.mean, config.std, self.config.mean, self.config.std))
        factor, summand = _renormalise(*facts, pixels.dtype, pixels.device)
        cls, grid = self._features(pixels * factor + summand, 1)
        return _output(cls, grid)

    def to(self, device: torch.device) -> None:
        """Move the network."""
        self.device = device
        for part in vars(self).values():
            if isinstance(part, nn.Module):
                part.to(device)

    @abstractmethod
    def _features(self, pixels: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) normalised pixels -> class feature (B, C) and grid (B, C, h, w)."""


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept must serve training too
def _renormalise(
    mean: tuple[float, ...],
    std: tuple[float, ...],
    new_mean: tuple[float, ...],
    new_std: tuple[float, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Return (3, 1, 1) factors and summands that turn (x - mean) / std into (x - new_mean) / new_std.

    They stay on the device: to bring numbers there, each step would wait for all before it.
    """
    old, scale, new, new_scale = (
        torch.tensor(v, dtype=torch.float64, device="cpu").view(3, 1, 1) for v in (mean, std, new_mean, new_std)
    )
    return (scale / new_scale).to(device, dtype), ((old - new) / new_scale).to(device, dtype)


def _output(cls: Tensor, grid: Tensor) -> EncoderOutput:
    """Return features in float32; registers are not asked for."""
    patches = grid.flatten(2).mT.float()
    return EncoderOutput(cls.float(), patches, grid.float(), patches[:, :0])
