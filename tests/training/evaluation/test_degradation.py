import json

import numpy as np
import pytest
import torch
from PIL import Image

from training import evaluate
from training.evaluation import measure
from training.evaluation.data.degradations import degrade
from training.evaluation.data.segmentation import LAYOUTS
from training.evaluation.metrics.segmentation import intersection_over_union
from training.evaluation.probes import segmentation as probe
from training.evaluation.probes.linear import StandardizedLinear
from training.evaluation.protocols import degradation
from training.models.loading import Pixels

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def colours(coloured_set, tmp_path):
    """A data set whose classes are colours."""
    return coloured_set(tmp_path / "data", train=12, test=7)


@pytest.fixture
def evaluate_on(run_command, colours, tmp_path):
    def run(model, *extra):
        out = tmp_path / "out.json"
        arguments = ["--data", colours, "--steps", "100", "--cache", tmp_path / "cache", "--out", out, "--model", model]
        assert run_command(evaluate.main, "degradation", *arguments, *extra) is None
        return json.loads(out.read_text())

    return run


def test_what_is_hidden_is_lost_and_what_is_not_is_kept(evaluate_on):
    result = evaluate_on("pixels", "--severities", "1", "5", "--degradations", "jpeg", "dropped-rows")
    figures = result["figures"]
    assert figures["clean_miou"] > 85
    assert figures["jpeg"] > 90
    assert figures["miou"]["dropped-rows"]["5"] < figures["miou"]["dropped-rows"]["1"] < figures["clean_miou"]
    every = [value for severities in figures["miou"].values() for value in severities.values()]
    assert figures["degraded_miou"] == pytest.approx(np.mean(every), abs=0.01)
    assert figures["retention"] == pytest.approx(100 * np.mean(every) / figures["clean_miou"], abs=0.02)
    assert result["data"]["test"].endswith("7 images")
    assert list(figures["units"]) == [f"{number}, from {number}" for number in range(7)]
    assert figures["half_a"] == pytest.approx(np.mean(list(figures["units"].values())[::2]), abs=0.01)


def test_features_too_large_for_float16_are_scored(evaluate_on, monkeypatch):
    class Loud(Pixels):
        def _features(self, pixels, layers):
            return tuple(feature * 1e6 for feature in super()._features(pixels, layers))

    asked = ("--severities", "1", "--degradations", "jpeg")
    expected = evaluate_on("pixels", *asked)["figures"]
    loud = Loud()
    loud.description = {"name": "loud"}
    monkeypatch.setattr(measure, "load_model", lambda *_, **__: loud)
    assert evaluate_on("loud", *asked, "--seed", "0")["figures"]["degraded_miou"] == pytest.approx(
        expected["degraded_miou"], abs=2
    )


def test_nothing_to_lose_retains_everything_of_little(evaluate_on):
    figures = evaluate_on("constant", "--severities", "5", "--test-images", "3")["figures"]
    assert figures["retention"] == 100
    assert figures["degraded_miou"] == figures["clean_miou"] < 25
    assert next(iter(figures)) == "degraded_miou"
    assert len(figures["miou"]) == 8


def test_the_images_are_degraded_each_in_its_own_way(colours, tmp_path):
    args = measure.parser().parse_args(
        ["degradation", "--model", "pixels", "--data", str(colours), "--test-images", "3", "--seed", "2"]
    )
    args.cache = tmp_path / "cache"
    _, test = degradation.load_splits(Pixels(), args)
    assert [pair.image.stem for pair in test.pairs] == ["0", "3", "6"]
    found = degradation.encode_degraded(Pixels(), test, args, "occlusion", 4)
    for number, pair in enumerate(test.pairs):
        image = degrade(np.array(Image.open(pair.image)), "occlusion", 4, seed=2, index=number)
        expected = Pixels().encode([image], (64, 96)).grid[0].movedim(0, -1).half()
        assert found[number].equal(expected)


def test_a_run_is_scored_by_itself(colours, tmp_path, monkeypatch):
    monkeypatch.setattr(degradation, "RUNS", 3)
    pairs = LAYOUTS["camvid"].find(colours, "test")
    test = probe.Split(torch.rand(7, 4, 6, 5), pairs, LAYOUTS["camvid"])
    assert [run.tolist() for run in degradation.runs(test)] == [[0, 1, 2], [3, 4], [5, 6]]
    layer = StandardizedLinear(test.features, 11)
    confusions = degradation.score_runs(layer, test)
    assert (confusions.sum(0) == probe.score(layer, test)).all()
    truth = torch.stack([test.labels(number) for number in (3, 4)])
    prediction = torch.stack([probe.predict(layer, test.features[number], (64, 96)) for number in (3, 4)])
    iou = [((truth == c) & (prediction == c)).sum() / ((truth == c) | (prediction == c)).sum() for c in truth.unique()]
    assert degradation.mean_iou(confusions[1]) == pytest.approx(np.mean(iou))


def test_a_run_without_labels_is_left_out(evaluate_on, colours):
    path = colours / "testannot" / "3.png"
    Image.fromarray(np.full_like(np.array(Image.open(path)), 11)).save(path)
    figures = evaluate_on("pixels", "--severities", "1", "--degradations", "jpeg")["figures"]
    assert list(figures["units"]) == [f"{number}, from {number}" for number in (0, 1, 2, 4, 5, 6)]
    assert figures["interval"][0] <= np.mean(list(figures["units"].values())) <= figures["interval"][1]


def test_the_mean_is_over_the_classes_that_occur():
    confusion = np.array([[8, 2, 0], [0, 0, 0], [5, 0, 5]])
    assert degradation.mean_iou(confusion) == pytest.approx((8 / 15 + 5 / 10) / 2)
    assert np.nanmean(intersection_over_union(confusion)) < degradation.mean_iou(confusion)
