"""LeRobot: ACT and Diffusion that see through an encoder, as `--policy.type=vde_act` and `vde_diffusion`.

Written against LeRobot 0.6.1, whose own two take a torchvision ResNet and nothing else. Importing this module registers
both; LeRobot does that itself where the distribution `lerobot_policy_vde` is installed, and finds the policy and the
maker of its processors by their names. A saved policy holds the encoder: it needs neither its directory nor the Hub.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy, SpatialSoftmax
from lerobot.processor import make_default_pre_post_processors
from torch import Tensor, nn

from video_distilled_encoder.encoder import Encoder
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.hub import DEFAULT_RELEASE
from video_distilled_encoder.stacks.cameras import Cameras, rebuild


@dataclass
class Vision:
    """What both policies are told of the encoder, which normalises images itself: LeRobot leaves them in [0, 1]."""

    encoder: str = DEFAULT_RELEASE
    """What `Encoder.from_pretrained` takes: a release, a model directory or a Hub name."""
    freeze_encoder: bool = True
    """Leave the encoder as it is; otherwise it is trained, at `optimizer_lr_backbone`."""
    image_size: tuple[int, int] | None = None
    """(height, width) in pixels that images are resized to; the encoder's own by default."""
    crop_mode: str = "squash"
    """How they are fitted, see `Encoder.encode`: squash or center."""
    encoder_config: str | None = None
    """The encoder's `config.json`, written by the policy: what a saved one is rebuilt from."""
    optimizer_lr_backbone: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]
        config: Any = self
        config.pretrained_backbone_weights = None
        config.normalization_mapping = {**config.normalization_mapping, "VISUAL": NormalizationMode.IDENTITY}
        if config.vision_backbone != "resnet18":
            raise InputError(
                f"{config.vision_backbone} would not be used: what these policies see through is `encoder`"
            )
        if getattr(config, "use_separate_rgb_encoder_per_camera", False):
            raise InputError("all cameras go through one encoder; leave use_separate_rgb_encoder_per_camera at false")


@PreTrainedConfig.register_subclass("vde_act")
@dataclass
class VdeActConfig(Vision, ACTConfig):
    """LeRobot's ACT with an encoder in place of the ResNet."""


@PreTrainedConfig.register_subclass("vde_diffusion")
@dataclass
class VdeDiffusionConfig(Vision, DiffusionConfig):
    """LeRobot's Diffusion Policy with one encoder for all cameras in place of the ResNets."""

    use_separate_rgb_encoder_per_camera: bool = False


def _cameras(config: Any, load: bool, kind: type[Cameras] = Cameras) -> Cameras:
    """Return what a policy sees through, and note it in `config`; without `load` the weights are to come."""
    if not (load or config.encoder_config):
        raise InputError("the policy's config.json has no encoder_config, so it was saved by another policy")
    encoder = Encoder.from_pretrained(config.encoder) if load else rebuild(config.encoder_config)
    cameras = kind(encoder, config.freeze_encoder, config.image_size, config.crop_mode)
    config.encoder_config = cameras.facts()
    return cameras


class ActCameras(Cameras):
    """What ACT calls camera by camera; its policy has encoded all of them in one pass before."""

    def forward(self, images: Tensor | Sequence[Tensor]) -> Any:
        """Encode a list of cameras; hand a single camera's feature map through as ACT wants it."""
        return {"feature_map": images} if isinstance(images, Tensor) else super().forward(images)


class _Saved:
    """The encoder's own file is read for a fresh policy, and never for a saved one."""

    @classmethod
    def from_pretrained(cls, name: Any, *, strict: bool = True, **kwargs: Any) -> Any:
        """Load a saved policy as LeRobot does; a file that lacks a weight is refused unless `strict` is false."""
        return super().from_pretrained(name, strict=strict, load_encoder=False, **kwargs)  # type: ignore[misc]


class VdeActPolicy(_Saved, ACTPolicy):
    """ACT whose image tokens are the encoder's patches, of all cameras in one pass."""

    config_class, name = VdeActConfig, "vde_act"

    def __init__(self, config: VdeActConfig, load_encoder: bool = True, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        if config.image_features:
            cameras = _cameras(config, load_encoder, ActCameras)
            self.model.backbone = cameras
            self.model.encoder_img_feat_input_proj = nn.Conv2d(cameras.grid_shape[0], config.dim_model, 1)

    def _encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Put feature maps in the cameras' places."""
        names = list(self.config.image_features)
        return {**batch, **dict(zip(names, self.model.backbone([batch[name] for name in names]), strict=True))}

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict]:
        """Compute the loss."""
        return super().forward(self._encode(batch))

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor]) -> Tensor:
        """Return (B, chunk_size, actions)."""
        return super().predict_action_chunk(self._encode(batch))


class VdeDiffusionPolicy(_Saved, DiffusionPolicy):
    """Diffusion Policy whose keypoints lie in the encoder's feature maps, of all cameras in one pass."""

    config_class, name = VdeDiffusionConfig, "vde_diffusion"

    def __init__(self, config: VdeDiffusionConfig, load_encoder: bool = True, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        if config.image_features:
            cameras = _cameras(config, load_encoder)
            self.diffusion.rgb_encoder.backbone = cameras
            self.diffusion.rgb_encoder.pool = SpatialSoftmax(cameras.grid_shape, config.spatial_softmax_num_keypoints)

    def get_optim_params(self) -> list[dict[str, Any]]:
        """Return the policy's own parameters, and the encoder's at `optimizer_lr_backbone`, as ACT has them."""
        trained = {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}
        seeing = [trained.pop(name) for name in list(trained) if name.startswith("diffusion.rgb_encoder.backbone.")]
        return [{"params": list(trained.values())}, {"params": seeing, "lr": self.config.optimizer_lr_backbone}]


def make_vde_act_pre_post_processors(config: VdeActConfig, dataset_stats: Any = None) -> tuple[Any, Any]:
    """Return LeRobot's pipelines around the policy, as ACT has them."""
    return make_default_pre_post_processors(config, dataset_stats, normalizer_device=config.device)


def make_vde_diffusion_pre_post_processors(config: VdeDiffusionConfig, dataset_stats: Any = None) -> tuple[Any, Any]:
    """Return LeRobot's pipelines around the policy, as Diffusion has them."""
    return make_default_pre_post_processors(config, dataset_stats)
