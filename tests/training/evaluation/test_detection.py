import contextlib
import io
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from training import evaluate
from training.evaluation.finetune import detection
from training.evaluation.finetune.backbone import VitPyramid
from training.evaluation.finetune.detection import (
    CocoSplit,
    DetectionSettings,
    average_precision,
    build_detector,
    coco_results,
)
from training.evaluation.protocols import detection as protocol
from video_distilled_encoder import ModelConfig
from video_distilled_encoder.errors import InputError

COLOURS = {18: (220, 40, 40), 44: (40, 60, 220)}
"""COCO's category ids have gaps."""
TINY = [
    "crop=64", "short_sides=[64]", "longest=96", "iterations=2", "warmup=1", "sampled_boxes=16", "proposals=[40, 20]",
]  # fmt: skip


@pytest.fixture(autouse=True)
def small_and_on_one_thread(monkeypatch):
    monkeypatch.setattr(detection, "HEAD_WIDTH", 64)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_split(root, split, count, seed):
    """Coloured rectangles, as polygons and as RLE; one crowd, and one image without objects."""
    rng = np.random.default_rng(seed)
    (root / split).mkdir()
    (root / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []

    def add(image, category, box, segmentation, area, crowd=0):
        number = len(annotations) + 1
        shape = {"segmentation": segmentation, "area": float(area), "bbox": [float(v) for v in box], "iscrowd": crowd}
        annotations.append({"id": number, "image_id": image, "category_id": category, **shape})

    for number in range(count):
        name, image = f"{number:012d}.jpg", 100 + number
        pixels = np.full((64, 96, 3), 128, np.uint8)
        for side in (0, 48) if number else ():
            width, height = rng.integers(20, 44, 2)
            left, top = side + rng.integers(0, 48 - width), rng.integers(0, 64 - height)
            category = int(rng.choice(list(COLOURS)))
            pixels[top : top + height, left : left + width] = COLOURS[category]
            mask = np.zeros((64, 96), np.uint8, order="F")
            mask[top : top + height, left : left + width] = 1
            corners = [left, top, left + width, top, left + width, top + height, left, top + height]
            code = rle.encode(mask)
            segmentation = {"size": [64, 96], "counts": code["counts"].decode()}
            polygon = [[float(corner) for corner in corners]]
            add(image, category, (left, top, width, height), polygon if side else segmentation, mask.sum())
        if number == 1:
            add(image, 18, (0, 0, 96, 4), {"size": [64, 96], "counts": [0] + [4, 60] * 96}, 384, crowd=1)
        Image.fromarray(pixels).save(root / split / name, quality=95)
        images.append({"id": image, "file_name": name, "height": 64, "width": 96})
    categories = [{"id": n, "name": str(n), "supercategory": "thing"} for n in sorted(COLOURS, reverse=True)]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    write_split(root, "train2017", 8, 0)
    write_split(root, "val2017", 4, 1)
    return root


def perfect(split, image):
    target = split.target(image)
    found = {name: torch.as_tensor(target[name]) for name in ("boxes", "labels")}
    masks = target["masks"][:, None].float()
    return {**found, "scores": torch.linspace(0.9, 0.5, len(masks)), "masks": masks}


def test_targets_are_cocos(coco):
    split = CocoSplit(coco, "train2017")
    assert split.categories == [18, 44]
    assert split.images[0] not in split.with_objects()
    assert len(split.with_objects()) == 7
    image = split.images[1]
    target = split.target(image)
    pixels = split.read(image)
    assert len(target["boxes"]) == 2  # the crowd is left out
    for box, label, mask in zip(*(target[name] for name in ("boxes", "labels", "masks")), strict=True):
        left, top, right, bottom = box.int().tolist()
        expected = torch.zeros(64, 96, dtype=torch.uint8)
        expected[top:bottom, left:right] = 1
        assert torch.equal(torch.as_tensor(mask), expected)
        colour = torch.tensor(COLOURS[split.categories[label - 1]])
        middle = pixels[:, (top + bottom) // 2, (left + right) // 2]
        assert (middle.int() - colour).abs().max() < 30


@pytest.mark.parametrize("crop", [None, 48, 128])
def test_augmentation_moves_boxes_masks_and_pixels_together(coco, crop):
    split = CocoSplit(coco, "train2017")
    settings = DetectionSettings(short_sides=(48, 80), longest=200, crop=crop)
    sizes = set()
    for seed in range(8):
        torch.manual_seed(seed)
        pixels, target = split.augmented(settings, split.images[1 + seed % 7])
        sizes.add(tuple(pixels.shape[1:]))
        assert 0 <= pixels.min() <= pixels.max() <= 1
        for box, label, mask in zip(*(target[name] for name in ("boxes", "labels", "masks")), strict=True):
            rows, columns = torch.nonzero(mask, as_tuple=True)
            tight = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert (tight - box).abs().max() <= 1.5
            colour = torch.tensor(COLOURS[split.categories[label - 1]]) / 255
            inner = pixels[:, mask.bool()].median(1).values
            assert (inner - colour).abs().max() < 0.15
    assert sizes == ({(crop, crop)} if crop else {(48, 72), (80, 120)})


def test_perfect_detections_have_ap_100(coco):
    split = CocoSplit(coco, "val2017")
    results = [coco_results(split, image, perfect(split, image)) for image in split.images]
    for kind, number in (("bbox", 0), ("segm", 1)):
        figures = average_precision(split, [one for pair in results for one in pair[number]], kind)
        assert figures["ap"] == figures["ap50"] == figures["ap75"] == 100
        assert "ap_large" not in figures
        assert average_precision(split, [], kind)["ap"] == 0


def test_figures_equal_pycocotools_on_made_up_predictions(coco, tmp_path):
    rng = np.random.default_rng(0)
    split = CocoSplit(coco, "val2017")
    found: dict[str, list] = {"bbox": [], "segm": []}
    by_hand: dict[str, list] = {"bbox": [], "segm": []}
    for image in split.images:
        detections = perfect(split, image)
        count = len(detections["boxes"])
        shift = torch.tensor(rng.integers(-6, 7, (count, 1)))
        detections["boxes"] = (detections["boxes"] + shift).clamp(min=0)
        detections["masks"] = detections["masks"].roll(3, 2)
        detections["scores"] = torch.tensor(rng.random(count))
        for kind, part in zip(("bbox", "segm"), coco_results(split, image, detections), strict=True):
            found[kind] += part
        for box, label, score, mask in zip(
            *(detections[n].numpy() for n in ("boxes", "labels", "scores", "masks")), strict=True
        ):
            common = {"image_id": image, "category_id": [18, 44][label - 1], "score": float(score)}
            x, y, right, bottom = map(float, box)
            by_hand["bbox"].append({**common, "bbox": [x, y, right - x, bottom - y]})
            code = rle.encode(np.asfortranarray(mask[0].astype(np.uint8)))
            by_hand["segm"].append({**common, "segmentation": {**code, "counts": code["counts"].decode()}})
    for kind in ("bbox", "segm"):
        (tmp_path / "results.json").write_text(json.dumps(by_hand[kind]))
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(coco / "annotations" / "instances_val2017.json"))
            theirs = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), kind)
            theirs.evaluate()
            theirs.accumulate()
            theirs.summarize()
        ours = average_precision(split, found[kind], kind)
        assert 0 < ours["ap"] < 100
        assert [ours[name] for name in ("ap", "ap50", "ap75")] == (100 * theirs.stats[:3]).round(2).tolist()


