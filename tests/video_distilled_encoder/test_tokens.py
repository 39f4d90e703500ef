"""One set of tokens for every family of timm's vision transformers: true shapes but for two blocks, random weights."""

import ast
import json
import re
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from torch import nn

from export.pipeline import export
from video_distilled_encoder import Encoder, InputError, ModelConfig, load_runtime
from video_distilled_encoder.tokens import TokenLayout

FAMILIES = {  # prefix tokens, class token, patch size
    "vit_small_patch14_reg4_dinov2": (5, True, 14),
    "vit_small_patch16_dinov3": (5, True, 16),
    "vit_base_patch16_siglip_224": (0, False, 16),
    "vit_pe_spatial_small_patch16_512": (1, True, 16),
    "eva02_small_patch14_224": (1, True, 14),
    "aimv2_large_patch14_224": (0, False, 14),
    "deit_small_distilled_patch16_224": (2, True, 16),
    "beit_base_patch16_224": (1, True, 16),
}


@pytest.fixture(scope="module")
def encoder_of():
    """Return encoders by architecture, none of whose parameters is zero: new ones hide mistakes."""
    made = {}

    def make(architecture):
        if architecture not in made:
            torch.manual_seed(0)
            size = 224 if architecture.startswith("beit") else 8 * FAMILIES[architecture][2]
            narrow = {"embed_dim": 192, "num_heads": 3} if re.search("base|large", architecture) else {}
            config = ModelConfig(architecture, {"depth": 2, "img_size": size, **narrow}, mean=(0.5, 0.4, 0.3))
            backbone = config.build_backbone().eval()
            for parameter in backbone.parameters():
                nn.init.normal_(parameter, float(parameter.ndim == 1), 0.03)
            made[architecture] = Encoder(backbone, config)
        return made[architecture]

    return make


@pytest.mark.parametrize("architecture", FAMILIES)
@torch.no_grad()
def test_features_are_timms(architecture, encoder_of):
    encoder, (prefix, has_cls, patch) = encoder_of(architecture), FAMILIES[architecture]
    assert (encoder.tokens.prefix, encoder.tokens.has_cls, encoder.patch_size) == (prefix, has_cls, patch)
    height, width = encoder.image_size
    sizes = [(height, width)] if encoder.tokens.only_size else [(height, width), (3 * patch, 5 * patch)]
    for size in sizes:
        pixels = torch.randn(2, 3, *size)
        tokens = encoder.backbone.forward_features(pixels)
        out = encoder(pixels)
        rows, columns = size[0] // patch, size[1] // patch
        assert torch.equal(out.patches, tokens[:, prefix:])
        assert out.grid.shape == (2, encoder.embed_dim, rows, columns)
        assert torch.equal(out.grid[:, :, 1, 2], out.patches[:, columns + 2])
        assert torch.equal(out.registers, tokens[:, int(has_cls) : prefix])
        pooled = tokens[:, 0] if has_cls else encoder.backbone.forward_head(tokens, pre_logits=True)
        assert torch.equal(out.cls, pooled)
        (last,) = encoder.intermediate_layers(pixels, n=[1])
        assert torch.allclose(last.patches, out.patches, atol=1e-5)
        assert torch.equal(last.registers.bool(), out.registers.bool())
        assert encoder.encode(torch.rand(2, 4, 3, 60, 80), size=size).patches.shape[:3] == (2, 4, rows * columns)


def test_a_family_of_one_size_says_so(encoder_of):
    encoder = encoder_of("beit_base_patch16_224")
    with pytest.raises(InputError, match="takes 224x224 alone, got 224x240"):
        encoder.encode(Image.new("RGB", (300, 300)), size=(224, 240))


