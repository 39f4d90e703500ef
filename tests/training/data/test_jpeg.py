import io

import numpy as np
import pytest
from PIL import Image

from training.data import jpeg
from training.data.box import Box
from video_distilled_encoder.image_files import bundled_photographs


def photograph(width, height):
    return Image.open(bundled_photographs()[0]).convert("RGB").resize((width, height))


@pytest.mark.parametrize("size", [(320, 180), (854, 480), (449, 253), (15, 40), (1280, 720), (464, 100)])
def test_a_region_is_what_the_whole_picture_shows_there(size):
    data = jpeg.encode(photograph(*size), 90)
    whole = np.asarray(Image.open(io.BytesIO(data)))
    rng = np.random.default_rng(0)
    boxes = [Box(0, 0, *size), Box(size[0] - 1, size[1] - 1, 1, 1), Box(0, 0, 1, 1)]
    for _ in range(60):
        width, height = (int(rng.integers(1, side + 1)) for side in size)
        left, top = int(rng.integers(size[0] - width + 1)), int(rng.integers(size[1] - height + 1))
        boxes.append(Box(left, top, width, height))
    for box in boxes:
        expected = whole[box.top : box.top + box.height, box.left : box.left + box.width]
        assert np.array_equal(jpeg.decode(data, box), expected), box
    assert np.array_equal(jpeg.decode(data), whole)


def test_markers_cost_little():
    image = photograph(1280, 720)
    plain = io.BytesIO()
    image.save(plain, "JPEG", quality=90)
    assert len(jpeg.encode(image, 90)) < 1.06 * len(plain.getvalue())


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("size", [(320, 180), (449, 253), (1280, 720)])
def test_a_region_at_a_part_of_its_size_is_what_the_whole_picture_shows_there(size, scale):
    data = jpeg.encode(photograph(*size), 90)
    whole = Image.open(io.BytesIO(data))
    whole.draft("RGB", (size[0] // scale, size[1] // scale))
    whole = np.asarray(whole)
    assert whole.shape[:2] == (-(-size[1] // scale), -(-size[0] // scale))
    rng = np.random.default_rng(0)
    for _ in range(30):
        width, height = (int(rng.integers(20, side + 1)) for side in size)
        left, top = int(rng.integers(size[0] - width + 1)), int(rng.integers(size[1] - height + 1))
        box = Box(left, top, width, height).widened(scale)
        expected = whole[box.top // scale :, box.left // scale :][: box.height // scale, : box.width // scale]
        assert np.array_equal(jpeg.decode(data, box, scale), expected), box
