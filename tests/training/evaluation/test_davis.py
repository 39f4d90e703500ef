import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training import evaluate
from training.evaluation.protocols import davis

DAVIS = Path(__file__).parents[4] / "shared" / "data" / "davis"


def build(root, name="square", frames=6, objects=1, shape=(96, 160), seed=0):
    """Textured squares that move over a textured background, 8 pixels a frame."""
    rng = np.random.default_rng(seed)
    folders = [root / kind / "480p" / name for kind in ("JPEGImages", "Annotations")]
    for folder in folders:
        folder.mkdir(parents=True)
    background = rng.normal((60, 120, 60), 12, (*shape, 3))
    for frame in range(frames):
        picture, labels = background.copy(), np.zeros(shape, np.uint8)
        for number in range(1, objects + 1):
            top, left = 48 * (number - 1), 16 + 8 * frame
            picture[top : top + 48, left : left + 48] = (200, 40 + 80 * number, 250 - 100 * number)
            labels[top : top + 48, left : left + 48] = number
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folders[0] / f"{frame:05}.jpg", quality=95)
        davis.write_mask(labels, folders[1] / f"{frame:05}.png")
    listing = root / "ImageSets" / "2017" / "val.txt"
    listing.parent.mkdir(parents=True, exist_ok=True)
    with listing.open("a") as file:
        file.write(f"{name}\n")


@pytest.fixture
def run(run_command, tmp_path, monkeypatch):
    """Run the protocol on tmp_path/davis at a small size; returns the result or the error."""
    small = davis.Variant("small", 3, 12, 5, 0.1, short_side=96, multiple=16)
    monkeypatch.setitem(davis.VARIANTS, "dino", small)

    def run(model, *extra):
        out = tmp_path / f"{model}.json"
        arguments = ["davis", "--data", tmp_path / "davis", "--cache", tmp_path / "cache", "--model", model, *extra]
        return run_command(evaluate.main, *arguments, "--out", out) or json.loads(out.read_text())

    return run


def test_a_moving_square_is_followed(run, tmp_path):
    build(tmp_path / "davis")
    build(tmp_path / "davis", "pair", objects=2, seed=1)
    pixels, constant = (run(model)["figures"] for model in ("pixels", "constant"))
    assert pixels["j"] > 75
    assert pixels["j"] > constant["j"] + 15
    assert pixels["j_and_f"] == pytest.approx((pixels["j"] + pixels["f"]) / 2, abs=0.01)
    low, high = pixels["interval"]
    assert low <= pixels["j_and_f"] <= high
    by_name = pixels["sequences"]
    # The mean is over objects, of which the pair has two.
    assert pixels["units"]["pair"] == pytest.approx((by_name["pair"]["j"] + by_name["pair"]["f"]) / 2, abs=0.01)
    assert pixels["j"] == pytest.approx((by_name["square"]["j"] + 2 * by_name["pair"]["j"]) / 3, abs=0.02)


def test_frames_need_no_leading_zeros(run, tmp_path):
    """0, 1, 2, … 11 is the order of the frames, not 0, 1, 10, 11, 2."""
    build(tmp_path / "davis", frames=12, shape=(96, 192))
    padded = run("pixels")["figures"]
    for path in list((tmp_path / "davis").rglob("0*.*")):
        path.rename(path.with_name(f"{int(path.stem)}{path.suffix}"))
    assert run("pixels")["figures"] == padded


def test_names_in_the_list_may_hold_spaces(run, tmp_path):
    build(tmp_path / "davis", "two words")
    listing = tmp_path / "davis" / "ImageSets" / "2017" / "val.txt"
    listing.write_bytes("two words\r\n".encode("utf-8-sig"))
    assert list(run("pixels")["figures"]["units"]) == ["two words"]


def test_the_result_says_what_was_done(run, tmp_path):
    build(tmp_path / "davis")
    build(tmp_path / "davis", "other", seed=1)
    result = run("pixels", "--sequences", "other", "--masks", tmp_path / "masks")
    assert result["setting"]["encoded_sizes"] == [[96, 160]]
    assert result["setting"]["variant"] == "small"
    assert result["setting"]["top_k"] == 5
    assert result["setting"]["resizing"] == "squash, bicubic with antialiasing"
    assert result["data"] == {"test": "davis/val, 1 sequences, 1 objects, 6 frames"}
    masks = sorted((tmp_path / "masks").rglob("*.png"))
    assert [str(path.relative_to(tmp_path / "masks")) for path in masks] == [f"other/{n:05}.png" for n in range(6)]
    with Image.open(masks[-1]) as image:
        assert image.mode == "P"
        assert image.size == (160, 96)
        assert image.getpalette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
        assert set(np.unique(np.array(image))) == {0, 1}


def test_perfect_masks_score_100(tmp_path):
    build(tmp_path, objects=2)
    sequence = davis.find_sequences(tmp_path, "val")[0]
    scores = davis.score(sequence, iter([sequence.read(n) for n in range(6)]))
    figures = davis.figures({"square": scores})
    assert figures["j"] == figures["f"] == figures["j_and_f"] == figures["j_recall"] == 100
    assert figures["j_decay"] == figures["f_decay"] == 0
    # The first and the last frame do not count.
    nothing = np.zeros((96, 160), np.uint8)
    predictions = [nothing, *[sequence.read(n) for n in range(1, 5)], nothing]
    assert davis.score(sequence, iter(predictions)) == scores


def test_wrong_data_is_one_sentence(run, tmp_path):
    root = tmp_path / "davis"
    assert "expected JPEGImages/480p/SEQUENCE/*.jpg" in run("pixels")
    build(root)
    assert "val.txt does not list cow" in run("pixels", "--sequences", "cow")
    assert "dev.txt does not exist" in run("pixels", "--split", "dev")
    mask = root / "Annotations" / "480p" / "square" / "00000.png"
    given = mask.read_bytes()
    Image.fromarray(np.full((96, 160), 255, np.uint8)).save(mask)
    assert "00000.png holds no object" in run("pixels")
    mask.write_bytes(given)
    later = mask.with_name("00003.png")
    davis.write_mask(np.zeros((9, 9), np.uint8), later)
    assert "00003.png are 9 x 9; mend the data" in run("pixels")
    later.unlink()
    assert "images and masks of square" in run("pixels")


@pytest.mark.skipif(not DAVIS.is_dir(), reason="DAVIS is not beside the checkout")
def test_some_frames_of_davis(run, tmp_path):
    for kind in ("JPEGImages", "Annotations"):
        target = tmp_path / "davis" / kind / "480p" / "blackswan"
        target.mkdir(parents=True)
        for path in sorted((DAVIS / kind / "480p" / "blackswan").iterdir())[:4]:
            shutil.copy(path, target)
    shutil.copytree(DAVIS / "ImageSets", tmp_path / "davis" / "ImageSets")
    figures = run("pixels", "--sequences", "blackswan")["figures"]
    assert figures["j"] > 40
