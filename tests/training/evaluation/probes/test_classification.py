import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from training.evaluation.data.image_folder import LabelledFeatures
from training.evaluation.probes import classification as probe

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
    figures = probe.fit_and_score(train, test, CLASSES, CPU, epochs=8, seed=0)
    scaler = StandardScaler().fit(train.features.double())
    best = LogisticRegression(C=np.inf, max_iter=1000).fit(scaler.transform(train.features.double()), train.labels)
    expected = 100 * best.score(scaler.transform(test.features.double()), test.labels)
    assert 50 < expected < 85
    assert figures["top1"] == pytest.approx(expected, abs=1.5)
    assert figures["top5"] > 95


def test_training_comes_to_the_minimum():
    train = samples(400, 3)
    layer = probe.train_layer(train, CLASSES, 1.0, epochs=100, seed=0)
    loss = torch.nn.functional.cross_entropy(probe.predict(layer, train.features), train.labels).item()
    standard = StandardScaler().fit_transform(train.features.double())
    best = LogisticRegression(C=np.inf, max_iter=2000).fit(standard, train.labels)
    minimum = -np.mean(best.predict_log_proba(standard)[np.arange(400), train.labels])
    assert minimum <= loss + 1e-6
    assert loss == pytest.approx(minimum, rel=0.02)


def test_the_rate_is_chosen_without_the_test_part_and_repeats():
    train = samples(200, 4)
    rate, held_out = probe.choose_rate(train, CLASSES, epochs=2, seed=0)
    assert held_out[rate] == max(held_out.values())
    assert probe.choose_rate(train, CLASSES, epochs=2, seed=0) == (rate, held_out)
    assert all(value % 5 == 0 for value in held_out.values())  # of 20 held out
