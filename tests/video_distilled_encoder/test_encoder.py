import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from video_distilled_encoder import Encoder, InputError, ModelConfig
from video_distilled_encoder.files import sha256


def forms_of(path):
    image = Image.open(path).convert("RGB")
    array = np.array(image)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    return {
        "path": path,
        "string": str(path),
        "PIL": image,
        "numpy": array,
        "numpy float": array.astype(np.float32) / 255,
        "torch uint8": tensor,
        "torch float": tensor.float() / 255,
        "torch batch": tensor[None],
        "list": [image],
    }


@pytest.fixture(scope="module")
def reference(encoder, photograph):
    return encoder.encode(photograph)


@pytest.mark.parametrize(
    "form",
    ["string", "PIL", "numpy", "numpy float", "torch uint8", "torch float", "torch batch", "list"],
)
def test_every_form_of_one_photograph_gives_the_same_features(encoder, photograph, reference, form):
    out = encoder.encode(forms_of(photograph)[form])
    for name in ("cls", "patches", "grid"):
        assert torch.allclose(getattr(out, name), getattr(reference, name), atol=1e-5), name


def test_shapes_and_grid(reference):
    assert reference.cls.shape == (1, 384)
    assert reference.patches.shape == (1, 196, 384)
    assert reference.grid.shape == (1, 384, 14, 14)
    assert torch.equal(reference.grid[0, :, 2, 5], reference.patches[0, 2 * 14 + 5])


def test_a_batch_equals_its_single_images(encoder, photograph):
    image = Image.open(photograph).convert("RGB")
    images = [image, image.transpose(0), image.rotate(30)]
    together = encoder.encode(images)
    for row, single in enumerate(images):
        assert torch.allclose(together.patches[row], encoder.encode(single).patches[0], atol=1e-5)


def test_cameras_come_back_as_cameras(tiny):
    frames = torch.randint(0, 256, (3, 2, 3, 60, 80), dtype=torch.uint8)
    out = tiny.encode(frames)
    assert [tuple(x.shape) for x in out] == [(3, 2, 64), (3, 2, 196, 64), (3, 2, 64, 14, 14), (3, 2, 0, 64)]
    alone = tiny.encode(frames[2, 1])
    assert torch.allclose(out.grid[2, 1], alone.grid[0], atol=1e-5)
    nested = tiny.encode([list(step) for step in frames])
    assert torch.allclose(nested.cls, out.cls, atol=1e-5)


def assert_equal_but_for_rounding(one, other, most=4):
    """PIL rounds and clips to 8 bits after each of its two passes; ours does not."""
    levels = (one - other).abs() * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1) * 255
    assert levels.mean() < 0.3
    assert levels.flatten().quantile(0.998) < 1
    assert levels.max() < most


def test_preprocessing_agrees_with_timm_but_for_rounding(encoder, photograph):
    image = Image.open(photograph).convert("RGB")
    config = encoder.config
    transform = timm.data.create_transform(
        (3, 224, 224), interpolation="bicubic", crop_pct=0.9, mean=config.mean, std=config.std
    )
    assert_equal_but_for_rounding(transform(image)[None], encoder.preprocess(image))


@pytest.mark.parametrize("frame", [(720, 1280), (480, 640), (480, 848), (640, 360)])
@pytest.mark.parametrize("size", [(224, 224), (224, 384), (256, 448), (352, 480), (448, 224)])
def test_a_centre_crop_of_any_shape_is_that_of_timm(tiny, photograph, frame, size):
    image = Image.open(photograph).convert("RGB").resize(frame[::-1])
    transform = timm.data.create_transform(
        (3, *size), interpolation="bicubic", crop_pct=0.9, mean=tiny.config.mean, std=tiny.config.std
    )
    assert_equal_but_for_rounding(transform(image)[None], tiny.preprocess(image, size=size), 8)


def test_a_network_of_timms_is_taken_with_timms_preprocessing(photograph):
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    encoder = Encoder(network.eval())
    data = timm.data.resolve_data_config(model=network)
    assert encoder.config.mean == data["mean"] == (0.5, 0.5, 0.5)
    image = Image.open(photograph).convert("RGB")
    assert_equal_but_for_rounding(timm.data.create_transform(**data)(image)[None], encoder.preprocess(image))


