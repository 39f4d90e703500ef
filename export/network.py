"""What is exported: the network for one input size, with named outputs and nothing left to compute but the features."""

from __future__ import annotations

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from video_distilled_encoder import Encoder
from video_distilled_encoder.preprocessing import check_size

INPUT = "pixel_values"
OUTPUTS = ("cls", "patches", "grid")


class Network(nn.Module):
    """The encoder's network for one size: the position embedding is resampled once, so the graph holds no Resize.

    Args:
        encoder: the encoder.
        size: (height, width) in pixels, multiples of the patch size.
        dtype: of weights, input and outputs.

    Raises:
        InputError: the size does not fit.
    """

    def __init__(self, encoder: Encoder, size: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__()
        check_size(size, encoder.patch_size)
        state = encoder.backbone.state_dict()
        grid = [side // encoder.patch_size for side in size]
        old_grid = [side // encoder.patch_size for side in encoder.image_size]
        state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], grid, old_grid, num_prefix_tokens=1)
        backbone = encoder.config.build_backbone(img_size=size, dynamic_img_size=False)
        backbone.load_state_dict(state)
        self.encoder = Encoder(backbone, encoder.config).to(encoder.device, dtype).eval()
        self.size = size
        self.eval()

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, H, W) normalised pixels -> cls (B, C), patches (B, N, C), grid (B, C, h, w)."""
        return tuple(self.encoder(pixel_values))
