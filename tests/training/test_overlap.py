import json

import numpy as np
import pytest
from PIL import Image

from training.data.overlap import difference_hash, distance
from training.overlap import main
from video_distilled_encoder.video import read_frames


def test_bits_say_whether_grey_falls():
    ramp = np.tile(np.arange(255, 0, -15, dtype=np.uint8), (16, 1))
    assert ramp.shape == (16, 17)
    assert difference_hash(Image.fromarray(ramp)).all()
    assert not difference_hash(Image.fromarray(ramp[:, ::-1].copy())).any()


def test_a_frame_of_the_training_is_found_and_another_picture_is_not(run_command, clip, photograph, tmp_path, capsys):
    other, copied = tmp_path / "other", tmp_path / "copied"
    for folder in (other, copied):
        folder.mkdir()
        Image.open(photograph).save(folder / "street.png")
        Image.new("L", (32, 32)).save(folder / "label.png")
    frame = Image.fromarray(list(read_frames(clip))[31].image)
    frame.resize((400, 230)).save(copied / "frame.jpg", quality=40)
    words = ["--data", clip, "--frames", tmp_path / "frames", "--out", tmp_path / "out", "--evaluation"]
    assert run_command(main, *words, other) is None
    apart = json.loads((tmp_path / "out" / "overlap.json").read_text())
    assert apart["evaluation_images"] == 1
    assert apart["training_frames"] == 25
    assert apart["smallest_distance"] > 60 > 20 > apart["largest_distance_of_a_copy"]
    assert run_command(main, *words, copied) is None
    found = json.loads((tmp_path / "out" / "overlap.json").read_text())
    assert found["nearest_image"] == "frame.jpg"
    assert found["smallest_distance"] < 40
    with Image.open(tmp_path / "out" / "overlap.png") as picture:
        left, right = (np.asarray(picture, dtype=float)[:180, at : at + 320] for at in (0, 328))
    assert np.abs(left - right).mean() < 12
    assert "there are no images" in run_command(main, *words, tmp_path / "frames")


@pytest.mark.filterwarnings("ignore:1 of . pictures are flat areas")
def test_turned_and_grey_photographs_are_found_too(run_command, clip, tmp_path):
    frame, evaluation = list(read_frames(clip))[31].image, tmp_path / "evaluation"
    evaluation.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise when it is shown
    Image.fromarray(np.rot90(frame).copy()).save(evaluation / "turned.jpg", exif=exif)
    Image.fromarray(frame).convert("L").save(evaluation / "grey.png")
    Image.new("P", (32, 32)).save(evaluation / "label.png")
    for name in ("turned.jpg", "grey.png"):
        words = ["--data", clip, "--frames", tmp_path / "frames", "--out", tmp_path / "out", "--evaluation", evaluation]
        assert run_command(main, *words) is None
        found = json.loads((tmp_path / "out" / "overlap.json").read_text())
        assert found["evaluation_images"] == len(list(evaluation.iterdir())) - 1
        assert found["smallest_distance"] < 25
        (evaluation / name).unlink()


def test_distances_are_counts_of_bits():
    rng = np.random.default_rng(0)
    hashes = rng.random((5, 256)) < 0.5
    assert distance(hashes, hashes[2]).tolist() == [int(np.sum(np.abs(h.astype(int) - hashes[2]))) for h in hashes]
    assert distance(hashes, hashes[2])[2] == 0


@pytest.mark.parametrize("size", [(640, 360), (64, 48)])
def test_scale_and_compression_change_few_bits(photograph, size):
    whole = Image.open(photograph).convert("RGB")
    assert distance(difference_hash(whole.resize(size))[None], difference_hash(whole))[0] <= 20
