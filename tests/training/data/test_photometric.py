import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from training.data import photometric
from training.data.box import Box
from training.data.photometric import PhotometricConfig, draw_parameters
from training.data.views import View


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(5, 3, 40, 56, generator=generator)
    noise[0, :, :10] = 0.3  # grey, black and white areas are hue's corner cases
    noise[1, :, :10] = 0.0
    noise[2, :, :10] = 1.0
    return noise


@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        (photometric.adjust_brightness, tv.adjust_brightness, [0.6, 0.9, 1.0, 1.2, 1.4]),
        (photometric.adjust_contrast, tv.adjust_contrast, [0.6, 0.9, 1.0, 1.2, 1.4]),
        (photometric.adjust_saturation, tv.adjust_saturation, [0.8, 0.9, 1.0, 1.1, 1.2]),
        (photometric.adjust_hue, tv.adjust_hue, [-0.5, -0.1, 0.03, 0.1, 0.37]),
    ],
)
def test_colour_operations_equal_torchvision(images, ours, theirs, factors):
    expected = torch.stack([theirs(image, factor) for image, factor in zip(images, factors, strict=True)])
    assert torch.allclose(ours(images, torch.tensor(factors)), expected, atol=2e-6)


def test_greyscale_and_solarize_equal_torchvision(images):
    assert torch.allclose(photometric.greyscale(images), tv.rgb_to_grayscale(images, 3), atol=1e-6)
    assert torch.equal(photometric.solarize(images), tv.solarize(images, 0.5))


def test_blur_equals_torchvision(images):
    sigmas = [0.1, 0.5, 1.0, 1.7, 2.0]
    expected = torch.stack([tv.gaussian_blur(i, [13, 13], [s, s]) for i, s in zip(images, sigmas, strict=True)])
    assert torch.allclose(photometric.gaussian_blur(images, torch.tensor(sigmas)), expected, atol=1e-6)


def test_apply_runs_the_drawn_operations_in_the_drawn_order(images):
    """Whole chain against torchvision, one image at a time."""
    views = [View("global", 0, Box(0, 0, 8, 8), False, (8, 8), style) for style in ("view1", "view2") * 20]
    config = PhotometricConfig(greyscale=0.3, solarize=(0.3, 0.3, 0.3))
    parameters = torch.from_numpy(draw_parameters(np.random.default_rng(3), views, config))
    pixels = (images.repeat(8, 1, 1, 1) * 255).to(torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    result = photometric.apply(pixels, parameters, torch.tensor(mean), torch.tensor(std))
    operations = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    for image, row, got in zip(pixels, parameters.tolist(), result, strict=True):
        x = image.float() / 255
        for number in row[:4]:
            x = operations[int(number)](x, row[4 + int(number)])
        if row[8]:
            x = tv.rgb_to_grayscale(x, 3)
        if row[9]:
            x = tv.gaussian_blur(x, [13, 13], [row[9], row[9]])
        if row[10]:
            # On the edge of the threshold the two orders of rounding may differ.
            edge = (x - 0.5).abs() < 1e-5
            x = tv.solarize(x, 0.5)
            x, got = x.masked_fill(edge, 0), got.masked_fill(edge, 0)
            mask = edge
        else:
            mask = torch.zeros_like(x, dtype=torch.bool)
        x = v2.Normalize(mean, std)(x).masked_fill(mask, 0)
        assert torch.allclose(got.masked_fill(mask, 0), x, atol=2e-5)


def test_parameters_follow_style_and_probability():
    config = PhotometricConfig()
    rng = np.random.default_rng(0)
    rows = {
        style: draw_parameters(rng, [View("global", 0, Box(0, 0, 8, 8), False, (8, 8), style)] * 4000, config)
        for style in ("view1", "view2", "local")
    }
    assert [round(float((r[:, 9] > 0).mean()), 1) for r in rows.values()] == [1.0, 0.1, 0.5]
    assert [round(float(r[:, 10].mean()), 1) for r in rows.values()] == [0.0, 0.2, 0.0]
    for r in rows.values():
        assert abs((r[:, 4] != 1).mean() - 0.8) < 0.03
        assert abs(r[:, 8].mean() - 0.2) < 0.03
        assert r[:, 4].min() >= 0.6
        assert r[:, 4].max() <= 1.4
        assert (np.sort(r[:, :4], axis=1) == np.arange(4)).all()


def test_a_sample_does_not_depend_on_its_neighbours():
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (6, 2, 3, 32, 32), dtype=torch.uint8, generator=generator)
    views = [View("local", 0, Box(0, 0, 8, 8), False, (8, 8), "local")] * 12
    parameters = torch.from_numpy(draw_parameters(np.random.default_rng(0), views, PhotometricConfig())).view(6, 2, -1)
    mean = std = torch.tensor([0.5, 0.5, 0.5])
    together = photometric.apply(pixels, parameters, mean, std)
    alone = torch.cat([photometric.apply(pixels[i : i + 1], parameters[i : i + 1], mean, std) for i in range(6)])
    assert together.shape == (6, 2, 3, 32, 32)
    assert torch.allclose(together, alone, atol=1e-6)
