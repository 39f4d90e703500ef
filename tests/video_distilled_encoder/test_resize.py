import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from video_distilled_encoder.resize import bands, resize_and_crop


def resize_by_another(images, size, interpolation):
    """Return (B, 3, H, W) resized by torch, or by PIL's filter for floating-point pixels."""
    if interpolation != "lanczos":
        return F.interpolate(images.double(), size, mode=interpolation, antialias=True)
    planes = [Image.fromarray(plane.float().numpy()) for plane in images.flatten(0, 1)]
    resized = [np.array(plane.resize(size[::-1], Image.Resampling.LANCZOS)) for plane in planes]
    return torch.from_numpy(np.stack(resized)).unflatten(0, images.shape[:2])


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize(
    ("source", "resized", "crop"),
    [((90, 161), (37, 66), (32, 48)), ((30, 21), (96, 67), (96, 64)), ((40, 90), (40, 31), (40, 16))],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("mkl", [True, False])
def test_equal_to_torchs_antialiased_filter_or_pils(source, resized, crop, interpolation, dtype, mkl, monkeypatch):
    if not mkl:
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, *source)).to(dtype)
    expected = resize_by_another(images, resized, interpolation)
    top, left = (round((have - keep) / 2) for have, keep in zip(resized, crop, strict=True))
    expected = expected[..., top : top + crop[0], left : left + crop[1]]
    planar = resize_and_crop(images, resized, crop, interpolation)
    interleaved = resize_and_crop(images.permute(0, 2, 3, 1).contiguous(), resized, crop, interpolation, True)
    for result in (planar, interleaved):
        assert result.shape == (2, 3, *crop)
        assert result.dtype == torch.float32
        assert (result - expected).abs().max() < 3e-4  # of 255


def test_bands_leave_out_nearly_all_zeros():
    found = bands(1280, 441, 224, "bicubic", torch.device("cpu"))
    assert sum(band.weights.shape[0] for band in found) == 224
    assert sum(band.weights.numel() for band in found) < 224 * 1280 / 15


def test_gradients_pass_and_what_inference_made_serves_training():
    images = torch.rand(1, 3, 40, 60, requires_grad=True)
    with torch.inference_mode():
        resize_and_crop(images, (20, 30), (16, 16), "bicubic")
    resize_and_crop(images, (20, 30), (16, 16), "bicubic").sum().backward()
    expected = torch.autograd.grad(
        F.interpolate(images, (20, 30), mode="bicubic", antialias=True)[..., 2:18, 7:23].sum(), images
    )[0]
    assert torch.allclose(images.grad, expected, atol=1e-5)
