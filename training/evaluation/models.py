"""What is evaluated: an encoder, or one of the two rows that must stand beside every figure, random and pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from video_distilled_encoder import Encoder, ModelConfig, model_directory
from video_distilled_encoder.hub import find_model
from video_distilled_encoder.preprocessing import preprocess

PATCH = 16


class DenseModel(Protocol):
    """A source of dense features."""

    description: dict[str, object]
    """What identifies it in a result."""

    def grid(self, images: Sequence[Image.Image], size: tuple[int, int]) -> Tensor:
        """Return (B, C, h, w) features of images stretched to `size` (height, width) in pixels."""


class EncoderModel:
    """The last block's patch tokens of an encoder."""

    def __init__(self, encoder: Encoder, description: dict[str, object]) -> None:
        self.encoder = encoder
        self.description = description

    def grid(self, images: Sequence[Image.Image], size: tuple[int, int]) -> Tensor:
        """Return (B, C, h, w) patch tokens after the final norm."""
        return self.encoder.encode(list(images), size=size, crop_mode="squash").grid


class Pixels:
    """No network: the normalised pixels of each 16x16 patch, C = 768."""

    def __init__(self) -> None:
        self.description: dict[str, object] = {"name": "pixels"}

    def grid(self, images: Sequence[Image.Image], size: tuple[int, int]) -> Tensor:
        """Return (B, 768, h, w) raw patches."""
        pixels = preprocess(
            list(images), ModelConfig(), size=size, crop_mode="squash", multiple=PATCH, device=torch.device("cpu")
        )
        return F.pixel_unshuffle(pixels, PATCH)


def load_model(name: str, *, device: str | None = None, seed: int = 0) -> DenseModel:
    """Load what `--model` names: a model directory, a bundled release, a Hub name, "random" or "pixels".

    Raises:
        InputError: there is no such model.
    """
    if name == "pixels":
        return Pixels()
    if name == "random":
        torch.manual_seed(seed)
        encoder = Encoder(ModelConfig().build_backbone()).to(device).eval()
        return EncoderModel(encoder, {"name": "random", "seed": seed, "architecture": encoder.config.architecture})
    directory = find_model(name)
    encoder = Encoder.from_pretrained(directory, device=device)
    return EncoderModel(encoder, {"name": Path(name).name, "weights_sha256": model_directory.weights_sha256(directory)})
