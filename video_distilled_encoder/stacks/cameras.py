"""An encoder as a part of a policy: images of several cameras in, feature maps out, in one pass."""

from __future__ import annotations

import json
from collections.abc import Sequence

from torch import Tensor, nn

from video_distilled_encoder.encoder import Encoder
from video_distilled_encoder.model_config import ModelConfig
from video_distilled_encoder.tokens import check_size


class Cameras(nn.Module):
    """Fits images to the encoder and encodes them; a frozen encoder gets no gradients and stays in eval mode.

    Args:
        encoder: any encoder.
        frozen: leave it as it is; otherwise it is trained with the policy.
        size: (height, width) in pixels that images are resized to; the encoder's own by default.
        crop_mode: how they are fitted, see `Encoder.encode`.

    Raises:
        InputError: the size is not a multiple of the patch size.
    """

    def __init__(
        self,
        encoder: Encoder,
        frozen: bool = True,
        size: tuple[int, int] | None = None,
        crop_mode: str = "squash",
    ) -> None:
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(not frozen)
        self.frozen, self.crop_mode = frozen, crop_mode
        height, width = size or encoder.image_size
        self.size = height, width
        check_size(self.size, encoder.patch_size)

    @property
    def grid_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the feature maps."""
        height, width = (side // self.encoder.patch_size for side in self.size)
        return self.encoder.embed_dim, height, width

    def train(self, mode: bool = True) -> Cameras:
        """Set the mode; a frozen encoder stays in eval mode."""
        return super().train(mode and not self.frozen)

    def forward(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Encode images in one pass.

        Args:
            images: (..., 3, H, W), RGB in [0, 1], or a list of n such tensors, whose H and W may differ.

        Returns:
            (..., C, h, w), or (n, ..., C, h, w) of a list.
        """
        return self.encoder(self.encoder.preprocess(images, size=self.size, crop_mode=self.crop_mode)).grid

    def facts(self) -> str:
        """Return the encoder's `config.json`, from which `rebuild` makes it."""
        return json.dumps(self.encoder.config.to_json(self.encoder.backbone))


def rebuild(facts: str) -> Encoder:
    """Return an encoder with random weights, which are to be loaded, from what `Cameras.facts` said.

    Raises:
        InputError: it is not an encoder's configuration.
    """
    config = ModelConfig.from_json(json.loads(facts))
    return Encoder(config.build_backbone(), config).eval()
