"""A stand-in for LeRobot 0.6.1, small enough for CI, held to its recorded surface (`lerobot_surface.json`).

The settings, their order and defaults are the recorded ones, and so are the parameters of every method; how a policy
calls its vision backbone is LeRobot's way (camera by camera in ACT, all at once in Diffusion). What lies behind is as
small as it can be. `lerobot.sh` runs the same tests on the real one, and compares the record.
"""

import dataclasses
import enum
import json
import sys
import types
from collections import deque
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import load_model, save_model
from torch import nn

SURFACE = json.loads(Path(__file__).with_name("lerobot_surface.json").read_text())
NormalizationMode = enum.Enum("NormalizationMode", SURFACE["NormalizationMode"])
FeatureType = enum.Enum("FeatureType", ["STATE", "VISUAL", "ENV", "ACTION"])
IMAGES, STATE, ACTION = "observation.images", "observation.state", "action"


@dataclasses.dataclass
class PolicyFeature:
    type: FeatureType
    shape: tuple


class PreTrainedConfig:
    _choices: ClassVar[dict] = {}

    @classmethod
    def register_subclass(cls, name, choice_type=None):
        return lambda kind: cls._choices.setdefault(name, kind)

    @classmethod
    def get_choice_class(cls, name):
        return cls._choices[name]

    @classmethod
    def get_known_choices(cls):
        return cls._choices

    def __post_init__(self):
        self.device = self.device or "cpu"
        if not self.vision_backbone.startswith("resnet"):
            raise ValueError(f"`vision_backbone` must be one of the ResNet variants. Got {self.vision_backbone}.")

    @property
    def image_features(self):
        return {name: it for name, it in self.input_features.items() if it.type is FeatureType.VISUAL}

    def _save_pretrained(self, directory):
        plain = dataclasses.asdict(self)
        for group in ("input_features", "output_features"):
            plain[group] = {name: [it["type"].name, list(it["shape"])] for name, it in plain[group].items()}
        plain["normalization_mapping"] = {name: mode.name for name, mode in self.normalization_mapping.items()}
        kind = next(name for name, kind in self._choices.items() if kind is type(self))
        (directory / "config.json").write_text(json.dumps({"type": kind, **plain}))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path,
        *,
        force_download=False,
        resume_download=None,
        proxies=None,
        token=None,
        cache_dir=None,
        local_files_only=False,
        revision=None,
        **policy_kwargs,
    ):
        facts = json.loads((Path(pretrained_name_or_path) / "config.json").read_text())
        kind = cls._choices[facts.pop("type")]
        for group in ("input_features", "output_features"):
            facts[group] = {k: PolicyFeature(FeatureType[t], tuple(s)) for k, (t, s) in facts[group].items()}
        modes = facts["normalization_mapping"]
        return kind(**facts | {"normalization_mapping": {name: NormalizationMode[modes[name]] for name in modes}})


def config_class(name):
    def default(setting, value):
        if setting == "normalization_mapping":
            value = {kind: NormalizationMode[mode] for kind, mode in value.items()}
        if isinstance(value, (dict, list)):
            return dataclasses.field(default_factory=lambda: type(value)(value))
        return dataclasses.field(default=value)

    settings = [(key, object, default(key, value)) for key, value in SURFACE["fields"][name].items()]
    return dataclasses.make_dataclass(name, settings, bases=(PreTrainedConfig,))


ACTConfig, DiffusionConfig = config_class("ACTConfig"), config_class("DiffusionConfig")


class PreTrainedPolicy(nn.Module):
    def __init__(self, config, **kwargs):
        super().__init__()
        self.config = config

    def save_pretrained(
        self,
        save_directory,
        *,
        state_dict=None,
        repo_id=None,
        push_to_hub=False,
        card_kwargs=None,
        **push_to_hub_kwargs,
    ):
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        self.config._save_pretrained(Path(save_directory))
        save_model(self, str(Path(save_directory) / "model.safetensors"))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path,
        *,
        config=None,
        force_download=False,
        resume_download=None,
        proxies=None,
        token=None,
        cache_dir=None,
        local_files_only=False,
        revision=None,
        strict=False,
        **kwargs,
    ):
        config = config or PreTrainedConfig.from_pretrained(pretrained_name_or_path, **kwargs)
        policy = cls(config, **kwargs)
        load_model(policy, Path(pretrained_name_or_path) / "model.safetensors", strict=strict)
        return policy.eval()

    def get_optim_params(self):
        return self.parameters()


