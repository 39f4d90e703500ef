import argparse

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import top_k_accuracy_score

from training.evaluation.data.image_folder import ClassTokens, accuracy, find_images, find_splits, load_class_tokens
from training.models.loading import Constant, EncoderModel, Pixels
from video_distilled_encoder import InputError


@pytest.fixture
def folder(tmp_path):
    """Two classes, one with a folder inside, in both splits; the training part has an image more."""
    for split, names in (("train", ("b/2.jpg", "b/1.PNG", "a/inner/3.jpeg")), ("val", ("b/1.jpg", "a/1.jpg"))):
        for number, name in enumerate(names):
            path = tmp_path / "set" / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (80, 60), (60 * number, 90, 200)).save(path)
    (tmp_path / "set" / "train" / "a" / "note.txt").write_text("no image")
    return tmp_path / "set"


def arguments(folder, **extra):
    return argparse.Namespace(data=folder, train_split="train", test_split="val", cache=folder / "cache", **extra)


def test_the_order_is_torchvisions(folder):
    items, classes = find_images(folder, "train")
    assert classes == ["a", "b"]
    named = [(path.relative_to(folder / "train").as_posix(), number) for path, number in items]
    assert named == [("a/inner/3.jpeg", 0), ("b/1.PNG", 1), ("b/2.jpg", 1)]


def test_class_tokens_are_the_models_own_on_the_middle_of_the_image(folder, tiny, photograph):
    image = Image.open(photograph).convert("RGB").resize((80, 60))
    image.save(folder / "train" / "b" / "1.PNG")
    train, test, classes = load_class_tokens(EncoderModel(tiny, {"name": "tiny"}), arguments(folder), layers=1)
    assert (train.labels.tolist(), test.labels.tolist(), classes) == ([0, 1, 1], [0, 1], ["a", "b"])
    assert train.features.shape == (3, 64)
    resized = image.resize((341, 256), Image.Resampling.BICUBIC)
    similarities = [
        torch.cosine_similarity(
            train.features[1].float(), tiny.encode(crop, size=224, crop_mode="squash").cls[0], dim=0
        )
        for crop in (resized.crop((58, 16, 282, 240)), resized.crop((0, 16, 224, 240)), image)
    ]
    assert similarities[0] > 0.9999
    assert max(similarities[1:]) < 0.999


def test_caches_keep_no_grid(folder):
    load_class_tokens(Pixels(), arguments(folder), layers=1)
    grids = [np.load(path) for path in (folder / "cache").glob("*/grid.npy")]
    assert sorted(grid.shape for grid in grids) == [(2, 1, 1, 768), (3, 1, 1, 768)]


def test_the_size_is_the_multiple_of_the_patch_nearest_to_224():
    assert ClassTokens(Pixels()).size == (224, 224)
    model = Constant()
    model.patch_size = 15
    assert ClassTokens(model).size == (225, 225)


def test_accuracy_equals_scikit_learns():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(200, 8)), rng.integers(0, 8, 200)
    got = accuracy(torch.tensor(scores), torch.tensor(labels))
    for k in (1, 5):
        assert got[f"top{k}"] == pytest.approx(100 * top_k_accuracy_score(labels, scores, k=k), abs=0.01)
    assert accuracy(torch.eye(5), torch.arange(5)) == {"top1": 100.0}
    nothing = torch.full((6, 6), -torch.inf)
    assert accuracy(nothing, torch.zeros(6, dtype=torch.long)) == {"top1": 0.0, "top5": 0.0}


def test_wrong_folders_are_one_sentence(folder):
    with pytest.raises(InputError, match=r"test does not exist; expected a folder per class, test/CLASS/NAME\.jpg"):
        find_splits(folder, "train", "test")
    (folder / "train" / "c").mkdir()
    with pytest.raises(InputError, match=r"the class .*/c holds no image"):
        find_splits(folder, "train", "val")
    Image.new("RGB", (8, 8)).save(folder / "train" / "c" / "1.png")
    with pytest.raises(InputError, match=r"must have the same classes; 1 are in one alone, e\.g\. 'c'"):
        find_splits(folder, "train", "val")
    with pytest.raises(InputError, match="inner holds no class"):
        find_splits(folder / "train" / "a", "inner", "inner")
    (folder / "val" / "c").mkdir()
    (folder / "val" / "c" / "4.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"c/4\.jpg cannot be read as an image"):
        load_class_tokens(Pixels(), arguments(folder), layers=1)
