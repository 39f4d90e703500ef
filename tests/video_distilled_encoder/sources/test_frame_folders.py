import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from video_distilled_encoder.errors import InputError, InputWarning
from video_distilled_encoder.sources import find_sources
from video_distilled_encoder.sources.frame_folders import numbers_of
from video_distilled_encoder.sources.source import Asked


@pytest.fixture
def folders(tmp_path):
    """Two cameras; a picture's brightness is its number, and its name has no leading zeros."""
    for camera in ("left", "right"):
        (tmp_path / "set" / camera).mkdir(parents=True)
        for number in range(12):
            picture = np.full((32, 48, 3), 20 * number, np.uint8)
            Image.fromarray(picture).save(tmp_path / "set" / camera / f"frame_{number}.png")
    return tmp_path / "set"


def test_pictures_come_in_the_order_that_people_count_in(folders):
    left, right = find_sources([folders], Asked(fps=4))
    assert (left.name, right.name, left.group) == ("left", "right", str(folders))
    frames = list(left.frames())
    assert [frame.image[0, 0, 0] // 20 for frame in frames] == list(range(12))
    assert [frame.time for frame in frames] == [number / 4 for number in range(12)]
    assert [frame.time for frame in left.frames(min_interval=0.5)] == [0, 0.5, 1, 1.5, 2, 2.5]
    info = left.info()
    assert (info.width, info.height, info.fps, info.frames) == (48, 32, 4, 12)


def test_where_a_number_is_missing_times_go_on(folders):
    left, right = find_sources([folders], Asked(fps=4))
    whole = left.identity()
    for number in (3, 4, 8):
        (folders / "left" / f"frame_{number}.png").unlink()
        (folders / "right" / f"frame_{11 - number}.png").unlink()
    frames = list(left.frames())
    assert [frame.time for frame in frames] == [number / 4 for number in (0, 1, 2, 5, 6, 7, 9, 10, 11)]
    assert [frame.image[0, 0, 0] // 20 for frame in frames] == [0, 1, 2, 5, 6, 7, 9, 10, 11]
    assert len({whole, left.identity(), right.identity()}) == 3


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["f_10.png", "f_20.png", "f_40.png"], [0, 1, 3]),
        (["1305031102.175.png", "1305031102.211.png", "1305031102.243.png"], [0, 1, 2]),  # a camera's times
        (["a.png", "b2.png", "c3.png"], [0, 1, 2]),
        (["left1.png", "left2.png", "right1.png"], [0, 1, 2]),
    ],
)
def test_numbers_count_pictures_or_only_tell_the_order(names, expected):
    assert numbers_of([Path(name) for name in names]) == expected


def test_the_rate_is_demanded(folders, clip):
    with pytest.raises(InputError, match=r"12 pictures without a clock; tell how many .* --source-fps"):
        find_sources([folders])
    shutil.copy(clip, folders / "dog.mp4")
    with pytest.warns(InputWarning, match="left out: .*left: 12 pictures without a clock"):
        assert [source.name for source in find_sources([folders])] == ["dog.mp4"]


def test_the_identity_is_of_the_pictures_and_the_rate(folders, tmp_path):
    left, _ = find_sources([folders], Asked(fps=4))
    shutil.copytree(folders / "left", tmp_path / "copy")
    (copy,) = find_sources([tmp_path / "copy"], Asked(fps=4))
    (faster,) = find_sources([tmp_path / "copy"], Asked(fps=8))
    assert left.identity() == copy.identity() != faster.identity()
    Image.new("RGB", (48, 32)).save(tmp_path / "copy" / "frame_3.png")
    assert left.identity() != copy.identity()


def test_a_camera_that_was_held_upright_is_listed_so(folders):
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(12):
        Image.new("RGB", (48, 32)).save(folders / "left" / f"frame_{number}.png", exif=exif)
    left, _ = find_sources([folders], Asked(fps=4))
    assert (left.info().width, left.info().height) == next(iter(left.frames())).image.shape[1::-1] == (32, 48)


def test_a_picture_that_is_damaged_or_of_another_size_is_named(folders):
    left, right = find_sources([folders], Asked(fps=4))
    Image.new("RGB", (32, 32)).save(folders / "left" / "frame_7.png")
    with pytest.raises(InputError, match=r"left, frame 7: it is 32x32, the first 48x32"):
        list(left.frames())
    (folders / "right" / "frame_2.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"frame_2\.png cannot be read as an image"):
        list(right.frames())
