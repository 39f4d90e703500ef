import numpy as np
import pytest
from PIL import Image

from training.evaluation.data.segmentation import LAYOUTS, VOID, with_future_labels
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
    assert with_future_labels(pairs, 0) == pairs
    future = with_future_labels(pairs, 1)
    assert [(pair.image.parts[-3], pair.image.stem[-1], pair.label.stem[-1]) for pair in future] == [
        ("b_2", "0", "1"),
        ("a_1", "0", "1"),
        ("a_1", "1", "2"),
    ]
    with pytest.raises(InputError, match="no sequence has two labelled frames 5 apart"):
        with_future_labels(pairs, 5)


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
