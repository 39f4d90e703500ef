import json

import numpy as np
import pytest
import torch
from PIL import Image

from training import evaluate
from training.evaluation.data.segmentation import LAYOUTS, Pair
from training.evaluation.probes import segmentation as probe
from training.evaluation.probes.linear import StandardizedLinear
from training.evaluation.protocols import flicker
from video_distilled_encoder.video import write_video

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def picture(photograph):
    return torch.tensor(np.array(Image.open(photograph).convert("RGB").resize((160, 96)))).movedim(-1, 0) / 255


def test_a_block_is_found_where_a_loop_finds_it(picture):
    first, second = picture[:, :40, :48], picture[:, 3:43, 5:53]
    corners = torch.tensor([[8, 16], [16, 8], [0, 0], [24, 32]])
    ends, costs = flicker.find_blocks(first, second, corners)
    for corner, end, cost in zip(corners.tolist(), ends.tolist(), costs, strict=True):
        block = first[:, corner[0] : corner[0] + 8, corner[1] : corner[1] + 8].double()
        found = {}
        for row in range(max(corner[0] - 12, 0), min(corner[0] + 12, 32) + 1):
            for column in range(max(corner[1] - 12, 0), min(corner[1] + 12, 40) + 1):
                other = second[:, row : row + 8, column : column + 8].double()
                found[row, column] = float((block - other).abs().mean())
        best = min(found, key=found.get)
        assert tuple(end) == best
        assert float(cost) == pytest.approx(found[best], abs=1e-4)


def test_a_known_motion_is_followed(picture):
    first, second = picture[:, 4:84, 4:140], picture[:, 7:87, 10:146]  # content moves up 3 and left 6
    starts, ends, asked = flicker.follow(first, second)
    assert asked == 10 * 17
    assert len(starts) > 0.7 * asked
    right = (ends - starts == torch.tensor([-3, -6])).all(1)
    assert right.double().mean() > 0.98
    noise = torch.rand(3, 80, 136, generator=torch.Generator().manual_seed(0))
    assert len(flicker.follow(first, noise)[0]) == 0


def test_nothing_moves_where_all_is_alike():
    grey = torch.full((3, 48, 64), 0.5)
    starts, ends, asked = flicker.follow(grey, grey)
    assert len(starts) == asked
    assert starts.equal(ends)


def test_labels_are_read_at_the_centres():
    labels = torch.arange(48 * 64).view(48, 64)
    assert flicker.label_at(labels, torch.tensor([[8, 16], [0, 56]])).tolist() == [12 * 64 + 20, 4 * 64 + 60]


def test_summary():
    videos = {
        "a": {"flicker": 0.1, "chance": 0.5, "followed": 0.8},
        "b": {"flicker": 0.3, "chance": 0.7, "followed": 0.6},
    }
    figures = flicker.summarize(videos, np.array([4, 0, 2, 2]))
    assert (figures["flicker"], figures["chance"], figures["followed"], figures["classes"]) == (20, 60, 70, 3)
    assert figures["units"] == {"a": 20, "b": 42.86}
    assert figures["relative"] == 31.43
    assert figures["entropy"] == 1.5
    silent = flicker.summarize({"a": {"flicker": 0.0, "chance": 0.0, "followed": 1.0}}, np.array([9, 0]))
    assert (silent["relative"], silent["entropy"], silent["interval"]) == (100, 0, [None, None])


def test_vspws_consistency_equals_its_scripts_loop():
    rng = np.random.default_rng(0)
    labels = rng.choice(2, (7, 6, 5), p=[0.9, 0.1])
    predictions = rng.choice(2, (7, 6, 5), p=[0.9, 0.1])
    expected = []
    for i in range(7 - 3):
        steady = sum(all(labels[i, y, x] == labels[i + j, y, x] for j in range(1, 3)) for y, x in np.ndindex(6, 5))
        both = sum(
            all(labels[i, y, x] == labels[i + j, y, x] for j in range(1, 3))
            and all(predictions[i, y, x] == predictions[i + j, y, x] for j in range(1, 3))
            for y, x in np.ndindex(6, 5)
        )
        expected.append(both / steady)
    assert flicker.video_consistency(labels, predictions, 3) == pytest.approx(expected)


def test_windows_are_of_one_size(tmp_path):
    rng, pairs = np.random.default_rng(0), []
    for number in range(21):
        path = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(1, 3, (32, 32 if number < 11 else 48), dtype=np.uint8)).save(path)
        pairs.append(Pair(path, path, "video", number))
    test = probe.Split(torch.rand(21, 2, 3, 6), pairs, LAYOUTS["vspw"])
    layer = StandardizedLinear(test.features, 124)
    parts = [
        flicker.vspw_consistency(layer, probe.Split(test.features[part], pairs[part], test.layout))["vc8"]
        for part in (slice(11), slice(11, 21))
    ]
    found = flicker.vspw_consistency(layer, test)["vc8"]
    assert found == pytest.approx(np.average(parts, weights=[3, 2]), abs=0.02)


@pytest.fixture
def colours(tmp_path):
    """CamVid's layout with colours as classes, and a video of the same colours sliding by."""
    rng = np.random.default_rng(0)
    palette = np.array([[220, 40, 40], [40, 200, 40], [40, 40, 220]])
    for split, count in (("train", 12), ("test", 3)):
        for part in (split, f"{split}annot"):
            (tmp_path / "data" / part).mkdir(parents=True)
        for number in range(count):
            labels = np.kron(rng.integers(0, 3, (4, 6)), np.ones((16, 16), int)).astype(np.uint8)
            Image.fromarray(palette[labels].astype(np.uint8)).save(tmp_path / "data" / split / f"{number}.png")
            Image.fromarray(labels).save(tmp_path / "data" / f"{split}annot" / f"{number}.png")
    strip = palette[np.kron(rng.integers(0, 3, (4, 14)), np.ones((16, 16), int))]
    strip = (strip + rng.integers(-30, 30, strip.shape)).clip(0, 255).astype(np.uint8)
    write_video(tmp_path / "slide.mp4", (np.ascontiguousarray(strip[:, 4 * i : 4 * i + 96]) for i in range(20)), 10)
    return tmp_path


def test_command(run_command, colours):
    figures = {}
    for model in ("pixels", "constant"):
        out = colours / f"{model}.json"
        arguments = ["--data", colours / "data", "--video", colours / "slide.mp4", "--steps", "100", "--frames", "4"]
        arguments += ["--cache", colours / "cache", "--out", out, "--model", model]
        assert run_command(evaluate.main, "flicker", *arguments) is None
        figures[model] = json.loads(out.read_text())["figures"]
    pixels, constant = figures["pixels"], figures["constant"]
    assert pixels["miou"] > 85
    assert pixels["classes"] == 3
    assert pixels["followed"] > 40
    assert 0 < pixels["relative"] < 70
    assert pixels["units"] == {"slide.mp4": pixels["relative"]}
    video = pixels["videos"]["slide.mp4"]
    assert pixels["relative"] == pytest.approx(100 * video["flicker"] / video["chance"], abs=0.1)
    assert (constant["flicker"], constant["relative"], constant["entropy"]) == (0, 100, 0)
    assert constant["miou"] < 25
