"""Raw pixels, against values worked out by hand."""

import numpy as np
import pytest

from video_distilled_encoder.errors import InputError
from video_distilled_encoder.sources.pictures import decode_pixels, why_no_picture

RED = 81, 90, 240
"""Y, U and V of pure red by BT.601 with the range of video: 16 + 65.481, 128 - 37.797, 128 + 112."""


@pytest.mark.parametrize(
    ("encoding", "pixel"),
    [
        ("rgb8", (9, 5, 1)),
        ("bgr8", (1, 5, 9)),
        ("rgba8", (9, 5, 1, 255)),
        ("bgra8", (1, 5, 9, 255)),
        ("8UC3", (1, 5, 9)),
    ],
)
def test_channels_go_where_they_belong(encoding, pixel):
    values = np.zeros((4, 6, len(pixel)), np.uint8)
    values[1, 2] = pixel
    image = decode_pixels(values.tobytes(), encoding, (6, 4))
    assert image[1, 2].tolist() == [9, 5, 1]
    assert image.sum() == 15


def test_grey_is_grey():
    values = np.arange(24, dtype=np.uint8).reshape(4, 6)
    image = decode_pixels(np.pad(values, ((0, 0), (0, 2))).tobytes(), "mono8", (6, 4), step=8)
    assert (image == values[..., None]).all()


@pytest.mark.parametrize("encoding", ["yuv422", "uyvy", "yuv422_yuy2", "yuyv", "nv12", "nv21"])
def test_video_ranges_are_turned_into_colours(encoding):
    width, height, (y, u, v) = 32, 16, RED
    if encoding.startswith("nv"):
        chroma = (u, v) if encoding == "nv12" else (v, u)
        values = bytes([y]) * width * height + bytes(chroma) * (width * height // 4)
    else:
        values = bytes([u, y, v, y] if encoding in ("yuv422", "uyvy") else [y, u, y, v]) * (width * height // 2)
    image = decode_pixels(values, encoding, (width, height))
    assert image.shape == (height, width, 3)
    assert np.abs(image - np.array([255.0, 0, 0])).max() <= 3


@pytest.mark.parametrize("order", ["rggb", "bggr", "gbrg", "grbg"])
def test_a_mosaic_of_one_colour_is_that_colour(order):
    colour = {"r": 200, "g": 120, "b": 40}
    tile = np.array([colour[letter] for letter in order], np.uint8).reshape(2, 2)
    image = decode_pixels(np.tile(tile, (8, 16)).tobytes(), f"bayer_{order}8", (32, 16))
    assert np.abs(image[2:-2, 2:-2] - np.array([200.0, 120, 40])).max() <= 1


def test_what_is_no_picture_says_so():
    assert why_no_picture("16UC1") == "16UC1 values, as of depth, heat or labels, and no picture"
    assert "labels" in why_no_picture("8UC1")
    assert why_no_picture("lch99") == "the encoding 'lch99', which is not read"
    with pytest.raises(InputError, match="the picture has 10 bytes, and 6x4 in rgb8 are 72"):
        decode_pixels(bytes(10), "rgb8", (6, 4))
