"""DINOv2, DINOv2 with registers and DINOv3 as transformers stores them: the same networks under timm's names.

Weights are renamed strictly, q, k and v joined; a network that timm has no equal of is refused. Features are equal at
the size that the positions were made for, which is that of `encode`, as in timm, whatever the processor crops to. At
others DINOv3's are too; transformers resamples DINOv2's positions without antialiasing, this package as timm does.
Where a centre crop leaves an odd number of pixels over, it is cut as timm does, a pixel beside transformers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from video_distilled_encoder.errors import InputError
from video_distilled_encoder.model_config import ModelConfig

_PIL_FILTERS = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
_SHARED = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings(?:\.projection)?", "patch_embed.proj"),
    (r"(?:encoder\.|model\.)?layer\.(\d+)\.", r"blocks.\1."),
    (r"layernorm", "norm"),
    (r"attention\.(?:attention\.)?q(?:uery|_proj)", "attn.q"),
    (r"attention\.(?:attention\.)?k(?:ey|_proj)", "attn.k"),
    (r"attention\.(?:attention\.)?v(?:alue|_proj)", "attn.v"),
    (r"attention\.(?:output\.dense|o_proj)", "attn.proj"),
)
_DINOV2 = (
    *_SHARED,
    (r"layer_scale([12])\.lambda1", r"ls\1.gamma"),
    (r"mlp\.weights_in", "mlp.fc1"),
    (r"mlp\.weights_out", "mlp.fc2"),
)
_DINOV3 = (*_SHARED, (r"layer_scale([12])\.lambda1", r"gamma_\1"), (r"mlp\.down_proj", "mlp.fc2"))
"""Patterns in transformers' names, of older versions as well, and what stands in timm's."""


def is_known(config: Any) -> bool:
    """Tell whether a config.json is that of a family which is read here."""
    return isinstance(config, dict) and "architecture" not in config and config.get("model_type") in _FAMILIES


def convert(
    config: Mapping[str, Any], processor: Mapping[str, Any], state: Mapping[str, Tensor]
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Return a model's configuration and weights as timm has them.

    Args:
        config: transformers' config.json.
        processor: its preprocessor_config.json; ImageNet's mean and deviation where it says nothing.
        state: its weights.

    Raises:
        InputError: timm has no such network.
    """
    activation = "silu" if config.get("use_gated_mlp") else "gelu"
    if config.get("hidden_act", "gelu") != activation:
        raise InputError(f"timm has no {config['model_type']} with the activation {config['hidden_act']}")
    architecture, arguments, tensors = _FAMILIES[config["model_type"]](config, state)
    arguments |= {
        "embed_dim": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "patch_size": config["patch_size"],
        "img_size": config["image_size"],
    }
    return ModelConfig(architecture=architecture, model_args=arguments, **_preprocessing(processor)), tensors


def _dinov2(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    tensors = _renamed(state, _DINOV2)
    for block in _blocks(tensors):
        for kind in ("weight", "bias") if config.get("qkv_bias", True) else ("weight",):
            tensors[f"{block}.attn.qkv.{kind}"] = torch.cat(
                [tensors.pop(f"{block}.attn.{one}.{kind}") for one in "qkv"]
            )
    arguments: dict[str, Any] = {"init_values": 1.0, "qkv_bias": config.get("qkv_bias", True)}
    if config.get("use_swiglu_ffn"):
        architecture = "vit_giant_patch14_dinov2"
        inner = tensors["blocks.0.mlp.fc2.weight"].shape[1]
        arguments["mlp_ratio"] = 2 * inner / config["hidden_size"]
    else:
        architecture = "vit_small_patch14_dinov2"
        arguments["mlp_ratio"] = config.get("mlp_ratio", 4)
    if "reg_token" in tensors:
        # There the class token has a position, as in timm, which adds it once and for all, and registers have none.
        architecture = architecture.replace("patch14", "patch14_reg4")
        arguments["reg_tokens"] = tensors["reg_token"].shape[1]
        positions = tensors["pos_embed"]
        tensors["cls_token"] = tensors["cls_token"] + positions[:, :1]
        tensors["pos_embed"] = positions[:, 1:].contiguous()
    return architecture, arguments, tensors


def _dinov3(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    gated = config.get("use_gated_mlp", False)
    table = (*_DINOV3, *(((r"mlp\.gate_proj", "mlp.fc1_g"), (r"mlp\.up_proj", "mlp.fc1_x")) if gated else ()))
    tensors = _renamed(state, (*table, (r"mlp\.up_proj", "mlp.fc1")))
    biases = tuple(bool(config.get(f"{name}_bias", name != "key")) for name in ("query", "key", "value"))
    if biases not in ((True, False, True), (False, False, False)) or config.get("rope_theta", 100.0) != 100.0:
        raise InputError(f"timm has no dinov3_vit whose q, k, v have the biases {biases}, or of another rope_theta")
    for block in _blocks(tensors):
        tensors[f"{block}.attn.qkv.weight"] = torch.cat([tensors.pop(f"{block}.attn.{one}.weight") for one in "qkv"])
        if biases[0]:
            for one in "qv":
                tensors[f"{block}.attn.{one}_bias"] = tensors.pop(f"{block}.attn.{one}.bias")
    if not config.get("num_register_tokens", 0):
        tensors.pop("reg_token", None)
    arguments = {
        "mlp_ratio": config["intermediate_size"] / config["hidden_size"],
        "num_reg_tokens": config.get("num_register_tokens", 0),
    }
    return f"vit_small{'_plus' * gated}_patch16_dinov3{'_qkvb' * biases[0]}", arguments, tensors


_FAMILIES: dict[str, Callable[..., tuple[str, dict[str, Any], dict[str, Tensor]]]] = {
    "dinov2": _dinov2,
    "dinov2_with_registers": _dinov2,
    "dinov3_vit": _dinov3,
}


def _renamed(state: Mapping[str, Tensor], table: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    tensors = {}
    for name, tensor in state.items():
        if name == "embeddings.mask_token":  # of training alone
            continue
        for pattern, timms in table:
            name = re.sub(rf"(?:(?<=\.)|^){pattern}", timms, name, count=1)
        tensors[name] = tensor
    return tensors


def _blocks(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the blocks, as blocks.0."""
    return sorted({found[0] for name in tensors if (found := re.match(r"blocks\.\d+", name))})


def _preprocessing(processor: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a ModelConfig says of preprocessing."""
    values: dict[str, Any] = {}
    if not all(processor.get(step, True) for step in ("do_resize", "do_rescale")) or not math.isclose(
        processor.get("rescale_factor", 1 / 255), 1 / 255
    ):
        raise InputError("its images are not resized, or not rescaled by 1/255, for the network; here they always are")
    if not processor.get("do_normalize", True):
        values |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    elif "image_mean" in processor:
        values |= {"mean": tuple(processor["image_mean"]), "std": tuple(processor["image_std"])}
    if processor.get("resample", 3) not in _PIL_FILTERS:
        raise InputError(
            f"PIL's filter {processor['resample']} to resize images is not known here, which has "
            + ", ".join(f"{number} ({name})" for number, name in _PIL_FILTERS.items())
        )
    values["interpolation"] = _PIL_FILTERS[processor.get("resample", 3)]
    size, crop = processor.get("size", {}), processor.get("crop_size", {})
    if processor.get("do_center_crop", bool(crop)) and "shortest_edge" in size and "height" in crop:
        values["crop_pct"] = crop["height"] / size["shortest_edge"]
    else:
        values |= {"crop_mode": "squash", "crop_pct": 1.0}
    return values
