import copy
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoImageProcessor,
    AutoModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
    YolosConfig,
    YolosModel,
)

from export.pipeline import export
from training.models.loading import Pixels, TransformersModel, choose_device, hash_weights, in_timm, load_model
from video_distilled_encoder import Encoder, InputError, ModelConfig


@pytest.fixture
def picture(photograph):
    return Image.open(photograph).convert("RGB").resize((96, 64))


def test_pixels_are_raw_patches(picture):
    grid = Pixels().encode([picture], (64, 96)).grid
    assert grid.shape == (1, 768, 4, 6)
    scaled = torch.tensor(np.array(picture)).permute(2, 0, 1) / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    scaled = scaled / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    assert torch.allclose(grid[0, :, 1, 2].view(3, 16, 16), scaled[:, 16:32, 32:48], atol=1e-5)


def test_rows_that_stand_beside_every_figure(picture):
    assert load_model("random", seed=3).description == {
        "name": "random",
        "seed": 3,
        "architecture": "vit_small_patch16_224",
    }
    one, two, other = (load_model("random", seed=seed).encode([picture], (32, 32)).grid for seed in (3, 3, 4))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    constant = load_model("constant").encode([picture, picture], (32, 48))
    assert constant.grid.shape == (2, 8, 2, 3)
    assert len(constant.patches.flatten(0, 1).unique(dim=0)) == 1


def test_an_encoder_gives_what_encode_gives(tiny, tiny_directory, picture):
    model = load_model(str(tiny_directory))
    assert len(model.description["weights_sha256"]) == 64
    found = model.encode([picture], (64, 96))
    expected = tiny.encode([picture], size=(64, 96), crop_mode="squash")
    assert torch.allclose(found.grid, expected.grid, atol=1e-5)
    assert torch.allclose(found.cls, expected.cls, atol=1e-5)
    several = model.encode([picture], (64, 96), layers=3)
    assert several.grid.shape == (1, 3 * 64, 4, 6)
    assert torch.allclose(several.grid[:, -64:], expected.grid, atol=1e-5)


def test_an_export_is_evaluated_in_its_runtime(shallow_directory, tmp_path, picture):
    pytest.importorskip("onnxruntime")
    out = tmp_path / "e.onnx"
    export(shallow_directory, out, size=(64, 96), layer_parity=False)
    model, reference = load_model(str(out)), load_model(str(shallow_directory))
    got, expected = (m.encode([picture, picture], (64, 96)) for m in (model, reference))
    assert torch.allclose(got.grid, expected.grid, atol=1e-4)
    assert torch.allclose(got.cls, expected.cls, atol=1e-4)
    assert model.description["weights_sha256"] == reference.description["weights_sha256"]
    assert model.description["precision"] == "fp32"
    with pytest.raises(InputError, match=r"takes \(batch, 3, 64, 96\)"):
        model.encode([picture], (64, 64))
    with pytest.raises(InputError, match="gives the last block's features"):
        model.encode([picture], (64, 96), layers=2)


@pytest.mark.parametrize(("name", "patch"), [("vit_tiny_patch16_224", 16), ("resnet18", 32), ("convnext_atto", 32)])
def test_a_timm_model_gives_what_its_forward_features_give(picture, name, patch):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0, **({"dynamic_img_size": True} if "vit" in name else {})).eval()
    model = in_timm(network, {"name": name})
    assert model.patch_size == patch
    size = model.nearest_size(64, 96)
    found = model.encode([picture], size)
    pixels = torch.tensor(np.array(picture)).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(network.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = network.forward_features((pixels - mean) / std)
    if "vit" in name:
        assert torch.allclose(found.patches, expected[:, 1:], atol=1e-5)
        assert torch.allclose(found.cls, expected[:, 0], atol=1e-5)
    else:
        assert found.grid.shape[-2:] == (2, 3)
        if name == "resnet18":
            assert torch.allclose(found.grid, expected, atol=1e-5)


def test_a_transformers_model_gives_what_it_gives_itself(picture, tmp_path):
    torch.manual_seed(0)
    size = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ViTModel(ViTConfig(image_size=96, patch_size=8, **size)).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 96, "width": 96}).save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    assert model.patch_size == 8
    square = picture.resize((96, 96))
    found = model.encode([square], (96, 96))
    inputs = AutoImageProcessor.from_pretrained(tmp_path)(square, return_tensors="pt", do_resize=False)
    with torch.no_grad():
        expected = AutoModel.from_pretrained(tmp_path)(**inputs).last_hidden_state
    assert torch.allclose(found.patches, expected[:, 1:], atol=1e-4)
    assert torch.allclose(found.grid.flatten(2).mT, found.patches)
    assert model.encode([picture], (64, 96), layers=2).grid.shape == (1, 96, 8, 12)


