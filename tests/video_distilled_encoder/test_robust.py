"""What a process around the encoder may have set, and the forms that images and sizes come in."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from video_distilled_encoder import Encoder, InputError, ModelConfig, load_runtime


@pytest.fixture
def noise():
    """A picture in which every pixel is another."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))


@pytest.fixture(params=["bfloat16", "float16", "float64", "meta"])
def default(request):
    """Another default of torch's for numbers or for the place of tensors, as other code of the process may set it."""
    if request.param == "meta":
        torch.set_default_device("meta")
    else:
        torch.set_default_dtype(getattr(torch, request.param))
    yield request.param
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


def distance(got, expected):
    return max((one - other).abs().max().item() for one, other in zip(got, expected, strict=True) if one.numel())


def clear_caches():
    from video_distilled_encoder import resize

    resize.sparse.cache_clear()
    resize.bands.cache_clear()


@pytest.fixture
def expected(tiny, noise):
    clear_caches()
    found = tiny.encode(noise, size=64)
    clear_caches()
    return found


def test_torchs_defaults_change_no_feature(expected, tiny, tiny_directory, noise, default):
    got = tiny.encode(noise, size=64)
    assert all(feature.dtype == torch.float32 for feature in got)
    assert distance(got, expected) == 0
    if default != "meta":  # safetensors itself loads to the default device
        assert distance(Encoder.from_pretrained(tiny_directory).encode(noise, size=64), expected) < 1e-6


def test_torchs_defaults_change_no_export(export_once, shallow_directory, noise, request):
    expected = Encoder.from_pretrained(shallow_directory).encode(noise, size=32)
    out = export_once("onnx")
    clear_caches()
    default = request.getfixturevalue("bfloat16_default")
    runtime = load_runtime(out)
    got = runtime.encode(noise)
    assert default == torch.get_default_dtype()
    assert all(feature.dtype == torch.float32 for feature in got)
    assert distance(got, expected) < 1e-4
    assert not runtime(torch.zeros(1, 3, 32, 32, dtype=torch.float32, requires_grad=True)).cls.requires_grad


@pytest.fixture
def bfloat16_default():
    torch.set_default_dtype(torch.bfloat16)
    yield torch.bfloat16
    torch.set_default_dtype(torch.float32)


def test_images_are_resized_in_float32_under_autocast(expected, tiny, noise):
    pixels = tiny.preprocess(noise, size=64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tiny.preprocess(noise, size=64), pixels)
        got = tiny.encode(noise, size=64)
    assert distance([feature.float() for feature in got], expected) < 0.2


def test_blocks_come_in_the_order_asked_for(tiny, noise):
    pixels = tiny.preprocess(noise, size=64)
    single = {n: tiny.intermediate_layers(pixels, n=[n])[0].patches for n in (0, 2)}
    first, again, last = tiny.intermediate_layers(pixels, n=[2, 0, 2])
    assert torch.equal(first.patches, single[2])
    assert torch.equal(again.patches, single[0])
    assert torch.equal(last.patches, single[2])
    assert not torch.equal(single[0], single[2])


@pytest.mark.parametrize(
    "form",
    [
        lambda array: array.astype(">f4") / np.float32(255),
        lambda array: array.astype(np.longdouble) / 255,
        lambda array: np.ma.masked_array(array),
        lambda array: (array / 255 + 1e-6).astype(np.float32),
        lambda array: torch.from_numpy(array / 255.0).movedim(-1, 0).requires_grad_(),
        lambda array: Image.fromarray(array).convert("RGBA").convert("RGBa"),
    ],
    ids=["big-endian", "long double", "no mask", "rounding noise", "requires grad", "RGBa"],
)
def test_forms_of_one_picture_are_one_picture(expected, tiny, noise, form):
    got = tiny.encode(form(np.asarray(noise)), size=64)
    assert distance(got, expected) < 1e-3
    assert not got.cls.requires_grad


@pytest.mark.parametrize("size", [np.int64(64), 64.0, np.array([64, 64]), [64, 64], torch.Size([64, 64])])
def test_sizes_are_numbers_of_any_kind(expected, tiny, noise, size):
    assert distance(tiny.encode(noise, size=size), expected) == 0


@pytest.mark.parametrize(
    "size", [0, -16, True, (64,), {}, "64", 64.5, (64, 64, 64), (64, 0), np.float64("nan"), [[64]]]
)
def test_other_sizes_are_one_sentence(tiny, noise, size):
    with pytest.raises(InputError, match="size is a positive number of pixels, or two of them"):
        tiny.encode(noise, size=size)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"\xff\xd8\xff", "bytes is not an image"),
        ("https://example.com/a.jpg", "it is an address: download it first"),
        (np.zeros((8, 8, 3), dtype=object), "holds uint8 or floating-point numbers; got object"),
        (np.ma.masked_greater(np.full((8, 8, 3), 9, np.uint8), 8), r"masked; fill them first, as by \.filled"),
        (np.full((8, 8, 3), 1.01, np.float32), r"must lie in \[0, 1\]"),
        (np.full((8, 8, 3), np.nan, np.float32), r"must lie in \[0, 1\]"),
    ],
)
def test_other_images_are_one_sentence(tiny, image, message):
    with pytest.raises(InputError, match=message):
        tiny.encode(image, size=64)


def test_damaged_and_closed_pictures_are_one_sentence(tiny, noise, photograph):
    truncated = Image.open(io.BytesIO(photograph.read_bytes()[:5000]))
    closed = noise.copy()
    closed.close()
    for picture in (truncated, closed):
        with pytest.raises(InputError, match="the PIL image cannot be read"):
            tiny.encode(picture, size=64)


@pytest.mark.parametrize("kept", [4, 12])  # a SyntaxError and a struct.error of Pillow's
def test_a_cut_exif_block_leaves_the_pixels(tiny, noise, tmp_path, kept):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    path, plain = tmp_path / "cut.png", tmp_path / "plain.png"
    noise.save(plain)
    noise.save(path, exif=exif.tobytes()[:kept])
    assert distance(tiny.encode(path, size=64), tiny.encode(plain, size=64)) == 0


def test_a_strip_is_refused_before_it_takes_all_memory(tiny):
    with pytest.raises(InputError, match="comes to 224x89600 as a whole, which is 78400 patches"):
        tiny.encode(Image.new("RGB", (1200, 3)), size=224, crop_mode="whole")
    assert tiny.encode(Image.new("RGB", (1200, 3)), size=64).grid.shape[-2:] == (4, 4)


class LargestTensor(TorchDispatchMode):
    """Notes the bytes of the largest tensor that is made."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return made


@pytest.mark.parametrize("shape", [(2, 3000), (3000, 2), (248, 9000)])
def test_the_centre_of_a_strip_is_cut_without_making_the_whole(tiny, shape):
    pixels = torch.rand(3, *shape)
    with LargestTensor() as largest:
        found = tiny.preprocess(pixels, size=224, crop_mode="center")
    assert found.shape == (1, 3, 224, 224)
    assert 0 < largest.bytes < 50e6


def test_the_default_configuration_of_another_size():
    config = ModelConfig("vit_tiny_patch16_224")
    encoder = Encoder(config.build_backbone(), config).eval()
    assert encoder.encode(np.zeros((50, 70, 3), np.uint8)).grid.shape[-2:] == (14, 14)
