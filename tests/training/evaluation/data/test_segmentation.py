from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.evaluation.data.segmentation import LAYOUTS, VOID, Pair, unit_names, with_future_labels
from video_distilled_encoder import InputError


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (8, 12, 3) if path.suffix == ".jpg" else (8, 12)
    Image.fromarray(np.full(shape, value, dtype=np.uint8)).save(path)


@pytest.fixture
def vspw(tmp_path):
    for video, frames in (("a_1", 3), ("b_2", 2), ("c_3", 2)):
        for number in range(frames):
            save(tmp_path / "data" / video / "origin" / f"{number:08d}.jpg", 100)
            save(tmp_path / "data" / video / "mask" / f"{number:08d}.png", number)
    (tmp_path / "val.txt").write_text("b_2\na_1\n")
    return tmp_path


def test_vspw(vspw):
    layout = LAYOUTS["vspw"]
    pairs = layout.find(vspw, "val")
    assert [(pair.sequence, pair.frame) for pair in pairs] == [
        ("b_2", 0),
        ("b_2", 1),
        ("a_1", 0),
        ("a_1", 1),
        ("a_1", 2),
    ]
    assert [int(layout.read(pair.label)[0, 0]) for pair in pairs] == [VOID, 0, VOID, 0, 1]
    with pytest.raises(InputError, match=r"train\.txt does not exist; expected train\.txt with a video per line"):
        layout.find(vspw, "train")


def test_ade20k(tmp_path):
    for number in (0, 1, 150):
        save(tmp_path / "images" / "training" / f"ADE_{number}.jpg", 100)
        save(tmp_path / "annotations" / "training" / f"ADE_{number}.png", number)
    layout = LAYOUTS["ade20k"]
    pairs = layout.find(tmp_path, "training")
    assert sorted(int(layout.read(pair.label)[0, 0]) for pair in pairs) == [0, 149, VOID]
    with pytest.raises(InputError, match=r"expected images/validation/\*\.jpg and annotations/validation/\*\.png"):
        layout.find(tmp_path, "validation")


def test_future_labels_stay_within_their_sequence(vspw):
    pairs = LAYOUTS["vspw"].find(vspw, "val")
    assert with_future_labels(pairs, 0, 15) == pairs
    future = with_future_labels(pairs, 1 / 15, 15)
    assert [(pair.image.parts[-3], pair.image.stem[-1], pair.label.stem[-1]) for pair in future] == [
        ("b_2", "0", "1"),
        ("a_1", "0", "1"),
        ("a_1", "1", "2"),
    ]
    with pytest.raises(InputError, match="no sequence has two labelled frames 5 s apart, at 15 a second"):
        with_future_labels(pairs, 5, 15)


def test_the_future_is_counted_in_seconds(tmp_path):
    """The gaps of CamVid's 0016E5: 30 frames, mostly, and 29, 31, 270 and 1,950."""
    frames = [0, 30, 61, 90, 360, 390, 2340, 2370]
    pairs = [Pair(Path(f"{n}.jpg"), Path(f"{n}.png"), "0016E5", n) for n in frames]
    pairs += [Pair(Path(f"b{n}.jpg"), Path(f"b{n}.png"), "val", n) for n in range(7959, 8021, 2)]
    future = with_future_labels(pairs, 1, 30)
    found = [(int(pair.image.stem), int(pair.label.stem)) for pair in future if pair.sequence == "0016E5"]
    assert found == [(0, 30), (30, 61), (61, 90), (360, 390), (2340, 2370)]
    for pair in (pair for pair in future if pair.sequence == "val"):
        assert abs(int(pair.label.stem[1:]) - pair.frame - 30) <= 7  # a quarter of the distance
    with pytest.raises(InputError, match="these images are of none"):
        with_future_labels(pairs, 1, None)
    with pytest.raises(InputError, match="from 0, got -1"):
        with_future_labels(pairs, -1, 30)


def test_names_of_any_kind_in_the_list(tmp_path):
    for video in ("two words", "other"):
        for number in range(12):
            save(tmp_path / "data" / video / "origin" / f"{number}.jpg", 100)
            save(tmp_path / "data" / video / "mask" / f"{number}.png", number)
    (tmp_path / "val.txt").write_bytes("two words\r\nother\r\n".encode("utf-8-sig"))
    pairs = LAYOUTS["vspw"].pairs(tmp_path, "val")
    assert [(pair.sequence, pair.frame) for pair in pairs] == [
        (video, number) for video in ("two words", "other") for number in range(12)
    ]
    assert all(pair.image.stem == pair.label.stem == str(pair.frame) for pair in pairs)


def test_camvids_names_are_sequence_and_number(tmp_path):
    for name in ("0001TP_006690", "0001TP_006720", "Seq05VD_f00000", "picture"):
        save(tmp_path / "test" / f"{name}.jpg", 100)
        save(tmp_path / "testannot" / f"{name}.png", 11)
    pairs = LAYOUTS["camvid"].find(tmp_path, "test")
    assert [(pair.sequence, pair.frame) for pair in pairs] == [
        ("0001TP", 6690),
        ("0001TP", 6720),
        ("Seq05VD_f", 0),
        ("", 0),
    ]
    assert (LAYOUTS["camvid"].read(pairs[0].label) == VOID).all()


def test_units_are_recordings_or_runs_of_their_images():
    def pairs(**counts):
        return [Pair(Path(f"{name}_{n}.jpg"), Path(), name, n) for name, count in counts.items() for n in range(count)]

    camvid = pairs(first=62, second=171)  # as CamVid's test images
    names = unit_names(camvid)
    assert len(set(names)) == 12
    assert names[0] == names[20] == "from first_0"
    assert names[21] == "from first_21"
    assert [names.index(name) for name in dict.fromkeys(names)][3] == 62
    many = pairs(**{f"v{number}": 2 for number in range(12)})
    assert unit_names(many) == [f"v{number}" for number in range(12) for _ in range(2)]
    loose = [Pair(Path(f"{n}.jpg"), Path(), "", n) for n in range(5)]
    assert unit_names(loose) == [f"from {n}" for n in range(5)]
