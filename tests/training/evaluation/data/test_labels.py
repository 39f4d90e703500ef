import numpy as np
import pytest
from PIL import Image

from training import evaluate
from training.evaluation.data.labels import check_labels
from training.evaluation.protocols import davis
from video_distilled_encoder import InputError


def save_turned(path, pixels, orientation):
    """Save (H, W, 3) pixels as a camera does that was held so."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


@pytest.fixture
def pair(tmp_path):
    """Write a photograph of 20 x 30 stored pixels and labels of a size; returns their paths."""

    def pair(orientation, labels, stored=(20, 30), suffix="jpg"):
        save_turned(tmp_path / f"image.{suffix}", np.zeros((*stored, 3), np.uint8), orientation)
        Image.fromarray(np.zeros(labels, np.uint8)).save(tmp_path / "labels.png")
        return tmp_path / f"image.{suffix}", tmp_path / "labels.png"

    return pair


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", range(5, 9))
def test_a_photograph_on_its_side_is_taken_as_its_reader_turns_it(pair, orientation, suffix):
    check_labels(*pair(orientation, (30, 20), suffix=suffix))
    with pytest.raises(InputError, match="when it is turned upright but its labels"):
        check_labels(*pair(orientation, (20, 30), suffix=suffix))


def test_labels_that_lie_as_their_image_does(pair):
    check_labels(*pair(1, (20, 30)))
    check_labels(*pair(6, (30, 20)))
    check_labels(*pair(8, (30, 20)))


@pytest.mark.parametrize(
    ("orientation", "labels", "stored", "message"),
    [
        (1, (30, 20), (20, 30), "is 20 x 30 but its labels .* are 30 x 20; mend the data"),
        (1, (10, 15), (20, 30), "is 20 x 30 but its labels"),
        (6, (20, 30), (20, 30), "is 30 x 20 when it is turned upright but its labels .* are 20 x 30"),
        (3, (20, 30), (20, 30), r"is stored turned \(EXIF orientation 3\), and nothing tells"),
        (6, (20, 20), (20, 20), r"is stored turned \(EXIF orientation 6\), and nothing tells"),
    ],
)
def test_labels_that_do_not_or_of_which_nothing_tells(pair, orientation, labels, stored, message):
    with pytest.raises(InputError, match=message):
        check_labels(*pair(orientation, labels, stored))


@pytest.mark.parametrize(
    ("protocol", "options"),
    [
        ("linear-segmentation", []),
        ("knn-segmentation", []),
        ("degradation", []),
        ("flicker", ["--video", "."]),
        ("upernet", ["--layout", "camvid", "--preset", "upernet-small", "--workers", "0"]),
    ],
)
def test_no_protocol_compares_labels_that_lie_otherwise(run_command, coloured_set, tmp_path, protocol, options):
    colours = coloured_set(tmp_path / "colours", train=2, test=2)
    turned = colours / "testannot" / "1.png"
    Image.fromarray(np.array(Image.open(turned)).T.copy()).save(turned)
    model = "random:vit_tiny_patch16_224"
    message = run_command(evaluate.main, protocol, "--data", colours, "--model", model, "--cache", tmp_path, *options)
    assert "1.png is 64 x 96 but its labels" in message


def test_davis_does_not_either(tmp_path):
    for kind in ("JPEGImages", "Annotations"):
        (tmp_path / kind / "480p" / "dog").mkdir(parents=True)
    for frame in range(3):
        pixels = np.zeros((32, 48, 3), np.uint8)
        save_turned(tmp_path / "JPEGImages" / "480p" / "dog" / f"{frame}.jpg", pixels, 6)
        davis.write_mask(np.ones((32, 48), np.uint8), tmp_path / "Annotations" / "480p" / "dog" / f"{frame}.png")
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets" / "val.txt").write_text("dog")
    with pytest.raises(InputError, match=r"0\.jpg is 48 x 32 when it is turned upright but its labels"):
        davis.find_sequences(tmp_path, "val")