class ACTPolicy(PreTrainedPolicy):
    def __init__(self, config, **kwargs):
        super().__init__(config)
        self.model = nn.Module()
        self.model.backbone = nn.Conv2d(3, 512, 32, 32)
        self.model.encoder_img_feat_input_proj = nn.Conv2d(512, config.dim_model, 1)
        self.model.action_head = nn.Linear(config.dim_model, config.output_features[ACTION].shape[0])

    def reset(self):
        """No queue here."""

    def get_optim_params(self):
        seeing = [p for name, p in self.named_parameters() if name.startswith("model.backbone") and p.requires_grad]
        rest = [p for name, p in self.named_parameters() if not name.startswith("model.backbone") and p.requires_grad]
        return [{"params": rest}, {"params": seeing, "lr": self.config.optimizer_lr_backbone}]

    def forward(self, batch):
        tokens = []
        for name in self.config.image_features:
            seen = self.model.backbone(batch[name])["feature_map"]
            tokens.append(self.model.encoder_img_feat_input_proj(seen).flatten(2))
        action = self.model.action_head(torch.cat(tokens, 2).mean(2))
        chunk = action[:, None].expand(-1, self.config.chunk_size, -1)
        return (chunk - batch[ACTION]).abs().mean() if ACTION in batch else chunk, {}

    @torch.no_grad()
    def predict_action_chunk(self, batch):
        self.eval()
        return ACTPolicy.forward(self, batch)[0]

    @torch.no_grad()
    def select_action(self, batch):
        return self.predict_action_chunk(batch)[:, 0]


class SpatialSoftmax(nn.Module):
    def __init__(self, input_shape, num_kp=None):
        super().__init__()
        channels, self.height, self.width = input_shape
        self.nets = nn.Conv2d(channels, num_kp, 1)

    def forward(self, features):
        rows, columns = (torch.linspace(-1, 1, side) for side in (self.height, self.width))
        places = torch.cartesian_prod(rows, columns).flip(-1)
        return self.nets(features).reshape(len(features), -1, self.height * self.width).softmax(-1) @ places


class DiffusionRgbEncoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.backbone = nn.Conv2d(3, 512, 32, 32)
        self.pool = SpatialSoftmax((512, 2, 3), config.spatial_softmax_num_keypoints)
        self.out = nn.Linear(2 * config.spatial_softmax_num_keypoints, 2 * config.spatial_softmax_num_keypoints)

    def forward(self, x):
        return self.out(self.pool(self.backbone(x)).flatten(1)).relu()


class DiffusionPolicy(PreTrainedPolicy):
    def __init__(self, config, **kwargs):
        super().__init__(config)
        self.diffusion = nn.Module()
        self.diffusion.rgb_encoder = DiffusionRgbEncoder(config)
        width = 2 * config.spatial_softmax_num_keypoints * len(config.image_features) * config.n_obs_steps
        self.diffusion.unet = nn.Linear(width, config.output_features[ACTION].shape[0])

    def reset(self):
        self.seen = deque(maxlen=self.config.n_obs_steps)

    def _act(self, images):
        """(B, steps, cameras, 3, H, W) -> (B, actions)."""
        features = self.diffusion.rgb_encoder(images.flatten(0, 2)).unflatten(0, images.shape[:3])
        return self.diffusion.unet(features.flatten(1))

    def forward(self, batch):
        images = torch.stack([batch[name] for name in self.config.image_features], dim=-4)
        return (self._act(images)[:, None] - batch[ACTION]).square().mean(), None

    @torch.no_grad()
    def predict_action_chunk(self, batch, noise=None):
        return self._act(torch.stack(list(self.seen), dim=1))[:, None]

    @torch.no_grad()
    def select_action(self, batch, noise=None):
        images = torch.stack([batch[name] for name in self.config.image_features], dim=-4)
        self.seen.extend([images] * (self.config.n_obs_steps if not self.seen else 1))
        return self.predict_action_chunk(batch)[:, 0]


def make_default_pre_post_processors(config, dataset_stats=None, *, normalizer_device=None):
    return ("before", config, dataset_stats, normalizer_device), ("after", config, dataset_stats)


PLACES = {
    "lerobot": [],
    "lerobot.configs": [NormalizationMode, FeatureType, PolicyFeature, PreTrainedConfig],
    "lerobot.policies": [],
    "lerobot.policies.pretrained": [PreTrainedPolicy],
    "lerobot.policies.act": [],
    "lerobot.policies.act.configuration_act": [ACTConfig],
    "lerobot.policies.act.modeling_act": [ACTConfig, ACTPolicy],
    "lerobot.policies.diffusion": [],
    "lerobot.policies.diffusion.configuration_diffusion": [DiffusionConfig],
    "lerobot.policies.diffusion.modeling_diffusion": [DiffusionPolicy, SpatialSoftmax, DiffusionRgbEncoder],
    "lerobot.processor": [make_default_pre_post_processors],
}


def install():
    """Put the stand-in where `import lerobot` finds it."""
    for name, held in PLACES.items():
        module = types.ModuleType(name)
        vars(module).update({it.__name__: it for it in held}, __path__=[])
        sys.modules[name] = module