@pytest.mark.parametrize(
    ("size", "mode", "shape"),
    [
        (96, "center", (96, 96)),
        ((96, 160), "center", (96, 160)),
        ((96, 160), "squash", (96, 160)),
        (224, "whole", (224, 400)),
        (None, "whole", (224, 400)),
    ],
)
def test_sizes_and_crop_modes(tiny, photograph, size, mode, shape):
    out = tiny.encode(photograph, size=size, crop_mode=mode)
    assert out.grid.shape[-2:] == (shape[0] // 16, shape[1] // 16)


def test_forward_is_differentiable_and_takes_any_multiple_of_16(tiny):
    pixels = torch.randn(1, 3, 48, 112, requires_grad=True)
    out = tiny(pixels)
    assert out.grid.shape == (1, 64, 3, 7)
    out.patches.square().sum().backward()
    assert pixels.grad.abs().sum() > 0


def test_weights_loaded_in_inference_mode_can_be_trained(tiny_directory, photograph):
    with torch.inference_mode():
        encoder = Encoder.from_pretrained(tiny_directory)
        pixels = encoder.preprocess(photograph, size=32)
    encoder(pixels.clone()).cls.sum().backward()
    assert encoder.backbone.blocks[0].mlp.fc1.weight.grad is not None


def test_features_can_train_a_head(tiny, photograph):
    head = torch.nn.Linear(64, 2)
    head(tiny.encode(photograph).cls).sum().backward()
    assert head.weight.grad is not None


@pytest.mark.parametrize(("n", "norm"), [(4, True), ([2, 5, 8, 11], False), (1, True)])
def test_intermediate_layers_equal_timms(encoder, n, norm):
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        ours = encoder.intermediate_layers(pixels, n=n, norm=norm)
        theirs = encoder.backbone.get_intermediate_layers(pixels, n, return_prefix_tokens=True, norm=norm)
        last = encoder(pixels)
    assert len(ours) == len(theirs)
    for mine, (patches, prefix) in zip(ours, theirs, strict=True):
        assert torch.equal(mine.patches, patches)
        assert torch.equal(mine.cls, prefix[:, 0])
    if norm:
        assert torch.allclose(ours[-1].patches, last.patches, atol=1e-6)


@pytest.mark.parametrize("n", ["2", 2.0, torch.tensor(2), [1.5], [6], 0])
def test_blocks_that_are_not_there_are_refused(tiny, n):
    with pytest.raises(InputError, match="the encoder has blocks 0 to 5"):
        tiny.intermediate_layers(torch.zeros(1, 3, 32, 32), n=n)


@pytest.mark.parametrize("dtype", ["float16", torch.int8, torch.complex64])
def test_weights_are_floating_point(tiny, tiny_directory, tmp_path, dtype):
    with pytest.raises(InputError, match=r"dtype is a floating-point type, such as torch\.float16; got"):
        Encoder.from_pretrained(tiny_directory, dtype=dtype)
    with pytest.raises(InputError, match="dtype is a floating-point type"):
        tiny.save_pretrained(tmp_path / "out", dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_half_precision(tiny, tiny_directory, photograph):
    expected = tiny.encode(photograph).patches
    for dtype in (torch.float16, torch.bfloat16):
        out = Encoder.from_pretrained(tiny_directory, dtype=dtype).encode(photograph).patches
        assert out.dtype == dtype
        assert torch.nn.functional.cosine_similarity(out.float(), expected, dim=-1).min() > 0.995


def test_the_graph_compiles_whole(tiny):
    pixels = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(tiny, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.allclose(compiled(pixels).patches, tiny(pixels).patches, atol=1e-5)


# --- the model directory ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directory(encoder, tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "encoder"
    encoder.save_pretrained(directory)
    return directory


def test_one_directory_three_loaders_one_result(encoder, directory, photograph):
    transformers = pytest.importorskip("transformers")
    pixels = encoder.preprocess(photograph)
    ours = Encoder.from_pretrained(directory)
    theirs = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    model, report = transformers.AutoModel.from_pretrained(directory, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        out = ours(pixels)
        tokens = torch.cat([out.cls[:, None], out.patches], 1)
        assert torch.allclose(theirs.forward_features(pixels), tokens, atol=1e-5)
        hidden = model.eval()(pixels)
    assert torch.allclose(hidden.last_hidden_state, tokens, atol=1e-5)
    assert torch.allclose(hidden.pooler_output, out.cls, atol=1e-5)
    assert torch.equal(out.patches, encoder(pixels).patches)


def test_transformers_agrees_at_another_size_and_in_its_own_processor(encoder, directory, photograph):
    transformers = pytest.importorskip("transformers")
    processor = transformers.AutoImageProcessor.from_pretrained(directory)
    pixels = processor(Image.open(photograph), return_tensors="pt").pixel_values
    assert_equal_but_for_rounding(pixels, encoder.preprocess(photograph))
    model = transformers.AutoModel.from_pretrained(directory).eval()
    pixels = torch.randn(1, 3, 240, 336)
    with torch.no_grad():
        out = encoder(pixels)
        assert torch.allclose(model(pixels).last_hidden_state[:, 1:], out.patches, atol=1e-5)


def test_directory_holds_one_file_of_weights_checksums_and_card(directory):
    names = {path.name for path in directory.iterdir()}
    assert names == {"config.json", "model.safetensors", "SHA256SUMS", "README.md"}
    assert (directory / "README.md").read_text() == "# A test encoder\n"
    sums = dict(reversed(line.split("  ")) for line in (directory / "SHA256SUMS").read_text().splitlines())
    assert sums == {name: sha256(directory / name) for name in names - {"SHA256SUMS", "README.md"}}
    assert all(path.stat().st_mode & 0o044 for path in directory.iterdir())


def test_saving_again_keeps_everything(directory, tmp_path):
    Encoder.from_pretrained(directory).save_pretrained(tmp_path / "again")
    for path in directory.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_saving_in_half_precision(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "half", dtype=torch.float16)
    assert {t.dtype for t in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.float16}
    loaded = Encoder.from_pretrained(tmp_path / "half")
    assert loaded.dtype == torch.float32


def test_other_mean_and_std_travel_with_the_weights(tmp_path):
    config = ModelConfig(architecture="vit_tiny_patch16_224", mean=(0.5, 0.5, 0.5), std=(0.4, 0.4, 0.4), crop_pct=1.0)
    Encoder(config.build_backbone(), config).save_pretrained(tmp_path / "other")
    loaded = Encoder.from_pretrained(tmp_path / "other")
    assert (loaded.config.mean, loaded.config.std, loaded.config.crop_pct) == ((0.5,) * 3, (0.4,) * 3, 1.0)


def changed(directory, copy, change):
    """Copy a model directory, and change its config.json."""
    shutil.copytree(directory, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(change(config)))
    (copy / "SHA256SUMS").unlink()
    return copy


@pytest.mark.filterwarnings("ignore:.*unchecked")
def test_an_older_flat_configuration_is_read_as_timm_reads_it(tiny_directory, tmp_path):
    own = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "crop_pct": 1.0, "interpolation": "bilinear"}

    def flatten(config):
        return {key: value for key, value in config.items() if key != "pretrained_cfg"} | config["pretrained_cfg"] | own

    flat = changed(tiny_directory, tmp_path / "flat", flatten)
    nested = changed(tiny_directory, tmp_path / "nested", lambda c: c | {"pretrained_cfg": c["pretrained_cfg"] | own})
    config = Encoder.from_pretrained(flat).config
    assert config == Encoder.from_pretrained(nested).config
    assert (config.mean, config.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert (config.crop_pct, config.interpolation) == (1.0, "bilinear")


@pytest.mark.filterwarnings("ignore:.*unchecked")
def test_the_crop_mode_of_a_configuration_is_kept(tiny_directory, tmp_path, photograph):
    def with_mode(mode, share=1.0):
        fitting = {"crop_mode": mode, "crop_pct": share}
        return changed(
            tiny_directory,
            tmp_path / f"{mode}{share}",
            lambda c: c | {"pretrained_cfg": c["pretrained_cfg"] | fitting},
        )

    squash = Encoder.from_pretrained(with_mode("squash"))
    image = Image.open(photograph).convert("RGB")
    pixels = squash.preprocess(image)
    assert torch.equal(pixels, squash.preprocess(image, crop_mode="squash"))
    assert not torch.equal(pixels, squash.preprocess(image, crop_mode="center"))
    squash.save_pretrained(tmp_path / "again")
    assert Encoder.from_pretrained(tmp_path / "again").config == squash.config
    transform = timm.data.create_transform(
        **timm.data.resolve_data_config(
            {
                "input_size": (3, 224, 224),
                **json.loads((tmp_path / "again" / "config.json").read_text())["pretrained_cfg"],
            }
        )
    )
    assert_equal_but_for_rounding(transform(image)[None], pixels, 8)
    theirs = pytest.importorskip("transformers").AutoImageProcessor.from_pretrained(tmp_path / "again")
    assert_equal_but_for_rounding(theirs(image, return_tensors="pt")["pixel_values"], pixels, 8)
    assert Encoder.from_pretrained(with_mode("center")).config.crop_mode == "center"
    with pytest.raises(InputError, match="crop_mode must be center or squash, got 'border'"):
        Encoder.from_pretrained(with_mode("border"))
    with pytest.raises(InputError, match="squash keeps the whole image, so crop_pct must be 1"):
        Encoder.from_pretrained(with_mode("squash", 0.9))


def copy_of(directory, tmp_path):
    return shutil.copytree(directory, tmp_path / "copy")


def test_a_flipped_byte_is_refused(tiny_directory, tmp_path):
    copy = copy_of(tiny_directory, tmp_path)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1000] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match=r"model\.safetensors does not match its checksum"):
        Encoder.from_pretrained(copy)


def test_a_truncated_file_without_checksums_is_refused(tiny_directory, tmp_path):
    copy = copy_of(tiny_directory, tmp_path)
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[:-1000])
    (copy / "SHA256SUMS").unlink()
    with pytest.warns(UserWarning, match="unchecked"), pytest.raises(InputError, match=r"safetensors is damaged"):
        Encoder.from_pretrained(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("norm.bias"), "lacks norm.bias"),
        (lambda s: s.update({"neck.weight": torch.zeros(3)}), "unexpected neck.weight"),
        (lambda s: s.update({"norm.bias": torch.zeros(3)}), r"norm.bias is \(3,\), expected \(64,\)"),
    ],
)
def test_missing_extra_and_misshapen_tensors_are_refused(tiny_directory, tmp_path, change, message):
    copy = copy_of(tiny_directory, tmp_path)
    state = load_file(copy / "model.safetensors")
    change(state)
    save_file(state, copy / "model.safetensors")
    sums = (copy / "SHA256SUMS").read_text().splitlines()
    fresh = [
        f"{sha256(copy / 'model.safetensors')}  model.safetensors" if line.endswith("  model.safetensors") else line
        for line in sums
    ]
    (copy / "SHA256SUMS").write_text("\n".join(fresh) + "\n")
    with pytest.raises(InputError, match=message):
        Encoder.from_pretrained(copy)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("not json", "not a model's configuration"),
        ("{}", "names no timm"),
        ('{"architecture": "resnet18"}', "ResNet is not one of timm's vision transformers"),
        ('{"architecture": "no_such_thing"}', "timm has no architecture"),
        ('{"architecture": "vit_tiny_patch16_224", "model_args": {"checkpoint_path": "x.pth"}}', "not arguments"),
        ('{"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"mean": [1]}}', "three numbers"),
    ],
)
def test_a_wrong_configuration_is_refused(tiny_directory, tmp_path, config, message):
    copy = copy_of(tiny_directory, tmp_path)
    (copy / "config.json").write_text(config)
    (copy / "SHA256SUMS").unlink()
    with pytest.warns(UserWarning, match="unchecked"), pytest.raises(InputError, match=message):
        Encoder.from_pretrained(copy)


