import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_percentage_error, mean_squared_error

from training import evaluate
from training.evaluation.data.depth import LAYOUTS, Range, read_depth
from training.evaluation.data.segmentation import Pair, unit_names
from training.evaluation.features import Features
from training.evaluation.metrics.depth import depth_errors
from training.evaluation.probes import depth as probe
from video_distilled_encoder.errors import InputError

METRES = Range(1000, 1e-3, 10)


def save(path, metres, scale=1000):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.asarray(metres) * scale).round().astype(np.uint16)).save(path)


def grey(depth):
    """A picture whose brightness is its depth."""
    return Image.fromarray((np.asarray(depth)[..., None].repeat(3, 2) * 25).astype(np.uint8))


@pytest.fixture
def ramps(tmp_path):
    """A folder of pictures whose brightness is their depth, in centimetres; the top rows have none."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for number in range(count):
            depth = np.kron(rng.uniform(1, 9, (4, 6)), np.ones((16, 16)))
            (tmp_path / "set" / split / "rgb").mkdir(parents=True, exist_ok=True)
            grey(depth).save(tmp_path / "set" / split / "rgb" / f"{number}.png")
            depth[:16] = 0
            save(tmp_path / "set" / split / "depth" / f"{number}.png", depth, 100)
    return tmp_path / "set"


def test_errors_equal_scikit_learns():
    rng = np.random.default_rng(0)
    truth, prediction = rng.uniform(0.5, 9, (7, 9)), rng.uniform(0.5, 9, (7, 9))
    truth[2] = 0
    prediction[3] = truth[3]
    got = depth_errors(prediction.astype(np.float32), truth.astype(np.float32))
    ours, theirs = prediction[truth > 0], truth[truth > 0]
    assert got.rmse == pytest.approx(mean_squared_error(theirs, ours) ** 0.5, rel=1e-5)
    assert got.abs_rel == pytest.approx(mean_absolute_percentage_error(theirs, ours), rel=1e-5)
    near = [a / b < 1.25 and b / a < 1.25 for a, b in zip(ours, theirs, strict=True)]
    assert got.delta1 == pytest.approx(sum(near) / len(near))
    assert 1 / 7 < got.delta1 < 1
    assert np.isnan(depth_errors(prediction, 0 * truth)).all()


def test_the_loss_is_the_formula_in_float64():
    rng = np.random.default_rng(0)
    truth, prediction = rng.uniform(1, 9, (2, 5, 6)), rng.uniform(1, 9, (2, 5, 6))
    truth[0, :3] = 0
    known = truth > 0
    ratio = np.log(prediction[known] + 1e-3) - np.log(truth[known] + 1e-3)
    expected = np.sqrt(np.var(ratio) + 0.15 * np.mean(ratio) ** 2)
    assert probe.scale_invariant_loss(torch.tensor(prediction), torch.tensor(truth)).item() == pytest.approx(expected)
    scaled = probe.scale_invariant_loss(torch.tensor(2 * truth), torch.tensor(truth)).item()
    assert scaled == pytest.approx(np.sqrt(0.15) * np.log(2), rel=1e-3)  # of a wrong scale little is left


def test_cells_are_means_of_the_known():
    depth = np.random.default_rng(0).uniform(1, 9, (16, 24)).astype(np.float32)
    depth[:2] = 0
    depth[6, 7] = 0
    got = probe.cell_means(torch.tensor(depth), (2, 3)).numpy()
    for row, column in np.ndindex(8, 12):
        cell = depth[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert got[row, column] == pytest.approx(cell[cell > 0].mean() if cell.any() else 0, rel=1e-5)


def test_the_layer_reads_what_ridge_reads():
    rng = np.random.default_rng(0)
    coarse = torch.tensor(rng.normal(size=(40, 12, 2, 3)))  # scenes are smooth, for depths are enlarged bilinearly
    grid = torch.nn.functional.interpolate(coarse, (6, 8), mode="bilinear", align_corners=True).movedim(1, -1).numpy()
    depth = (4 + grid @ (rng.normal(size=12) / 3) + rng.normal(0, 0.2, (40, 6, 8))).clip(0.5, 9)
    features = Features(torch.tensor(rng.normal(size=(40, 3))).half(), torch.tensor(grid).half())
    known = Features(features.cls[:30], features.grid[:30])
    layer = probe.train_layer(known, lambda n: torch.tensor(depth[n]).float(), METRES, steps=500, seed=0)
    with torch.no_grad():
        ours = layer(Features(features.cls[30:], features.grid[30:])).numpy()
    ridge = Ridge().fit(grid[:30].reshape(-1, 12), depth[:30].ravel())
    theirs = ridge.predict(grid[30:].reshape(-1, 12))
    error, best = (mean_squared_error(depth[30:].ravel(), found.ravel()) ** 0.5 for found in (ours, theirs))
    assert best < 0.25
    assert error < 1.3 * best < depth[30:].std() / 3


def test_depths_are_read_in_their_unit(tmp_path):
    steps = np.array([[0, 1, 500], [2000, 10000, 10001]], dtype=np.uint16)
    Image.fromarray(steps).save(tmp_path / "depth.png")
    assert np.allclose(read_depth(tmp_path / "depth.png", METRES), [[0, 0.001, 0.5], [2, 10, 0]])
    assert np.allclose(read_depth(tmp_path / "depth.png", Range(5000, 0.2, 80)), [[0, 0, 0], [0.4, 2, 2.0002]])
    Image.fromarray(steps.astype(np.uint8)).save(tmp_path / "eight.png")
    assert read_depth(tmp_path / "eight.png", Range(25.5, 1e-3, 10))[0, 2] == pytest.approx((500 % 256) / 25.5)
    with pytest.raises(InputError, match=r"8 bits, at most 0.26 m"):
        read_depth(tmp_path / "eight.png", METRES)
    Image.new("RGB", (3, 2)).save(tmp_path / "colour.png")
    with pytest.raises(InputError, match="no single-channel depth image"):
        read_depth(tmp_path / "colour.png", METRES)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match="cannot be read as a depth image"):
        read_depth(tmp_path / "text.png", METRES)
    with pytest.raises(InputError, match="2 x 3, not 480 x 640"):
        read_depth(tmp_path / "depth.png", METRES, LAYOUTS["nyu"].crop)


def test_nyu_as_it_lies_on_disk(run_command, tmp_path, capsys):
    root = tmp_path / "nyu"
    depth = np.full((480, 640), 5.0)
    depth[:45] = depth[471:] = depth[:, :41] = depth[:, 601:] = 9.0  # which the crop leaves out
    for split, scenes, slash in (("train", ("kitchen_0028b", "study_0004"), "/"), ("test", ("bathroom", "office"), "")):
        lines = []
        for scene in scenes:
            save(root / scene / "sync_depth_00045.png", depth)
            grey(np.full((480, 640), 5.0)).save(root / scene / "rgb_00045.jpg")
            lines.append(f"{slash}{scene}/rgb_00045.jpg {slash}{scene}/sync_depth_00045.png 518.8579")
        lines.append(f"{slash}{scenes[0]}/rgb_00099.jpg None 518.8579")
        (root / f"nyu_{split}.txt").write_text("\n".join(lines) + "\n")
    arguments = ["linear-depth", "--data", root, "--model", "constant", "--cache", tmp_path / "cache", "--steps", "10"]
    assert run_command(evaluate.main, *arguments) is None
    result = json.loads(capsys.readouterr().out)
    assert result["figures"]["delta1"] == 100
    assert result["figures"]["rmse"] < 0.5
    assert result["figures"]["abs_rel"] < 0.1
    assert result["figures"]["units"].keys() == {"from rgb_00045", "office from rgb_00045"}
    assert result["data"] == {"train": "nyu/train, 2 images", "test": "nyu/test, 2 images"}
    assert result["setting"]["size"] == [480, 640]


def test_a_folder_of_pictures(run_command, ramps, tmp_path, capsys):
    arguments = ["linear-depth", "--layout", "folder", "--data", ramps, "--cache", tmp_path / "cache"]
    arguments += ["--depth-scale", "100", "--steps", "400"]
    found = {}
    for model in ("pixels", "constant"):
        assert run_command(evaluate.main, *arguments, "--model", model) is None
        found[model] = json.loads(capsys.readouterr().out)["figures"]
    assert found["pixels"]["rmse"] < 0.7 * found["constant"]["rmse"]
    assert found["pixels"]["delta1"] > found["constant"]["delta1"]
    assert len(found["pixels"]["units"]) == found["pixels"]["images"] == 6
    low, high = found["pixels"]["rmse_interval"]
    assert low <= found["pixels"]["rmse"] <= high


def test_wrong_data_are_one_sentence(run_command, ramps, tmp_path):
    def error(*extra, data=ramps):
        arguments = ["--data", data, "--model", "constant", "--cache", tmp_path / "cache", "--layout", "folder"]
        return run_command(evaluate.main, "linear-depth", *arguments, *extra)

    assert "no depth of the 12 training images is from 0.001 to 0.005 m" in error("--max-depth", "0.005")
    assert "0 < --min-depth < --max-depth" in error("--min-depth", "20")
    assert error("--steps", "0") == 2
    assert "nyu_train.txt does not exist" in error("--layout", "nyu")
    (tmp_path / "nyu_train.txt").write_text("one.jpg\n")
    assert "has the line 'one.jpg'" in error("--layout", "nyu", data=tmp_path)
    save(ramps / "train" / "depth" / "3.png", np.ones((10, 10)))
    assert "64 x 96 but its labels" in error()


def test_pairs_of_scenes_with_equal_names_are_units_of_their_own():
    pairs = [Pair(SimpleNamespace(stem=f"{n}"), None, scene, n) for scene in "ab" for n in range(12)]
    names = unit_names(pairs)
    assert len(set(names)) == 12
    assert [names.index(name) for name in names] == sorted(names.index(name) for name in names)
