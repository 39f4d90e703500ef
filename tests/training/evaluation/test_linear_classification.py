import json

import numpy as np
import pytest
from PIL import Image

from training import evaluate
from training.evaluation.probes.classification import RATES

pytestmark = pytest.mark.usefixtures("one_thread")


def test_command_on_colours(run_command, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for number in range(3):
        for split, count in (("train", 8), ("val", 4)):
            folder = tmp_path / "set" / split / f"class{number}"
            folder.mkdir(parents=True)
            for index in range(count):
                image = np.eye(3)[number] * 80 + 80 + rng.normal(0, 20, (30, 30, 3))
                Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")
    arguments = ["linear-classification", "--data", tmp_path / "set", "--cache", tmp_path / "cache", "--epochs", "5"]
    assert run_command(evaluate.main, *arguments, "--model", "pixels") is None
    result = json.loads(capsys.readouterr().out)
    assert result["figures"]["top1"] == 100
    assert "top5" not in result["figures"]
    assert result["figures"]["learning_rate"]["chosen"] in RATES
    assert result["setting"]["features"] == "class tokens, last 4 block(s), no augmentation"
    assert result["data"]["test"] == "set/val, 12 images of 3 classes"
    assert run_command(evaluate.main, *arguments, "--model", "constant") is None
    assert json.loads(capsys.readouterr().out)["figures"]["top1"] == pytest.approx(100 / 3, abs=0.01)