def test_nothing_is_left_when_saving_fails(tiny, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write"):
        tiny.save_pretrained(tmp_path / "file" / "encoder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((20, 30), np.uint8), r"must be \(\.\.\., H, W, 3\)"),
        (torch.zeros(20, 30, 3), r"must be \(\.\.\., 3, H, W\)"),
        (torch.zeros(3, 20, 30, dtype=torch.int64), "must be uint8"),
        (torch.full((3, 20, 30), 255.0), r"must lie in \[0, 1\].*encoder\(pixel_values\)"),
        (torch.full((3, 20, 30), float("nan")), r"must lie in \[0, 1\]"),
        ([], "no images"),
        (torch.zeros(0, 3, 20, 30), "no images"),
        (torch.zeros(3, 0, 30), "nothing to encode"),
        (3.5, "float is not an image"),
        ([torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8)], "equal leading dimensions"),
        (Image.new("I;16", (8, 8)), "more than 8 bits"),
    ],
)
def test_what_is_not_an_image_is_refused(tiny, image, message):
    with pytest.raises(InputError, match=message):
        tiny.encode(image)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "does not exist"), (b"", "is empty"), (b"text" * 50, "cannot be read as an image")]
)
def test_unreadable_files_are_refused(tiny, tmp_path, photograph, content, message):
    path = tmp_path / "image.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        tiny.encode(path)
    path.write_bytes(photograph.read_bytes()[:9000])
    with pytest.raises(InputError, match="cannot be read"):
        tiny.encode(path)