@pytest.mark.filterwarnings("ignore:.*unchecked")
def test_a_directory_of_transformers_that_is_read_here_is_an_encoder(picture, tmp_path):
    torch.manual_seed(0)
    Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(
            image_size=32, patch_size=8, hidden_size=48, num_hidden_layers=2, num_attention_heads=2
        )
    ).save_pretrained(tmp_path)
    found = load_model(str(tmp_path)).encode([picture], (32, 32))
    expected = Encoder.from_pretrained(tmp_path).encode(picture, size=32, crop_mode="squash")
    assert torch.equal(found.grid, expected.grid)
    by_transformers = AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        pixels = Encoder.from_pretrained(tmp_path).preprocess(picture, size=32, crop_mode="squash")
        assert torch.allclose(found.patches, by_transformers(pixels).last_hidden_state[:, 5:], atol=1e-4)


TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.mark.parametrize(
    ("network", "config", "first"),
    [
        (YolosModel, YolosConfig(image_size=[32, 32], patch_size=8, num_detection_tokens=5, **TINY), 1),
        (Dinov2WithRegistersModel, Dinov2WithRegistersConfig(image_size=32, patch_size=8, **TINY), 5),
        (SiglipVisionModel, SiglipVisionConfig(image_size=32, patch_size=8, **TINY), 0),
    ],
    ids=["registers behind", "registers before", "patches alone"],
)
def test_patches_are_found_wherever_their_tokens_stand(picture, network, config, first):
    torch.manual_seed(0)
    model = TransformersModel(network(config).eval(), ModelConfig(), {"name": "tiny"}, "cpu")
    pixels = torch.randn(1, 3, 32, 48)
    cls, grid = model._features(pixels, 1)
    with torch.no_grad():
        tokens = model.network(pixels, interpolate_pos_encoding=True).last_hidden_state if first != 5 else None
        tokens = model.network(pixels).last_hidden_state if tokens is None else tokens
    patches = tokens[:, first : first + 24]
    assert torch.allclose(grid, patches.mT.unflatten(2, (4, 6)), atol=1e-6)
    assert torch.allclose(cls, tokens[:, 0] if first else patches.mean(1), atol=1e-6)
    assert model.encode([picture], (64, 96)).grid.shape == (1, 32, 8, 12)


@pytest.mark.parametrize(
    ("network", "config"),
    [
        (ViTMAEModel, ViTMAEConfig(image_size=32, patch_size=8, **TINY)),
        (
            SwinModel,
            SwinConfig(patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=4),
        ),
    ],
    ids=["three patches in four are left out", "patches are merged"],
)
def test_networks_without_a_token_for_each_patch_are_refused(picture, network, config):
    model = TransformersModel(network(config).eval(), ModelConfig(), {"name": "tiny"}, "cpu")
    with pytest.raises(InputError, match="transformers' tiny does not give a token for each patch"):
        model.encode([picture], (32, 32))


def test_a_size_that_a_network_refuses_is_one_sentence(picture):
    network = SiglipVisionModel(SiglipVisionConfig(image_size=32, patch_size=8, **TINY)).eval()
    model = TransformersModel(network, ModelConfig(), {"name": "tiny"}, "cpu")
    model.options = {}
    with pytest.raises(InputError, match=r"transformers' tiny takes no image of 32 x 48 pixels: The size"):
        model.encode([picture], (32, 48))


@pytest.mark.parametrize("pool", ["avg", "map"])
def test_without_a_class_token_timms_pooling_stands_for_it(picture, pool):
    torch.manual_seed(0)
    network = timm.create_model(
        "vit_tiny_patch16_224", class_token=False, reg_tokens=4, global_pool=pool, num_classes=0, dynamic_img_size=True
    ).eval()
    model = in_timm(network, {"name": "tiny"})
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found = model.features(pixels, model.config, (64, 96))
        assert torch.allclose(found.cls, network(pixels), atol=1e-6)
        assert torch.allclose(found.patches, network.forward_features(pixels)[:, 4:], atol=1e-6)
    with pytest.raises(InputError, match="tiny: its only maps are 16 times smaller than the image"):
        in_timm(network, {"name": "tiny"}, strides=[8])
    assert in_timm(network, {"name": "tiny"}, strides=[16]).patch_size == 16


def test_the_device_is_cuda_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(None) == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(None) == choose_device("cpu") == "cpu"
    for name in ("gpu", "cuda:77"):
        with pytest.raises(InputError, match=f"there is no device '{name}' here .*; give cpu or cuda"):
            load_model("pixels", device=name)


