import pytest
import torch
import torch.nn.functional as F

from video_distilled_encoder.resize import bands, resize_and_crop


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("source", "resized", "crop"),
    [((90, 161), (37, 66), (32, 48)), ((30, 21), (96, 67), (96, 64)), ((40, 90), (40, 31), (40, 16))],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_equal_to_torchs_antialiased_filter(source, resized, crop, interpolation, dtype):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, *source)).to(dtype)
    expected = F.interpolate(images.double(), resized, mode=interpolation, antialias=True)
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
