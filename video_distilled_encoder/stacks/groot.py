"""GR00T: what its action head is given by its backbone, from an encoder's patches.

Written against GR00T N1.7 as LeRobot 0.6.1 has it (`groot_n1_7.py`: `GR00TN17ActionHead`). The head has learnt to read
a language model's tokens: it has to be trained anew, or on, with these.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from video_distilled_encoder.encoder import Encoder
from video_distilled_encoder.stacks.cameras import Cameras


class Features(dict):
    """Named tensors, by `[name]` and `.name`, as the head reads them."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class GrootFeatures(nn.Module):
    """Encodes all cameras in one pass and projects their patches to the head's width.

    Args:
        encoder: any encoder.
        width: the head's `backbone_embedding_dim`.
        frozen: leave the encoder as it is; the projector is always trained.
        size: (height, width) in pixels that images are resized to; the encoder's own by default.
        crop_mode: how they are fitted, see `Encoder.encode`.

    Raises:
        InputError: the size does not fit the encoder.
    """

    def __init__(
        self,
        encoder: Encoder,
        width: int = 2048,
        frozen: bool = True,
        size: tuple[int, int] | None = None,
        crop_mode: str = "squash",
    ) -> None:
        super().__init__()
        self.cameras = Cameras(encoder, frozen, size, crop_mode)
        self.projector = nn.Linear(self.cameras.grid_shape[0], width)
        self.no_text = nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, images: Tensor, text: Tensor | None = None, text_mask: Tensor | None = None) -> Features:
        """Return the head's `backbone_output`.

        Args:
            images: (B, cameras, 3, H, W), RGB, uint8 or floating-point in [0, 1].
            text: (B, L, width) embedded instruction; by default one learnt token, for the head's blocks that attend to
                text alone may not be left with nothing.
            text_mask: (B, L), true where there is text; everywhere by default.

        Returns:
            `backbone_features` (B, cameras * N + L, width), `backbone_attention_mask` and `image_mask` (B, …), boolean.
        """
        grid = self.cameras(images)
        tokens = grid.flatten(-2).transpose(-1, -2).flatten(1, 2)
        seen = self.projector(tokens.to(self.projector.weight.dtype))
        text = self.no_text.expand(len(seen), -1, -1) if text is None else text.to(seen.dtype)
        read = text.new_ones(text.shape[:2], dtype=torch.bool) if text_mask is None else text_mask.bool()
        of_image = seen.new_ones(seen.shape[:2], dtype=torch.bool)
        return Features(
            backbone_features=torch.cat([seen, text], dim=1),
            backbone_attention_mask=torch.cat([of_image, read], dim=1),
            image_mask=torch.cat([of_image, torch.zeros_like(read)], dim=1),
        )
