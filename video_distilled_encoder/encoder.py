"""The encoder: one image in, one class token and a grid of patch tokens out."""

from __future__ import annotations

import operator
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import HfApi
from torch import Tensor, nn

from video_distilled_encoder import model_directory
from video_distilled_encoder.errors import InputError, first_line
from video_distilled_encoder.hub import find_model
from video_distilled_encoder.model_config import ModelConfig
from video_distilled_encoder.preprocessing import Images, preprocess
from video_distilled_encoder.tokens import TokenLayout, encode_tokens, image_size, tokens_after

# B = batch (any leading dimensions), N = patches = h * w, C = embed_dim, h = H / patch_size, w = W / patch_size


class EncoderOutput(NamedTuple):
    """Features of a batch of images, all after the final norm."""

    cls: Tensor
    """(B, C) class token. Of a model that has none: what its own pooling makes of all tokens (SigLIP's by attention,
    others' mean), and after an earlier block the mean of the patches."""
    patches: Tensor
    """(B, N, C) patch tokens, row-major."""
    grid: Tensor
    """(B, C, h, w) the patch tokens as a feature map (a view, no copy)."""
    registers: Tensor
    """(B, R, C) registers; R is 0 for a model that has none, and for an export that does not hold them."""


class Encoder(nn.Module):
    """A single-image vision transformer with its preprocessing.

    Args:
        backbone: one of timm's vision transformers, as `ModelConfig.build_backbone` makes it.
        config: what the backbone was trained with; what timm says of it by default.
        card: the model card, kept for `save_pretrained`.
    """

    def __init__(self, backbone: nn.Module, config: ModelConfig | None = None, card: str | None = None) -> None:
        super().__init__()
        self.tokens = TokenLayout.of(backbone)
        self.backbone = backbone
        self.config = config or ModelConfig.of(backbone)
        self.card = card

    @classmethod
    @torch.inference_mode(False)  # weights made in that mode could never be trained
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> Encoder:
        """Load an encoder, in eval mode.

        Args:
            name: a local model directory, the release bundled with this package (`nota/vfd-vits16`), or a Hub name;
                looked up in this order.
            revision: branch, tag or commit on the Hub; with it the bundled release is passed over.
            device: where to put it; the CPU by default.
            dtype: floating-point type of the weights and of the features.
            cache_dir: the Hub's cache, if not the ordinary one.
            local_files_only: never ask the network.
            token: the Hub's access token, if not the one logged in with.

        Raises:
            InputError: there is no such model, or its files are incomplete, damaged or of another architecture,
                or there is no such device or type.
        """
        model_directory.check_dtype(dtype)
        directory = find_model(
            name, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token
        )
        backbone, config = model_directory.read(directory)
        encoder = cls(backbone, config, model_directory.read_card(directory)).to(dtype=dtype).eval()
        try:
            return encoder.to(device=device)
        except (RuntimeError, AssertionError) as error:
            where = f"the device {str(device)!r}"
            raise InputError(f"the encoder cannot be put on {where} here: {first_line(error)}") from error

    @property
    def embed_dim(self) -> int:
        """Width C of the tokens."""
        return self.tokens.width

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.tokens.patch_size

    @property
    def depth(self) -> int:
        """Number of blocks."""
        backbone: Any = self.backbone
        return len(backbone.blocks)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels that the weights were made for, and the default of `encode`."""
        return image_size(self.backbone)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return next(self.parameters()).dtype

    def forward(self, pixel_values: Tensor) -> EncoderOutput:
        """Encode normalised pixels; differentiable.

        Args:
            pixel_values: (B, 3, H, W), or (B, cameras, 3, H, W) with any number of leading dimensions; H and W are
                multiples of the patch size.

        Returns:
            Class token, patch tokens, grid and registers with the same leading dimensions.

        Raises:
            InputError: the shape does not fit; the message names the two nearest good sizes.
        """
        pixels, lead = self._flatten(pixel_values)
        tokens, _ = encode_tokens(self.backbone, pixels)
        return self._split(tokens, self.tokens.pooled(self.backbone, tokens), lead, pixels.shape[-2:])

    def intermediate_layers(
        self, pixel_values: Tensor, n: int | Sequence[int] = 1, norm: bool = True
    ) -> list[EncoderOutput]:
        """Return the tokens after several blocks, for dense heads.

        Args:
            pixel_values: as in `forward`.
            n: the last n blocks, or the numbers of the blocks, counted from 0; the result has their order.
            norm: apply the final norm to each.

        Raises:
            InputError: there is no such block, or the shape does not fit.
        """
        depth = self.depth
        try:
            blocks = [operator.index(block) for block in (n if isinstance(n, Iterable) else range(depth - n, depth))]
        except TypeError:
            blocks = []
        if not blocks or min(blocks) < 0 or max(blocks) >= depth:
            raise InputError(f"n={n!r} asks for blocks that are not there; the encoder has blocks 0 to {depth - 1}")
        pixels, lead = self._flatten(pixel_values)
        found = tokens_after(self.backbone, pixels, blocks, norm=norm)
        layers = [found[block] for block in blocks]
        return [self._split(tokens, self.tokens.cls(tokens), lead, pixels.shape[-2:]) for tokens in layers]

    @torch.no_grad()
    def encode(
        self, images: Images, *, size: int | tuple[int, int] | None = None, crop_mode: str | None = None
    ) -> EncoderOutput:
        """Encode images in any form, preprocessing included; no gradients.

        Args:
            images: a path, PIL image, RGB array (..., H, W, 3), RGB tensor (..., 3, H, W), or a list of them; integer
                pixels are uint8, floating-point ones lie in [0, 1].
            size: pixels of the network's input, one number or (height, width); `image_size` by default.
            crop_mode: "center" (aspect kept, sides cut; what timm and transformers do), "squash" (the whole image,
                stretched to `size`) or "whole" (the whole image, aspect kept, shorter side about `size`); by default
                that of `config`, "center" if the weights came with no other.

        Returns:
            Features with a leading batch dimension; (B, cameras, …) in gives (B, cameras, …) out.

        Raises:
            InputError: something is not an image, or the sizes do not fit.
        """
        return self(self.preprocess(images, size=size, crop_mode=crop_mode))

    def preprocess(
        self, images: Images, *, size: int | tuple[int, int] | None = None, crop_mode: str | None = None
    ) -> Tensor:
        """Return the normalised pixels that `encode` hands to the network: (B, 3, H, W) on the encoder's device."""
        pixels = preprocess(
            images,
            self.config,
            size=(self.image_size[0] if crop_mode == "whole" else self.image_size) if size is None else size,
            crop_mode=crop_mode,
            multiple=self.patch_size,
            device=self.device,
        )
        return pixels.to(self.dtype)

    def save_pretrained(
        self, directory: str | Path, *, dtype: torch.dtype | None = None, card: str | None = None
    ) -> None:
        """Write a model directory that timm, transformers and `from_pretrained` load with the same numbers.

        Args:
            directory: made if missing.
            dtype: of the stored weights; the encoder's own by default.
            card: the text of the model card, if not the one the encoder was loaded with.

        Raises:
            InputError: the directory cannot be written.
        """
        model_directory.write(
            Path(directory),
            self.backbone,
            self.config,
            card=card or self.card or _DEFAULT_CARD,
            dtype=dtype or self.dtype,
        )

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload encoder",
        dtype: torch.dtype | None = None,
    ) -> str:
        """Upload the model directory to the Hub as `owner/name` in one commit; returns the commit's address.

        Raises:
            InputError: the encoder cannot be saved, or the Hub is out of reach or does not take it.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "model", dtype=dtype)
            try:
                api = HfApi(token=token)
                repository = api.create_repo(name, private=private, exist_ok=True).repo_id
                commit = api.upload_folder(
                    repo_id=repository,
                    folder_path=Path(folder) / "model",
                    revision=revision,
                    commit_message=commit_message,
                )
            except Exception as error:  # huggingface_hub's, and those of whatever library it asks the network by
                raise InputError(
                    f"the encoder cannot be uploaded to {name} on the Hub: {first_line(error)}; be connected, and "
                    "logged in (`hf auth login`) as one who may write there"
                ) from error
        return str(commit.commit_url)

    def _flatten(self, pixel_values: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """(..., 3, H, W) -> (B, 3, H, W) and the leading dimensions."""
        if not isinstance(pixel_values, Tensor) or not pixel_values.is_floating_point():
            got = getattr(pixel_values, "dtype", "no array")
            raise InputError(
                f"pixel_values are a floating-point tensor of normalised pixels, got {type(pixel_values).__name__} "
                f"({got}); encode() takes images of any form"
            )
        if pixel_values.ndim < 4 or pixel_values.shape[-3] != 3:
            raise InputError(f"pixel_values must be (B, 3, H, W), got {tuple(pixel_values.shape)}")
        if 0 in pixel_values.shape:
            raise InputError(f"pixel_values hold no image: their shape is {tuple(pixel_values.shape)}")
        self.tokens.check((pixel_values.shape[-2], pixel_values.shape[-1]))
        if pixel_values.ndim == 4:
            return pixel_values, tuple(pixel_values.shape[:1])
        return pixel_values.flatten(0, -4), tuple(pixel_values.shape[:-3])

    def _split(self, tokens: Tensor, cls: Tensor, lead: tuple[int, ...], size: Sequence[int]) -> EncoderOutput:
        """(B, P + N, C) and (B, C) -> features with the leading dimensions of the input."""
        if len(lead) > 1:
            tokens, cls = tokens.unflatten(0, lead), cls.unflatten(0, lead)
        patches = self.tokens.patches(tokens)
        grid = patches.transpose(-1, -2).unflatten(-1, self.tokens.grid((size[0], size[1])))
        return EncoderOutput(cls, patches, grid, self.tokens.register_tokens(tokens))


_DEFAULT_CARD = """---
library_name: timm
pipeline_tag: image-feature-extraction
tags: [vision-transformer, video_distilled_encoder]
---
# A video-distilled encoder

```python
from video_distilled_encoder import Encoder
encoder = Encoder.from_pretrained("DIRECTORY_OR_HUB_NAME")
out = encoder.encode("photograph.jpg")   # out.cls, out.patches, out.grid
```
"""
