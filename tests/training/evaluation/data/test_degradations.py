import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from training.evaluation.data.degradations import (
    DEFOCUS,
    DEGRADATIONS,
    DROPPED_ROWS,
    EXPOSURE,
    JPEG,
    MOTION_BLUR,
    NOISE,
    OCCLUSION,
    degrade,
)
from video_distilled_encoder import InputError


@pytest.fixture
def image(photograph):
    return np.array(Image.open(photograph).convert("RGB").resize((160, 120)))


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_deterministic_worse_with_severity_and_its_own_for_each_image(image, name):
    before = image.copy()
    found = [degrade(image, name, severity, seed=1, index=4) for severity in range(1, 6)]
    assert np.array_equal(image, before)
    assert all(other.shape == image.shape and other.dtype == np.uint8 for other in found)
    assert np.array_equal(found[2], degrade(image, name, 3, seed=1, index=4))
    error = [
        np.mean([np.abs(degrade(image, name, s, index=i).astype(float) - image).mean() for i in range(6)])
        for s in (1, 3, 5)
    ]
    assert 0 < error[0] < error[1] < error[2]
    if name not in ("defocus", "jpeg", "exposure-jump"):
        assert not np.array_equal(found[2], degrade(image, name, 3, seed=1, index=5))
        assert not np.array_equal(found[2], degrade(image, name, 3, seed=2, index=4))


def test_values_of_imagenet_c():
    assert NOISE == (0.08, 0.12, 0.18, 0.26, 0.38)
    assert JPEG == (25, 18, 15, 10, 7)
    assert [radius for radius, _ in DEFOCUS] == [3, 4, 6, 8, 10]
    assert MOTION_BLUR == ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))


def test_jpeg_is_pils(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=15)
    assert np.array_equal(degrade(image, "jpeg", 3), np.array(Image.open(buffer)))


def test_noise_has_the_deviation_it_says():
    grey = np.full((100, 100, 3), 128, np.uint8)
    noise = degrade(grey, "sensor-noise", 2).astype(float) - 128
    assert noise.std() == pytest.approx(255 * 0.12, rel=0.02)
    assert abs(noise.mean()) < 1


def test_a_point_defocused_is_a_disc():
    black = np.zeros((41, 41, 3), np.uint8)
    black[20, 20] = 255
    for severity, (radius, _) in enumerate(DEFOCUS, 1):
        found = degrade(black, "defocus", severity)[..., 0]
        y, x = np.mgrid[-20:21, -20:21]
        disc = x**2 + y**2 <= radius**2
        inside, outside = x**2 + y**2 <= (radius - 2) ** 2, x**2 + y**2 > (radius + 2) ** 2
        assert np.abs(found[inside] - 255 / disc.sum()).max() <= 1
        assert (found[outside] == 0).all()


def test_a_point_in_motion_is_a_line():
    black = np.zeros((101, 101, 3), np.uint8)
    black[50, 50] = 255
    total = np.zeros((101, 101))
    for index in range(20):
        found = degrade(black, "motion-blur", 3, index=index)[..., 0].astype(float)
        y, x = np.nonzero(found)
        assert x.max() == 50  # one-sided: a trail
        assert x.min() >= 20
        assert np.abs(y - 50).max() <= np.abs(x - 50).max()
        assert found.sum() == pytest.approx(255, abs=12)
        if len(x) > 2:
            fit = np.polyfit(x, y, 1)
            assert np.abs(np.polyval(fit, x) - y).max() < 1
        total += found
    flat = np.full((60, 60, 3), 77, np.uint8)
    assert np.array_equal(degrade(flat, "motion-blur", 5), flat)
    assert np.array_equal(degrade(flat, "defocus", 5), flat)


def test_light_lost_is_noisier_and_darker(image):
    grey = np.full((100, 100, 3), 186, np.uint8)  # half the light
    found = degrade(grey, "low-light", 1) / 255.0
    electrons = 2000 * found**2.2
    assert electrons.mean() == pytest.approx(2000 * (186 / 255) ** 2.2 / 4, rel=0.01)
    assert electrons.std() == pytest.approx(electrons.mean() ** 0.5, rel=0.1)


def test_exposure_jumps_both_ways():
    grey = np.full((4, 4, 3), 100, np.uint8)
    values = {int(degrade(grey, "exposure-jump", 2, index=i)[0, 0, 0]) for i in range(20)}
    expected = {round(255 * ((100 / 255) ** 2.2 * 2.0**stops) ** (1 / 2.2)) for stops in (-EXPOSURE[1], EXPOSURE[1])}
    assert values == expected


def test_hidden_shares():
    white = np.full((240, 320, 3), 255, np.uint8)
    for severity in range(1, 6):
        hidden = Image.fromarray(degrade(white, "occlusion", severity))
        box = ImageChops.difference(hidden, Image.fromarray(white)).getbbox()
        area = (box[2] - box[0]) * (box[3] - box[1])
        assert area / white[..., 0].size == pytest.approx(OCCLUSION[severity - 1], rel=0.02)
        rows = degrade(white, "dropped-rows", severity)
        assert set(np.unique(rows)) == {0, 255}
        assert (rows == 0).mean() == pytest.approx(DROPPED_ROWS[severity - 1], abs=0.02)
        assert (rows == rows[:, :1]).all()


def test_wrong_input_is_one_sentence(image):
    with pytest.raises(InputError, match="there is no degradation 'fog'; choose from motion-blur"):
        degrade(image, "fog", 1)
    with pytest.raises(InputError, match="a severity is 1, 2, 3, 4 or 5, got 0"):
        degrade(image, "jpeg", 0)
    with pytest.raises(InputError, match="uint8"):
        degrade(torch.zeros(4, 4, 3).numpy(), "jpeg", 1)