def test_a_size_that_does_not_fit_names_the_nearest(tiny):
    with pytest.raises(InputError, match="height 100 is not a multiple of the patch size 16; nearest: 96 and 112"):
        tiny(torch.zeros(1, 3, 100, 96))
    with pytest.raises(InputError, match="width 250"):
        tiny.encode(torch.zeros(3, 64, 64), size=(224, 250))
    with pytest.raises(InputError, match=r"must be \(B, 3, H, W\)"):
        tiny(torch.zeros(3, 96, 96))
    for pixels in (np.zeros((1, 3, 96, 96), np.float32), torch.zeros(1, 3, 96, 96, dtype=torch.uint8), "a.jpg"):
        with pytest.raises(InputError, match=r"are a floating-point tensor .* encode.. takes images of any form"):
            tiny(pixels)
    with pytest.raises(InputError, match=r"hold no image: their shape is \(0, 3, 96, 96\)"):
        tiny(torch.zeros(0, 3, 96, 96))
    with pytest.raises(InputError, match="blocks 0 to 5"):
        tiny.intermediate_layers(torch.zeros(1, 3, 96, 96), n=[6])
    assert len(tiny.intermediate_layers(torch.zeros(1, 3, 96, 96), n=np.int64(2))) == 2
    with pytest.raises(InputError, match="crop_mode"):
        tiny.encode(torch.zeros(3, 64, 64), crop_mode="border")
    with pytest.raises(InputError, match="different sizes"):
        tiny.encode([torch.zeros(3, 64, 64), torch.zeros(3, 64, 128)], crop_mode="whole")