@pytest.mark.parametrize("architecture", FAMILIES)
@torch.no_grad()
def test_one_file_of_weights_for_three_loaders(architecture, encoder_of, tmp_path):
    transformers = pytest.importorskip("transformers")
    encoder = encoder_of(architecture)
    encoder.save_pretrained(tmp_path / "saved")
    loaded = Encoder.from_pretrained(tmp_path / "saved")
    in_timm = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    in_transformers = transformers.AutoModel.from_pretrained(tmp_path / "saved").eval()
    assert loaded.config.mean == encoder.config.mean
    assert tuple(in_timm.pretrained_cfg["mean"]) == (0.5, 0.4, 0.3)
    height, width = encoder.image_size
    assert loaded.image_size == (height, width)
    other = (height, width) if encoder.tokens.only_size else (height - encoder.patch_size, width)
    for size in ((height, width), other):
        pixels = torch.randn(1, 3, *size)
        tokens = encoder.backbone.forward_features(pixels)
        assert torch.equal(loaded(pixels).cls, encoder(pixels).cls)
        assert torch.equal(in_timm.forward_features(pixels), tokens)
        assert torch.equal(in_transformers(pixels).last_hidden_state, tokens)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("vit_small_patch14_reg4_dinov2", {"format": "openvino", "outputs": ("cls", "patches", "registers")}),
        (
            "vit_small_patch16_dinov3",
            {"format": "onnx", "dynamic_size": True, "outputs": ("registers", "layer_0", "cls")},
        ),
        ("vit_base_patch16_siglip_224", {"format": "onnx", "precision": "int8"}),
        ("beit_base_patch16_224", {"format": "onnx"}),
    ],
)
def test_exports_give_the_same_features(architecture, options, encoder_of, tmp_path):
    pytest.importorskip("openvino" if options["format"] == "openvino" else "onnxruntime")
    encoder = encoder_of(architecture)
    encoder.save_pretrained(tmp_path / "saved")
    out = tmp_path / ("encoder.xml" if options["format"] == "openvino" else "encoder.onnx")
    artefact = export(tmp_path / "saved", out, layer_parity=False, **options)  # which compares all outputs with torch
    assert (artefact.prefix, artefact.has_cls) == FAMILIES[architecture][:2]
    runtime = load_runtime(out, "cpu")
    pixels = torch.randn(2, 3, *encoder.image_size)
    found = runtime.run(pixels)
    assert {name: output.shape for name, output in found.items()} == {
        name: artefact.output_shape(name, 2, encoder.image_size) for name in artefact.outputs
    }
    if "registers" in artefact.outputs:
        assert torch.allclose(found["registers"], encoder(pixels).registers, atol=1e-4)
    if "layer_0" in artefact.outputs:
        (ours,), (theirs,) = encoder.intermediate_layers(pixels, n=[0]), runtime.intermediate_layers(pixels)
        for one, other in zip(ours, theirs, strict=True):
            assert torch.allclose(one, other, atol=1e-4)


def test_what_a_family_has_not_is_refused_before_work(encoder_of, tmp_path):
    for architecture in ("beit_base_patch16_224", "vit_base_patch16_siglip_224"):
        encoder_of(architecture).save_pretrained(tmp_path / architecture)
    with pytest.raises(InputError, match="takes one size of image; export without --dynamic-size"):
        export(tmp_path / "beit_base_patch16_224", tmp_path / "x.onnx", dynamic_size=True)
    with pytest.raises(InputError, match="takes 224x224 alone, got 112x112"):
        export(tmp_path / "beit_base_patch16_224", tmp_path / "x.onnx", size=(112, 112))
    with pytest.raises(InputError, match="outputs are one or more of cls, patches, grid, layer_0"):
        export(tmp_path / "vit_base_patch16_siglip_224", tmp_path / "x.onnx", outputs=("registers",))


@pytest.mark.parametrize("name", ["resnet10t", "swin_tiny_patch4_window7_224", "convnext_atto"])
def test_what_has_no_one_grid_of_tokens_is_refused(name):
    with torch.device("meta"), pytest.raises(InputError, match="is not one of timm's vision transformers"):
        TokenLayout.of(timm.create_model(name))


@torch.no_grad()
def test_behind_a_convolutional_network_a_patch_is_what_a_token_stands_for():
    config = ModelConfig("vit_tiny_r_s16_p8_224", {"depth": 1})
    encoder = Encoder(config.build_backbone().eval(), config)
    assert encoder.patch_size == 32
    pixels = torch.randn(1, 3, 64, 96)
    out = encoder(pixels)
    assert out.grid.shape[-2:] == (2, 3)
    assert torch.equal(out.patches, encoder.backbone.forward_features(pixels)[:, 1:])


