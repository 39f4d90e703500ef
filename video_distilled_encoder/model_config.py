"""What must be known of a model besides its weights: the architecture and how an image becomes its input."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from video_distilled_encoder.errors import InputError, first_line

CROP_MODES = ("center", "squash")
"""Ways to fit an image to any size."""
_BACKBONE_ARGUMENTS = set(inspect.signature(VisionTransformer.__init__).parameters) - {"self"}


@dataclass(frozen=True)
class ModelConfig:
    """The facts of `config.json`, which timm and transformers each read in their own dialect.

    Raises:
        InputError: a value is not usable, when the object is made.
    """

    architecture: str = "vit_small_patch16_224"
    """A timm model name."""
    model_args: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of timm's VisionTransformer that differ from the architecture's."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of the RGB channels, in [0, 1]; ImageNet's by default, as in the papers."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of the RGB channels."""
    interpolation: str = "bicubic"
    """How images are resized, with antialiasing: bicubic or bilinear."""
    crop_pct: float = 0.9
    """Share of the resized image's shorter side that a centre crop keeps."""
    crop_mode: str = "center"
    """How images are fitted where nothing else is asked for, see `Encoder.encode`: center or squash."""

    def __post_init__(self) -> None:
        if not isinstance(self.architecture, str) or not timm.is_model(self.architecture):
            raise InputError(f"timm has no architecture {self.architecture!r}; see timm.list_models('vit*')")
        unknown = set(self.model_args) - _BACKBONE_ARGUMENTS
        if unknown:
            raise InputError(f"model_args {sorted(unknown)} are not arguments of timm's VisionTransformer; remove them")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in values):
                raise InputError(f"{name} must be three numbers, got {values!r}")
        if min(self.std) <= 0 or not 0 < self.crop_pct <= 1:
            raise InputError(f"std must be positive and crop_pct in (0, 1], got {self.std} and {self.crop_pct}")
        if self.interpolation not in ("bicubic", "bilinear"):
            raise InputError(f"interpolation must be bicubic or bilinear, got {self.interpolation!r}")
        if self.crop_mode not in CROP_MODES:
            raise InputError(f"crop_mode must be center or squash, got {self.crop_mode!r}")

    def build_backbone(self, **overrides: Any) -> VisionTransformer:
        """Build the backbone with random weights: no classifier, any input size that is a multiple of the patch size.

        Args:
            **overrides: arguments of timm's VisionTransformer that go before those of `model_args`.

        Raises:
            InputError: the architecture is not a plain ViT (one class token, no registers), or timm does not build it
                with these arguments.
        """
        arguments = {**self.model_args, "dynamic_img_size": True, **overrides, "num_classes": 0}
        try:
            backbone = timm.create_model(self.architecture, pretrained=False, **arguments)
        except Exception as error:  # wrong arguments fail in their own ways, as by a ZeroDivisionError
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(
                f"timm cannot build {self.architecture} with model_args {dict(self.model_args)} ({reason}); mend them"
            ) from error
        if not isinstance(backbone, VisionTransformer) or backbone.cls_token is None or backbone.num_prefix_tokens != 1:
            raise InputError(f"{self.architecture} is not a plain vision transformer (a class token, no registers)")
        return backbone

    @classmethod
    def from_json(cls, config: Any) -> ModelConfig:
        """Read timm's dialect of `config.json`; older ones are flat, and have no `pretrained_cfg` in them.

        Raises:
            InputError: it names no timm architecture, or holds a value that is not usable.
        """
        if not isinstance(config, dict) or "architecture" not in config:
            raise InputError("it names no timm `architecture`")
        image = config.get("pretrained_cfg", config)
        defaults = cls()
        read = cls(
            architecture=config["architecture"],
            model_args=config.get("model_args", {}),
            mean=tuple(image.get("mean", defaults.mean)),
            std=tuple(image.get("std", defaults.std)),
            interpolation=image.get("interpolation", defaults.interpolation),
            crop_pct=image.get("crop_pct", defaults.crop_pct),
            crop_mode=image.get("crop_mode", defaults.crop_mode),
        )
        if read.crop_mode == "squash" and read.crop_pct < 1:
            raise InputError(f"crop_mode squash keeps the whole image, so crop_pct must be 1, got {read.crop_pct}")
        return read

    def timm_json(self, backbone: VisionTransformer) -> dict[str, Any]:
        """Return timm's dialect, with no `num_classes` in model_args, as timm writes it: `AutoModel` refuses that."""
        height, width = image_size(backbone)
        return {
            "architecture": self.architecture,
            "num_classes": 0,
            "num_features": backbone.num_features,
            "global_pool": "token",
            "model_args": {**self.model_args, "dynamic_img_size": True},
            "pretrained_cfg": {
                "input_size": [3, height, width],
                "fixed_input_size": True,
                "interpolation": self.interpolation,
                "crop_pct": self.crop_pct,
                "crop_mode": self.crop_mode,
                "mean": list(self.mean),
                "std": list(self.std),
                "num_classes": 0,
                "first_conv": "patch_embed.proj",
                "classifier": "head",
                "custom_load": False,
            },
        }

    def transformers_json(self, backbone: VisionTransformer, dtype: torch.dtype, weights_file: str) -> dict[str, Any]:
        """Return transformers' dialect, of `Dinov2Model`: a ViT whose layer scales are ones."""
        block: Any = backbone.blocks[0]
        return {
            "model_type": "dinov2",
            "architectures": ["Dinov2Model"],
            "hidden_size": backbone.embed_dim,
            "num_hidden_layers": len(backbone.blocks),
            "num_attention_heads": block.attn.num_heads,
            "mlp_ratio": block.mlp.fc1.out_features // backbone.embed_dim,
            "layer_norm_eps": block.norm1.eps,
            "image_size": image_size(backbone)[0],
            "patch_size": backbone.patch_embed.patch_size[0],
            "qkv_bias": block.attn.qkv.bias is not None,
            "layerscale_value": 1.0,
            "use_mask_token": False,
            "dtype": str(dtype).removeprefix("torch."),
            "out_indices": [len(backbone.blocks)],
            "transformers_weights": weights_file,
        }

    def preprocessor_json(self, backbone: VisionTransformer) -> dict[str, Any]:
        """Return transformers' image processor: the shorter side resized to size / crop_pct, then a centre crop.

        Or, with the crop_mode squash, the whole image resized.
        """
        height, width = image_size(backbone)
        whole = self.crop_mode == "squash"
        shorter = {"shortest_edge": math.floor(height / self.crop_pct)}
        return {
            "image_processor_type": "BitImageProcessor",
            "do_resize": True,
            "size": {"height": height, "width": width} if whole else shorter,
            "resample": {"bilinear": 2, "bicubic": 3}[self.interpolation],
            "do_center_crop": not whole,
            "crop_size": {"height": height, "width": width},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "do_convert_rgb": True,
        }


def image_size(backbone: VisionTransformer) -> tuple[int, int]:
    """Return the (height, width) in pixels that the position embedding was made for."""
    height, width = backbone.patch_embed.img_size
    return height, width
