import json

import numpy as np
import pytest
from PIL import Image

from training import evaluate
from training.evaluation.protocols import vip


@pytest.fixture
def root(tmp_path):
    """Two videos of a person of two parts who walks to the right; every frame is labelled but one."""
    rng = np.random.default_rng(0)
    root = tmp_path / "VIP_Fine"
    for name in ("videos1", "videos2"):
        images, labels = root / "Images" / name, root / "Annotations" / "Category_ids" / name
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        background = rng.normal((60, 120, 60), 12, (96, 160, 3))
        for frame in range(5):
            picture, classes = background.copy(), np.zeros((96, 160), np.uint8)
            left = 16 + 8 * frame
            picture[16:48, left : left + 32], classes[16:48, left : left + 32] = (220, 160, 140), 13
            picture[48:80, left : left + 32], classes[48:80, left : left + 32] = (40, 40, 200), 4
            classes[:4] = vip.VOID
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(images / f"{frame:012}.jpg", quality=95)
            if frame != 2:
                Image.fromarray(classes).save(labels / f"{frame:012}.png")
    (root / "lists").mkdir()
    (root / "lists" / "val_videos.txt").write_text("videos1\nvideos2\n")
    return root


@pytest.fixture
def run(run_command, root, tmp_path, monkeypatch):
    monkeypatch.setattr(vip, "VARIANT", vip.Variant("small", 3, 4, 5, 0.1, width=160))

    def run(model):
        out = tmp_path / f"{model}.json"
        arguments = ["vip", "--data", root, "--cache", tmp_path / "cache", "--model", model, "--out", out]
        return run_command(evaluate.main, *arguments) or json.loads(out.read_text())

    return run


def test_parts_are_followed(run):
    pixels, constant = run("pixels"), run("constant")
    figures = pixels["figures"]
    assert figures["miou"] > figures["miou_without_first"] > 65
    assert figures["miou_without_first"] > constant["figures"]["miou_without_first"] + 15
    assert set(figures["iou"]) == {"background", "face", "upper-clothes"}
    assert figures["miou"] == pytest.approx(np.mean(list(figures["iou"].values())), abs=0.02)
    assert pixels["setting"]["encoded_sizes"] == [[96, 160]]
    assert pixels["setting"]["resizing"] == "squash, bicubic with antialiasing"
    assert pixels["data"] == {"test": "VIP_Fine/val, 2 videos, 10 frames, 8 labelled"}


def test_the_variant_is_the_papers():
    assert vip.VARIANT.setting() == {
        "variant": "vip",
        "context": 20,
        "radius": 20,
        "top_k": 10,
        "temperature": 0.7,
        "width": 880,
        "multiple": 1,
    }
    assert len(vip.CLASSES) == 20


def test_wrong_data_is_one_sentence(run, root):
    labels = root / "Annotations" / "Category_ids" / "videos2"
    wrong = labels / f"{1:012}.png"
    Image.fromarray(np.full((96, 160), 20, np.uint8)).save(wrong)
    assert "holds class 20; classes are 0 to 19" in run("pixels")
    wrong.rename(labels / "9.png")
    assert "labels of videos2" in run("pixels")
    (labels / "9.png").rename(wrong)
    (labels / f"{0:012}.png").unlink()
    assert "at least two labelled frames, the first among them" in run("pixels")
    (root / "lists" / "val_videos.txt").unlink()
    assert "expected Images/VIDEO/*.jpg, Annotations/Category_ids/VIDEO/*.png" in run("pixels")
