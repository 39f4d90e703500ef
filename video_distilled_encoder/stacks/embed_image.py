"""openpi, pi0 and SmolVLA: their `embed_image`, from images in [-1, 1] to tokens of the language model.

Written against openpi 15a9616 (`PaliGemmaWithExpertModel`) and LeRobot 0.6.1 (`PaliGemmaWithExpertModel` of pi0,
`SmolVLMWithExpertModel`). Their language models have learnt to read another encoder's tokens: with this one the
projector, and best the language model too, have to be trained.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import interpolate

from video_distilled_encoder.encoder import Encoder
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.stacks.cameras import Cameras


class EmbedImage(nn.Module):
    """Encodes images and projects the patches to a language model's width.

    Args:
        encoder: any encoder.
        width: of the language model's tokens (2048 for pi0, 960 for SmolVLA).
        tokens: how many an image becomes, by resampling the feature map: 256 as SigLIP gives pi0, 64 as SmolVLM's
            connector gives; as many as there are patches by default.
        frozen: leave the encoder as it is; the projector is always trained.
        size: (height, width) in pixels that images are resized to; the encoder's own by default.
        crop_mode: how they are fitted, see `Encoder.encode`.

    Raises:
        InputError: the size does not fit the encoder, or the tokens cannot form a grid like its own.
    """

    def __init__(
        self,
        encoder: Encoder,
        width: int,
        tokens: int | None = None,
        frozen: bool = True,
        size: tuple[int, int] | None = None,
        crop_mode: str = "squash",
    ) -> None:
        super().__init__()
        self.cameras = Cameras(encoder, frozen, size, crop_mode)
        channels, *grid = self.cameras.grid_shape
        self.grid = (grid[0], grid[1]) if tokens is None else nearest_grid(tokens, grid[0] / grid[1])
        self.projector = nn.Linear(channels, width)

    def forward(self, image: Tensor) -> Tensor:
        """Embed images.

        Args:
            image: (B, 3, H, W), RGB in [-1, 1].

        Returns:
            (B, tokens, width), row-major, in the images' floating-point type.
        """
        features = self.cameras((image.float() + 1) / 2)
        if features.shape[-2:] != self.grid:
            features = interpolate(features.float(), self.grid, mode="bilinear", antialias=True)
        tokens = features.flatten(-2).transpose(-1, -2).to(self.projector.weight.dtype)
        return self.projector(tokens).to(image.dtype)


def nearest_grid(tokens: int, aspect: float) -> tuple[int, int]:
    """Return (rows, columns) of so many tokens, whose ratio is nearest to `aspect`.

    Raises:
        InputError: every such grid is more than twice as long or wide as it should be.
    """
    grids = [(rows, tokens // rows) for rows in range(1, tokens + 1) if tokens % rows == 0]
    off = {grid: max(grid[0] / grid[1] / aspect, grid[1] / grid[0] * aspect) for grid in grids}
    if not grids or min(off.values()) > 2:
        shape = "square" if aspect == 1 else f"grid with {aspect:.3g} rows a column"
        raise InputError(f"{tokens} tokens cannot form a {shape}, even nearly; 64, 196 and 256 can be squares")
    return min(off, key=lambda grid: off[grid])


def install(model: nn.Module, embedder: EmbedImage) -> None:
    """Put an embedder in place of a model's own `embed_image`; its weights are saved as `image_embedder.*`.

    Args:
        model: the part that has `embed_image`: `paligemma_with_expert` of openpi's and LeRobot's pi0, `vlm_with_expert`
            of SmolVLA.
        embedder: what it is to call.

    Raises:
        InputError: the model has no `embed_image`.
    """
    if not callable(getattr(model, "embed_image", None)):
        raise InputError(f"{type(model).__name__} has no embed_image; give the part of the policy that has it")
    model.add_module("image_embedder", embedder)
    vars(model)["embed_image"] = embedder  # a module set as an attribute would stay behind the class's own method
