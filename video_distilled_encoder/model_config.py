"""What must be known of a model besides its weights: the architecture and how an image becomes its input."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
from timm.data import resolve_data_config
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from video_distilled_encoder.errors import InputError, first_line
from video_distilled_encoder.tokens import TokenLayout, image_size

INTERPOLATIONS = ("bicubic", "bilinear", "lanczos")
CROP_MODES = ("center", "squash")
"""Ways to fit an image to any size."""
PREPROCESSING = ("interpolation", "crop_pct", "crop_mode", "mean", "std")
"""What is known of how an image becomes a model's input: names here, in timm's `pretrained_cfg` and in `Artefact`."""
_BACKBONE_ARGUMENTS = {
    name for family in (VisionTransformer, Eva, Beit) for name in inspect.signature(family.__init__).parameters
} - {"self"}
"""What `model_args` may hold: timm's function that builds networks takes more, such as files to load."""


@dataclass(frozen=True)
class ModelConfig:
    """The facts of `config.json`, which timm reads, and transformers by way of timm.

    Raises:
        InputError: a value is not usable, when the object is made.
    """

    architecture: str = "vit_small_patch16_224"
    """A timm model name."""
    model_args: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of timm's class that differ from the architecture's."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of the RGB channels, in [0, 1]; ImageNet's by default, as in the papers."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of the RGB channels."""
    interpolation: str = "bicubic"
    """How images are resized, with antialiasing: bicubic, bilinear or lanczos."""
    crop_pct: float = 0.9
    """Share of the resized image's shorter side that a centre crop keeps."""
    crop_mode: str = "center"
    """How images are fitted where nothing else is asked for, see `Encoder.encode`: center or squash."""

    def __post_init__(self) -> None:
        if not isinstance(self.architecture, str) or not timm.is_model(self.architecture):
            raise InputError(f"timm has no architecture {self.architecture!r}; see timm.list_models('vit*')")
        unknown = set(self.model_args) - _BACKBONE_ARGUMENTS
        if unknown:
            raise InputError(
                f"model_args {sorted(unknown)} are not arguments of timm's vision transformers; remove them"
            )
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in values):
                raise InputError(f"{name} must be three numbers, got {values!r}")
        if min(self.std) <= 0 or not 0 < self.crop_pct <= 1:
            raise InputError(f"std must be positive and crop_pct in (0, 1], got {self.std} and {self.crop_pct}")
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}")
        if self.crop_mode not in CROP_MODES:
            raise InputError(f"crop_mode must be center or squash, got {self.crop_mode!r}")
        if self.crop_mode == "squash" and self.crop_pct < 1:
            raise InputError(f"crop_mode squash keeps the whole image, so crop_pct must be 1, got {self.crop_pct}")

    @classmethod
    def of(cls, backbone: nn.Module) -> ModelConfig:
        """Return what timm says of a network that it built: the architecture, and how an image becomes its input."""
        known: Any = getattr(backbone, "pretrained_cfg", None)
        if not known:
            return cls()
        image = resolve_data_config(pretrained_cfg=known)
        return cls(known["architecture"], **{name: image[name] for name in PREPROCESSING})

    def build_backbone(self, **overrides: Any) -> Any:
        """Build the backbone with random weights: no classifier, and of every size that its family allows.

        Args:
            **overrides: arguments of timm's class that go before those of `model_args`.

        Raises:
            InputError: the architecture is no vision transformer, or timm does not build it with these arguments.
        """
        arguments = {**self.model_args, "dynamic_img_size": True, **overrides, "num_classes": 0}
        try:
            backbone = _build(self.architecture, arguments)
        except Exception as error:  # wrong arguments fail in their own ways, as by a ZeroDivisionError
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(
                f"timm cannot build {self.architecture} with model_args {dict(self.model_args)} ({reason}); mend them"
            ) from error
        TokenLayout.of(backbone)
        return backbone

    @classmethod
    def from_json(cls, config: Any) -> ModelConfig:
        """Read timm's `config.json`; older ones are flat, and have no `pretrained_cfg` in them.

        Raises:
            InputError: it names no timm architecture, or holds a value that is not usable.
        """
        if not isinstance(config, dict) or "architecture" not in config:
            raise InputError("it names no timm `architecture`")
        image = config.get("pretrained_cfg", config)
        given = {name: image[name] for name in PREPROCESSING if name in image}
        facts: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
        }
        return cls(config["architecture"], config.get("model_args", {}), **facts)

    def to_json(self, backbone: nn.Module) -> dict[str, Any]:
        """Return what timm reads, with no `num_classes` in model_args, as timm writes it: `AutoModel` refuses that."""
        height, width = image_size(backbone)
        network: Any = backbone
        dynamic = {"dynamic_img_size": True} if hasattr(network, "dynamic_img_size") else {}
        return {
            "architecture": self.architecture,
            "num_classes": 0,
            "num_features": network.num_features,
            "global_pool": network.global_pool,
            "model_args": {**self.model_args, **dynamic},
            "pretrained_cfg": {
                "input_size": [3, height, width],
                "fixed_input_size": True,
                **{name: getattr(self, name) for name in PREPROCESSING},
                "num_classes": 0,
                "first_conv": "patch_embed.proj",
                "classifier": "head",
                "custom_load": False,
            },
        }


def _build(architecture: str, arguments: dict[str, Any]) -> nn.Module:
    """Build a network of timm, of one size only if its family knows no other (BEiT)."""
    try:
        return timm.create_model(architecture, pretrained=False, **arguments)
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
    fixed = {name: value for name, value in arguments.items() if name != "dynamic_img_size"}
    return timm.create_model(architecture, pretrained=False, **fixed)
