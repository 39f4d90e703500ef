"""The backbone of OpenVLA and Prismatic: on their own code with VDE_OPENVLA=CLONE, else on what it was recorded to do.

Recorded from openvla/openvla c8f03f4: `TimmViTBackbone` (base_vision.py) and the registry (materialize.py).
"""

import importlib.util
import sys
import types
from functools import partial
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from published import clone, function, readme
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from video_distilled_encoder import Encoder, InputError, ModelConfig
from video_distilled_encoder.image_files import bundled_photographs
from video_distilled_encoder.stacks import prismatic

BASE, REGISTRY = "prismatic.models.backbones.vision.base_vision", "prismatic.models.materialize"


class TimmViTBackbone(nn.Module):
    """What the published class does with what it is given."""

    def __init__(
        self,
        vision_backbone_id,
        timm_path_or_url,
        image_resize_strategy,
        default_image_size=224,
        override_act_layer=None,
    ):
        super().__init__()
        assert override_act_layer is None
        self.identifier, self.dtype = vision_backbone_id, torch.bfloat16
        self.featurizer = timm.create_model(
            timm_path_or_url, pretrained=True, num_classes=0, img_size=default_image_size
        )
        self.featurizer.eval()
        layers = partial(self.featurizer.get_intermediate_layers, n={len(self.featurizer.blocks) - 2})
        self.featurizer.forward = lambda pixels: (
            layers(pixels)[0] if isinstance(layers(pixels), tuple) else layers(pixels)
        )
        assert isinstance(self.featurizer, VisionTransformer)
        self.data_cfg = timm.data.resolve_model_data_config(self.featurizer)
        self.data_cfg["input_size"] = (3, default_image_size, default_image_size)
        transform = timm.data.create_transform(**self.data_cfg, is_training=False)
        assert image_resize_strategy == "resize-naive"
        transform.transforms[0].size = (default_image_size, default_image_size)
        self.image_transform = transform

    def get_image_transform(self):
        return self.image_transform

    def forward(self, pixel_values):
        return self.featurizer(pixel_values)

    @property
    def embed_dim(self):
        return self.featurizer.embed_dim

    @property
    def num_patches(self):
        return self.featurizer.patch_embed.num_patches


def get_vision_backbone_and_transform(vision_backbone_id, image_resize_strategy):
    entry = sys.modules[REGISTRY].VISION_BACKBONES[vision_backbone_id]
    backbone = entry["cls"](vision_backbone_id, image_resize_strategy, **entry["kwargs"])
    return backbone, backbone.get_image_transform()


@pytest.fixture(params=["recorded", "real"])
def stack(request, monkeypatch):
    """Prismatic's registry; of the real code its two files, without the language models that they stand beside."""
    parts = BASE.split(".")
    for name in [".".join(parts[:end]) for end in range(1, len(parts))]:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    base, registry = types.ModuleType(BASE), types.ModuleType(REGISTRY)
    registry.VISION_BACKBONES = {"dinov2-vit-l": {"cls": object, "kwargs": {}}}
    if request.param == "real":
        models = clone("VDE_OPENVLA") / "prismatic" / "models"
        spec = importlib.util.spec_from_file_location(BASE, models / "backbones" / "vision" / "base_vision.py")
        base = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(base)
        kinds = {"VISION_BACKBONES": registry.VISION_BACKBONES, "VisionBackbone": nn.Module, "ImageTransform": Any}
        found = function(models / "materialize.py", get_vision_backbone_and_transform.__name__, Tuple=tuple, **kinds)
        registry.get_vision_backbone_and_transform = found
    else:
        base.TimmViTBackbone = TimmViTBackbone
        registry.get_vision_backbone_and_transform = get_vision_backbone_and_transform
    monkeypatch.setitem(sys.modules, BASE, base)
    monkeypatch.setitem(sys.modules, REGISTRY, registry)
    return registry


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    torch.manual_seed(0)
    config = ModelConfig(
        "vit_tiny_patch16_224", {"depth": 3, "embed_dim": 48}, mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7)
    )
    folder = tmp_path_factory.mktemp("models") / "encoder"
    Encoder(config.build_backbone(), config).save_pretrained(folder)
    return folder


def test_prismatic_sees_the_encoders_patches(stack, directory):
    prismatic.register("ours", directory)
    backbone, transform = stack.get_vision_backbone_and_transform("ours", "resize-naive")
    assert (backbone.embed_dim, backbone.num_patches) == (48, 196)
    picture = Image.open(bundled_photographs()[0])
    pixels = transform(picture)[None]
    encoder = Encoder.from_pretrained(directory)
    ours = encoder.preprocess(picture, crop_mode="squash")
    assert (pixels - ours).abs().mean() < 0.5 / 255 / 0.5  # PIL rounds to 8 bits on its way
    assert (pixels - encoder.preprocess(picture, crop_mode="center")).abs().mean() > 0.05
    with torch.no_grad():
        patches = backbone(pixels)
        expected = encoder.intermediate_layers(pixels, n=[1], norm=False)[0].patches
    assert torch.equal(patches, expected)


def test_the_readmes_lines(stack):
    exec(readme("prismatic"), {})
    backbone, transform = stack.get_vision_backbone_and_transform("vfd-vit-s", "resize-naive")
    patches = backbone(transform(Image.open(bundled_photographs()[0]))[None])
    assert patches.shape == (1, 196, 384)


def test_another_size_and_block_can_be_asked_for(stack, directory):
    prismatic.register("larger", directory, image_size=320, block=-1)
    backbone, transform = stack.get_vision_backbone_and_transform("larger", "resize-naive")
    assert backbone.num_patches == 400
    pixels = transform(Image.new("RGB", (64, 64), "red"))[None]
    expected = Encoder.from_pretrained(directory).intermediate_layers(pixels, n=[2], norm=False)[0].patches
    torch.testing.assert_close(backbone(pixels), expected)


def test_registers_are_no_patches_and_another_architecture_is_refused(stack, tmp_path):
    for name, arguments in {"vit_small_patch14_reg4_dinov2": {"img_size": 224}, "vit_small_patch16_dinov3": {}}.items():
        config = ModelConfig(name, {"depth": 2, **arguments})
        Encoder(config.build_backbone(), config).save_pretrained(tmp_path / name)
    prismatic.register("registers", tmp_path / "vit_small_patch14_reg4_dinov2")
    backbone, transform = stack.get_vision_backbone_and_transform("registers", "resize-naive")
    pixels = transform(Image.new("RGB", (64, 64), "red"))[None]
    encoder = Encoder.from_pretrained(tmp_path / "vit_small_patch14_reg4_dinov2")
    expected = encoder.intermediate_layers(pixels, n=[0], norm=False)[0].patches
    torch.testing.assert_close(backbone(pixels), expected)
    assert backbone.num_patches == 256
    with pytest.raises(InputError, match="Eva, and Prismatic takes its VisionTransformer alone"):
        prismatic.register("rotary", tmp_path / "vit_small_patch16_dinov3")


def test_a_name_that_is_taken_and_a_missing_prismatic_are_refused(stack, directory, monkeypatch):
    with pytest.raises(InputError, match="choose another name"):
        prismatic.register("dinov2-vit-l", directory)
    monkeypatch.setitem(sys.modules, REGISTRY, None)
    with pytest.raises(InputError, match="install it from a clone"):
        prismatic.register("ours", directory)
