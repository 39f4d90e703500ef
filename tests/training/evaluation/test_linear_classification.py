import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from training import evaluate
from training.evaluation.data.image_folder import LabelledFeatures
from training.evaluation.protocols import linear_classification as protocol

CLASSES = 6
CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


def samples(count, seed):
    """Overlapping classes in 8 channels of very different scales and offsets."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(CLASSES, 8))
    labels = rng.integers(0, CLASSES, count)
    features = (centres[labels] + rng.normal(size=(count, 8))) * np.logspace(-2, 1, 8) + np.arange(8)
    return LabelledFeatures(torch.tensor(features).half(), torch.tensor(labels))


def test_accuracy_is_that_of_the_best_linear_layer():
    train, test = samples(600, 1), samples(1000, 2)
    figures = protocol.fit_and_score(train, test, CLASSES, CPU, epochs=8, seed=0)
    scaler = StandardScaler().fit(train.features.double())
    best = LogisticRegression(C=np.inf, max_iter=1000).fit(scaler.transform(train.features.double()), train.labels)
    expected = 100 * best.score(scaler.transform(test.features.double()), test.labels)
    assert 50 < expected < 85
    assert figures["top1"] == pytest.approx(expected, abs=1.5)
    assert figures["top5"] > 95


def test_training_comes_to_the_minimum():
    train = samples(400, 3)
    layer = protocol.train_layer(train, CLASSES, 1.0, epochs=100, seed=0)
    loss = torch.nn.functional.cross_entropy(protocol.predict(layer, train.features), train.labels).item()
    standard = StandardScaler().fit_transform(train.features.double())
    best = LogisticRegression(C=np.inf, max_iter=2000).fit(standard, train.labels)
    minimum = -np.mean(best.predict_log_proba(standard)[np.arange(400), train.labels])
    assert minimum <= loss + 1e-6
    assert loss == pytest.approx(minimum, rel=0.02)


def test_the_rate_is_chosen_without_the_test_part_and_repeats():
    train = samples(200, 4)
    rate, held_out = protocol.choose_rate(train, CLASSES, epochs=2, seed=0)
    assert held_out[rate] == max(held_out.values())
    assert protocol.choose_rate(train, CLASSES, epochs=2, seed=0) == (rate, held_out)
    assert all(value % 5 == 0 for value in held_out.values())  # of 20 held out


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
    assert result["figures"]["learning_rate"]["chosen"] in protocol.RATES
    assert result["setting"]["features"] == "class tokens, last 4 block(s), no augmentation"
    assert result["data"]["test"] == "set/val, 12 images of 3 classes"
    assert run_command(evaluate.main, *arguments, "--model", "constant") is None
    assert json.loads(capsys.readouterr().out)["figures"]["top1"] == pytest.approx(100 / 3, abs=0.01)