def transformers_directory(kind, folder):
    """Write a model of transformers' own, none of whose parameters is zero, and return it."""
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    configs = {
        "dinov2": lambda: transformers.Dinov2Config(**shape, image_size=42, patch_size=14),
        "swiglu": lambda: transformers.Dinov2Config(**shape, image_size=42, patch_size=14, use_swiglu_ffn=True),
        "registers": lambda: transformers.Dinov2WithRegistersConfig(**shape, image_size=42, patch_size=14),
        "dinov3": lambda: transformers.DINOv3ViTConfig(
            **shape, image_size=48, patch_size=16, intermediate_size=256, num_register_tokens=4
        ),
        "dinov3 gated": lambda: transformers.DINOv3ViTConfig(
            **shape,
            image_size=48,
            patch_size=16,
            intermediate_size=128,
            num_register_tokens=3,
            use_gated_mlp=True,
            hidden_act="silu",
        ),
    }
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(configs[kind]()).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, float(parameter.ndim == 1), 0.05)
    model.save_pretrained(folder)
    processor = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 1, "size": {"height": 48, "width": 48}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


@pytest.mark.filterwarnings("ignore:.*unchecked")
@pytest.mark.parametrize("kind", ["dinov2", "swiglu", "registers", "dinov3", "dinov3 gated"])
@torch.no_grad()
def test_a_directory_of_transformers_alone_gives_its_features(kind, tmp_path):
    theirs = transformers_directory(kind, tmp_path)
    encoder = Encoder.from_pretrained(tmp_path)
    side = theirs.config.image_size
    assert encoder.image_size == (side, side)
    config = encoder.config
    assert (config.mean, config.crop_mode, config.interpolation) == ((0.5, 0.5, 0.5), "squash", "lanczos")
    for size in [(side, side)] + [(64, 96)] * kind.startswith("dinov3"):
        pixels = torch.randn(2, 3, *size)
        expected = theirs(pixels).last_hidden_state
        out = encoder(pixels)
        prefix = encoder.tokens.prefix
        assert torch.allclose(out.cls, expected[:, 0], atol=1e-5)
        assert torch.allclose(out.registers, expected[:, 1:prefix], atol=1e-5)
        assert torch.allclose(out.patches, expected[:, prefix:], atol=1e-5)
    encoder.save_pretrained(tmp_path / "again")
    assert torch.equal(Encoder.from_pretrained(tmp_path / "again")(pixels).cls, out.cls)


@pytest.mark.filterwarnings("ignore:.*unchecked")
def test_what_timm_has_no_equal_of_is_refused(tmp_path):
    transformers_directory("dinov3", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"key_bias": True}))
    with pytest.raises(InputError, match=r"config\.json is not a model's configuration: timm has no dinov3_vit"):
        Encoder.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(InputError, match="timm has no dinov3_vit with the activation relu"):
        Encoder.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    processor = json.loads((tmp_path / "preprocessor_config.json").read_text()) | {"resample": 4}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(InputError, match=r"filter 4 to resize images is not known here, which has 1 \(lanczos\), 2"):
        Encoder.from_pretrained(tmp_path)
    processor |= {"resample": 1}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor | {"do_rescale": False}))
    with pytest.raises(InputError, match="not rescaled by 1/255"):
        Encoder.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor | {"do_normalize": False}))
    assert Encoder.from_pretrained(tmp_path).preprocess(torch.full((3, 48, 48), 0.25)).unique().item() == 0.25
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(InputError, match=r"model\.safetensors lacks blocks\.2"):
        Encoder.from_pretrained(tmp_path)


def test_nobody_else_counts_the_tokens_before_the_patches():
    """What slices tokens must know how many are no patches: only tokens.py may ask a backbone."""
    top, asking = Path(__file__).parents[2], set()
    for folder in ("video_distilled_encoder", "export", "training"):
        for path in (top / folder).rglob("*.py"):
            nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
            names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
            names |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
            if names & {"num_prefix_tokens", "num_reg_tokens", "cls_token", "return_prefix_tokens"}:
                asking.add(path.relative_to(top).as_posix())
    tables_of_weights = {"video_distilled_encoder/from_transformers.py", "training/evaluation/finetune/backbone.py"}
    assert asking == {"video_distilled_encoder/tokens.py", *tables_of_weights}