def test_names_that_are_none_are_refused(tmp_path):
    for name, message in (
        ("nothing", "neither a directory"),
        ("timm:no_such_model", "timm has no model 'no_such_model'"),
        (f"transformers:{tmp_path}", "transformers cannot load"),
    ):
        with pytest.raises(InputError, match=message):
            load_model(name)


def test_the_hash_knows_every_weight(tiny):
    before = hash_weights(tiny)
    with torch.no_grad():
        tiny.backbone.blocks[3].attn.proj.bias[5] += 1
        assert hash_weights(tiny) != before
        tiny.backbone.blocks[3].attn.proj.bias[5] -= 1


def test_a_name_may_say_which_map_is_meant(monkeypatch, picture):
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **options: create(name, num_classes=0))
    model = load_model("timm:resnet10t@16")
    assert model.description["name"] == "timm:resnet10t@16"
    assert model.licence == "apache-2.0"
    assert model.encode([picture], (64, 96)).grid.shape[-2:] == (4, 6)


def test_several_maps_are_folded_to_the_coarsest(monkeypatch, picture):
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=0)
    monkeypatch.setattr(timm, "create_model", lambda name, **options: network)
    fine, coarse, both = (load_model(f"timm:resnet10t@{which}") for which in ("16", "32", "16+32"))
    assert both.patch_size == 32
    maps = [model.encode([picture], (64, 96)).grid for model in (fine, coarse, both)]
    channels = maps[0].shape[1]
    assert maps[2].shape == (1, 4 * channels + maps[1].shape[1], 2, 3)
    assert torch.equal(maps[2][:, 4 * channels :], maps[1])
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        assert torch.equal(maps[2][:, 2 * row + column : 4 * channels : 4], maps[0][:, :, row::2, column::2])
    with pytest.raises(InputError, match="its maps are 2, 4, 8, 16, 32 times smaller than the image, not 12"):
        load_model("timm:resnet10t@12+32")


def test_openvino_may_be_copied_and_its_tracing_is_no_arithmetic(picture, shallow_directory):
    pytest.importorskip("openvino")
    model = load_model(f"openvino:{shallow_directory}")
    copied = copy.deepcopy({"teacher": model})["teacher"]
    counts, grids = [], []
    for _ in range(2):  # the first call traces and compiles
        with FlopCounterMode(display=False) as counter:
            grids.append(copied.encode([picture], (64, 96)).grid)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]
    assert torch.equal(grids[0], model.encode([picture], (64, 96)).grid)


def test_openvino_in_bf16_is_coarser_where_the_processor_computes_in_it(picture, shallow_directory):
    openvino = pytest.importorskip("openvino")
    exact, coarse = (load_model(f"{runtime}:{shallow_directory}") for runtime in ("openvino", "openvino-bf16"))
    assert coarse.description["name"] == "openvino-bf16:shallow"
    found, expected = (model.encode([picture], (64, 96)).patches for model in (coarse, exact))
    assert torch.cosine_similarity(found, expected, dim=-1).min() > 0.999
    computes = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert torch.equal(found, expected) != computes


@pytest.mark.parametrize("name", ["timm:resnet10t@16+32", "{shallow}"])
def test_openvino_gives_the_same_features_at_any_size(monkeypatch, picture, shallow_directory, name):
    pytest.importorskip("openvino")
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **o: create(name, **o))
    torch.manual_seed(0)
    converted = load_model(f"openvino:{name.format(shallow=shallow_directory)}")
    assert converted.description["name"].startswith("openvino:")
    for size in ((64, 96), (96, 64)):
        expected, got = (model.encode([picture, picture], size)[:3] for model in (converted.model, converted))
        for one, other in zip(expected, got, strict=True):
            assert one.shape == other.shape
            assert torch.nn.functional.cosine_similarity(one.flatten(1), other.flatten(1)).min() > 0.999999
            assert (one - other).abs().max() < 2e-3 * one.abs().max()
    with pytest.raises(InputError, match="computes on the CPU; leave out openvino: to use cuda"):
        converted.to(torch.device("cuda"))


def test_a_run_is_told_from_its_encoder(tiny_directory, tmp_path):
    shutil.copytree(tiny_directory, tmp_path / "run" / "encoder")
    with pytest.raises(InputError, match=r"run is a run; its encoder is .*run/encoder"):
        load_model(str(tmp_path / "run"))
    (tmp_path / "run" / "encoder" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load_model(str(tmp_path / "run" / "encoder"))