def detector(**changes):
    torch.manual_seed(0)
    settings = DetectionSettings(
        short_sides=(64,), longest=96, sampled_boxes=32, proposals=(50, 20), warmup=2, batch_size=2, **changes
    )
    backbone = VitPyramid(ModelConfig(architecture="vit_tiny_patch16_224").build_backbone())
    return build_detector(backbone, 2, ModelConfig(), settings), settings


def test_the_backbone_gives_five_levels():
    network, _ = detector()
    levels = network.backbone(torch.randn(1, 3, 64, 128))
    assert {name: tuple(level.shape) for name, level in levels.items()} == {
        "0": (1, 256, 16, 32),
        "1": (1, 256, 8, 16),
        "2": (1, 256, 4, 8),
        "3": (1, 256, 2, 4),
        "pool": (1, 256, 1, 2),
    }


@pytest.mark.parametrize(
    "options", [{}, {"box_head": "4conv1fc"}, {"heads": "cascade", "box_head": "4conv1fc", "box_loss": "giou"}]
)
def test_an_image_may_have_no_object(options):
    network, _ = detector(**options)
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 64, 64, dtype=torch.uint8),
    }
    losses = network([torch.rand(3, 64, 64)] * 2, [empty, empty])
    assert all(torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()


def test_training_lowers_the_loss(coco):
    network, settings = detector(iterations=6, learning_rate=1e-4, drop_path=0.0, decay_at=())
    history = protocol.train_network(network, CocoSplit(coco, "train2017"), settings, seed=0, workers=0)
    assert len(history) == 6
    assert np.mean(history[-3:]) < 0.7 * np.mean(history[:2])


@pytest.mark.parametrize("heads", ["mask-rcnn", "cascade"])
def test_command(run_command, coco, tiny_directory, tmp_path, capsys, heads):
    out = tmp_path / "result.json"
    data = ["--data", coco, "--preset", "detection-small", "--workers", 0, "--set", *TINY, f"heads={heads}"]
    assert run_command(evaluate.main, "detection", "--model", tiny_directory, "--out", out, *data) is None
    result = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == result
    assert result["figures"]["box_ap"] == result["figures"]["box"]["ap"]
    assert 0 <= result["figures"]["mask_ap"] <= 100
    assert result["figures"]["loss"].keys() == {"first_tenth", "last_tenth"}
    assert result["setting"]["heads"] == heads
    assert result["data"]["train"].endswith("train2017, 8 images")


def test_davis_becomes_coco(tmp_path):
    write = runpy.run_path(str(Path(__file__).parent / "davis_as_coco.py"))["write"]
    labels = np.zeros((10, 40, 60), np.uint8)
    for frame in range(10):
        labels[frame, 5 : 10 + frame, 20:50] = 1
        for kind, pixels, ending in (("JPEGImages", labels[frame] * 200, "jpg"), ("Annotations", labels[frame], "png")):
            path = tmp_path / "davis" / kind / "480p" / "dog" / f"{frame:05}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    write(tmp_path / "davis", tmp_path / "coco")
    frames = {"train2017": [0, 4], "val2017": [7]}
    for name, chosen in frames.items():
        split = CocoSplit(tmp_path / "coco", name)
        assert [split.coco.imgs[image]["file_name"] for image in split.images] == [f"dog-{n:05}.jpg" for n in chosen]
        for image, frame in zip(split.images, chosen, strict=True):
            target = split.target(image)
            assert target["boxes"].tolist() == [[20, 5, 50, 10 + frame]]
            assert (np.asarray(target["masks"][0]) == labels[frame]).all()
            assert (split.read(image)[0].numpy() > 100).tolist() == labels[frame].astype(bool).tolist()


def test_wrong_input_is_one_sentence(run_command, coco, tiny_directory, tmp_path):
    def error(data, model, *extra):
        return run_command(evaluate.main, "detection", "--data", data, "--model", model, "--workers", 0, *extra)

    message = error(tmp_path, tiny_directory)
    assert (
        "instances_train2017.json does not exist; expected annotations/instances_train2017.json and train2017"
        in message
    )
    assert "pixels cannot be fine-tuned; choose an encoder" in error(coco, "pixels")
    assert "instances_test2017.json does not exist" in error(coco, tiny_directory, "--test-split", "test2017")
    assert "box_loss giou is of heads=cascade only" in error(coco, tiny_directory, "--set", "box_loss=giou")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train2017").mkdir()
    (tmp_path / "annotations" / "instances_train2017.json").write_text("{")
    assert "is not COCO's instances JSON" in error(tmp_path, tiny_directory)


def test_a_missing_or_wrong_image_is_named(tmp_path):
    write_split(tmp_path, "val2017", 3, 0)
    split = CocoSplit(tmp_path, "val2017")
    path = tmp_path / "val2017" / "000000000001.jpg"
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(InputError, match=r"000000000001.jpg is 8 x 8, not 64 x 96 as its annotations say"):
        split.read(split.images[1])
    path.unlink()
    with pytest.raises(InputError, match=r"000000000001.jpg does not exist"):
        split.read(split.images[1])


def test_without_pycocotools(monkeypatch, coco):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(InputError, match=r"pycocotools is not installed; .*\[evaluation\]"):
        CocoSplit(coco, "val2017")


def test_what_training_and_figures_need_is_there_before_training(run_command, tiny_directory, tmp_path, monkeypatch):
    monkeypatch.setattr(protocol, "train_network", lambda *_, **__: pytest.fail("it was trained"))
    for split in ("train2017", "val2017"):
        write_split(tmp_path, split, 3, 0)
    path = tmp_path / "annotations" / "instances_val2017.json"
    whole = json.loads(path.read_text())

    def error(**changes):
        path.write_text(json.dumps(whole | changes))
        return run_command(
            evaluate.main, "detection", "--data", tmp_path, "--model", tiny_directory, "--workers", 0,
            "--preset", "detection-small",
        )  # fmt: skip

    assert "no image of" in error(annotations=[])
    assert "val2017 has an object that is not a crowd" in error(annotations=[])
    other = [{**category, "name": "another"} for category in whole["categories"]]
    assert "have different categories" in error(categories=other)


def test_trained_weights_outlive_an_evaluation_that_fails(
    run_command, coco, tiny_directory, tmp_path, monkeypatch, capsys
):
    cache, out = tmp_path / "cache", tmp_path / "result.json"
    arguments = [
        "detection", "--data", coco, "--model", tiny_directory, "--preset", "detection-small", "--workers", 0,
        "--cache", cache, "--out", out, "--set", *TINY,
    ]  # fmt: skip

    def fail(*_, **__):
        raise InputError("no figures today")

    with monkeypatch.context() as patch:
        patch.setattr(protocol, "average_precision", fail)
        assert "no figures today" in run_command(evaluate.main, *arguments)
    (weights,) = cache.glob("*/weights.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(protocol, "train_network", lambda *_, **__: pytest.fail("it was trained again"))
        assert run_command(evaluate.main, *arguments) is None
    assert json.loads(out.read_text())["figures"]["loss"].keys() == {"first_tenth", "last_tenth"}
    assert str(weights) in capsys.readouterr().err
    monkeypatch.setattr(protocol, "train_network", fail)
    assert "no figures today" in run_command(evaluate.main, *arguments, "learning_rate=1e-5")
    assert "no figures today" in run_command(evaluate.main, *arguments, "--seed", 1)
