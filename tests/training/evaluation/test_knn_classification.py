import json

import numpy as np
import pytest
from PIL import Image

from training import evaluate

CLASSES = 6


@pytest.fixture
def colours(tmp_path):
    """An image folder whose classes are hues with noise."""
    rng = np.random.default_rng(0)
    for number, hue in enumerate(np.linspace(0, 255, CLASSES, endpoint=False)):
        for split, count in (("train", 5), ("val", 3)):
            folder = tmp_path / "set" / split / f"class{number}"
            folder.mkdir(parents=True)
            for index in range(count):
                hsv = np.array([hue, 200, 160]) + rng.normal(0, 4, (40, 50, 3))
                image = Image.fromarray(hsv.clip(0, 255).astype(np.uint8), "HSV").convert("RGB")
                image.save(folder / f"{index}.png")
    return tmp_path / "set"


def test_command_on_colours(run_command, colours, tmp_path, capsys):
    arguments = ["knn-classification", "--data", colours, "--cache", tmp_path / "cache", "--k", "3", "10", "20", "100"]
    assert run_command(evaluate.main, *arguments, "--model", "pixels") is None
    result = json.loads(capsys.readouterr().out)
    assert result["figures"]["k3_top1"] == 100
    assert set(result["figures"]) == {f"k{k}_top{n}" for k in (3, 10, 20) for n in (1, 5)}
    assert result["setting"]["k"] == [3, 10, 20]
    assert result["setting"]["note"] == "k = 100 left out: there are 30 training images"
    assert result["data"] == {"train": "set/train, 30 images of 6 classes", "test": "set/val, 18 images of 6 classes"}
    # the same everywhere: every image gets one and the same class
    assert run_command(evaluate.main, *arguments, "--model", "constant") is None
    assert json.loads(capsys.readouterr().out)["figures"]["k10_top1"] == pytest.approx(100 / CLASSES, abs=0.01)


def test_a_class_without_a_vote_is_no_hit(run_command, colours, tmp_path, capsys):
    arguments = ["--data", colours, "--cache", tmp_path / "cache", "--model", "constant", "--k", "1"]
    assert run_command(evaluate.main, "knn-classification", *arguments) is None
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert figures["k1_top5"] == figures["k1_top1"] == pytest.approx(100 / CLASSES, abs=0.01)


def test_wrong_numbers_of_neighbours_are_one_sentence(run_command, colours, tmp_path):
    arguments = ["--data", colours, "--cache", tmp_path / "cache", "--model", "constant", "--k"]
    error = run_command(evaluate.main, "knn-classification", *arguments, "100", "31")
    assert error == "error: there are 30 training images, fewer than any k; lower --k 31"
    assert "--k 0 is no number of neighbours" in run_command(evaluate.main, "knn-classification", *arguments, "0")