def test_the_core_imports_nothing_heavier():
    """Importing all of the package's names must not need, nor load, the optional dependencies."""
    heavy = ["transformers", "onnx", "onnxruntime", "av", "matplotlib", "jsonargparse", "training", "export"]
    code = (
        "import sys, timm; before = set(sys.modules)\n"  # old torchvisions load av
        "from video_distilled_encoder import *\n"
        f"print([m for m in {heavy} if m in sys.modules.keys() - before])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_missing_device_is_one_sentence(tiny_directory):
    with pytest.raises(InputError, match="cannot be put on the device 'cuda:99' here"):
        Encoder.from_pretrained(tiny_directory, device="cuda:99")


def test_loaded_weights_belong_to_the_process(tiny, photograph, tmp_path):
    """As `cp` and `rsync --inplace` write over a file, and as a full disk cuts it."""
    tiny.save_pretrained(tmp_path / "model")
    loaded = Encoder.from_pretrained(tmp_path / "model")
    expected = loaded.encode(photograph).patches
    weights = tmp_path / "model" / "model.safetensors"
    with weights.open("r+b") as file:
        file.write(b"\xff" * weights.stat().st_size)
    assert torch.equal(loaded.encode(photograph).patches, expected)
    with weights.open("r+b") as file:
        file.truncate(0)
    assert torch.equal(loaded.encode(photograph).patches, expected)
