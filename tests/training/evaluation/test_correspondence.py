import json

import numpy as np
import pytest
import torch
from PIL import Image

from training import evaluate
from training.evaluation.data.keypoints import KeypointPair, find_pairs
from training.evaluation.metrics.correspondence import normalize
from training.evaluation.metrics.keypoints import cells_of, centres_of, correct, enlarge, find_points
from training.evaluation.protocols.correspondence import score


def write_pair(root, name, category, images, points, size, box):
    """Write a pair as SPair-71k has it; images are names."""
    folder = root / "PairAnnotation" / "test"
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        "filename": f"{name}-{images[0]}-{images[1]}:{category}",
        "category": category,
        "src_imname": f"{images[0]}.jpg",
        "trg_imname": f"{images[1]}.jpg",
        "src_imsize": [*size, 3],
        "trg_imsize": [*size, 3],
        "src_bndbox": box,
        "trg_bndbox": box,
        "src_kps": np.asarray(points[0]).tolist(),
        "trg_kps": np.asarray(points[1]).tolist(),
        "kps_ids": [str(number) for number in range(len(points[0]))],
        "mirror": 0,
    }
    (folder / f"{told['filename']}.json").write_text(json.dumps(told))
    return folder / f"{told['filename']}.json"


@pytest.fixture
def spair(tmp_path):
    """Two categories of pictures of blocks of colour, each with itself and with its left-right mirrored copy."""
    rng = np.random.default_rng(0)
    root = tmp_path / "SPair"
    for category in ("cat", "dog"):
        (root / "JPEGImages" / category).mkdir(parents=True)
        image = np.kron(rng.integers(0, 255, (12, 20, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        for name, pixels in (("one", image), ("two", image[:, ::-1])):
            Image.fromarray(pixels).save(root / "JPEGImages" / category / f"{name}.jpg", quality=95)
        points = np.stack([rng.integers(0, 160, 30), rng.integers(0, 96, 30)], 1)
        mirrored = np.stack([159 - points[:, 0], points[:, 1]], 1)
        write_pair(root, "000001", category, ("one", "one"), (points, points), (160, 96), [0, 0, 160, 96])
        write_pair(root, "000002", category, ("one", "two"), (points, mirrored), (160, 96), [40, 20, 120, 60])
    return root


def test_cells_and_centres():
    size, grid = (60, 40), (4, 6)
    for x, y in ((0, 0), (9, 9), (10, 9), (59, 39), (30, 25), (-3, 500)):
        row, column = min(max((y + 0.5) // 10, 0), 3), min(max((x + 0.5) // 10, 0), 5)
        cell = cells_of(np.array([[x, y]], dtype=float), size, grid)
        assert cell.tolist() == [row * 6 + column]
        assert centres_of(cell, size, grid).tolist() == [[10 * column + 4.5, 10 * row + 4.5]]


def test_enlarging_is_pillows_bilinear():
    plane = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    theirs = np.asarray(Image.fromarray(plane).resize((28, 20), Image.Resampling.BILINEAR))
    assert np.allclose(enlarge(torch.tensor(plane)[..., None], 4)[..., 0], theirs, atol=1e-5)
    assert torch.equal(enlarge(torch.tensor(plane)[..., None].half(), 1)[..., 0], torch.tensor(plane).half().float())


def test_perfect_features_find_every_point():
    """Features that are a place's own: a permutation of the cells is undone."""
    rng = np.random.default_rng(0)
    target = torch.tensor(rng.normal(size=(48, 20)))
    order = torch.tensor(rng.permutation(48))
    found = find_points(3 * target[order], normalize(target), torch.Generator().manual_seed(0))
    assert torch.equal(found, order)


def place_features(places, size):
    """(…, 2) x and y -> (…, 4) features that are most alike where the places are nearest."""
    angle = np.pi / 2 * (places + 0.5) / np.array(size)
    return torch.tensor(np.concatenate([np.cos(angle), np.sin(angle)], -1))


def centres(size, grid):
    """Return the (h, w, 2) x and y of the centres of a grid's cells."""
    x, y = ((np.arange(count) + 0.5) / count * side - 0.5 for count, side in zip(grid[::-1], size, strict=True))
    return np.stack(np.meshgrid(x, y), -1)


@pytest.mark.parametrize("factor", [1, 4])
def test_a_known_warp_is_found(factor):
    """Turned, shrunk and moved into an image of other sides, points are found to a cell, and not at mirrored places."""
    size, other, grid = (320, 208), (208, 304), (26, 26)
    turn = 0.6 * np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])
    points = np.random.default_rng(0).uniform(0, 1, (200, 2)) * np.array(size)
    warped = points @ turn.T + np.array([50, 60])
    back = (centres(other, grid) - np.array([50, 60])) @ np.linalg.inv(turn).T
    grids = {"source": place_features(centres(size, grid), size), "target": place_features(back, size)}
    inside = ((warped >= 0) & (warped <= np.array(other) - 1)).all(1)
    assert 100 < inside.sum() < 200

    def share(truth, pixels):
        pair = KeypointPair("any", "source", "target", size, other, points[inside], truth[inside], pixels / 0.1)
        return next(score([pair], grids, factor, 0, torch.device("cpu"))).mean()

    cell = np.hypot(other[0], other[1]) / grid[0] / factor
    assert share(warped, cell) == 1
    assert share(np.array([other[0] - 1, 0]) + warped * np.array([-1, 1]), cell) < 0.2


def test_constant_features_are_chance():
    generator = torch.Generator().manual_seed(0)
    found = find_points(torch.ones(4000, 3), normalize(torch.ones(25, 3)), generator)
    counts = torch.bincount(found, minlength=25)
    assert counts.min() > 100
    assert counts.max() < 230


def test_a_point_is_right_within_a_tenth_of_the_box():
    truth = np.array([[10.0, 10], [10, 10], [10, 10]])
    found = truth + np.array([[6, 8], [6.1, 8], [0, 0]])
    assert correct(found, truth, 100, 0.1).tolist() == [True, False, True]


def test_pairs_as_spair_has_them(spair):
    pairs = find_pairs(spair, "test")
    assert [(pair.category, pair.source.name, pair.target.name) for pair in pairs] == [
        ("cat", "one.jpg", "one.jpg"),
        ("cat", "one.jpg", "two.jpg"),
        ("dog", "one.jpg", "one.jpg"),
        ("dog", "one.jpg", "two.jpg"),
    ]
    assert [pair.extent for pair in pairs] == [160, 80, 160, 80]
    assert np.array_equal(pairs[1].source_points[:, 0] + pairs[1].target_points[:, 0], np.full(30, 159))


def test_command(run_command, spair, tmp_path, capsys):
    arguments = ["correspondence", "--data", spair, "--cache", tmp_path / "cache", "--size", "320"]
    assert run_command(evaluate.main, *arguments, "--model", "pixels") is None
    result = json.loads(capsys.readouterr().out)
    assert result["figures"]["pck_image"] > 75
    assert result["figures"]["pck_point"] == pytest.approx(result["figures"]["pck_image"], abs=0.02)  # 30 points each
    assert result["figures"]["pck_image_nearest"] > 75
    assert result["figures"]["units"].keys() == {"cat", "dog"}
    assert result["data"]["test"] == "SPair/test, 4 pairs, 4 images, 2 categories"
    assert run_command(evaluate.main, *arguments, "--model", "constant") is None
    assert json.loads(capsys.readouterr().out)["figures"]["pck_image"] < 20


def test_an_image_with_itself_is_found_to_the_point(run_command, spair, tmp_path, capsys):
    for path in (spair / "PairAnnotation" / "test").glob("*one-two*"):
        path.unlink()
    arguments = ["correspondence", "--data", spair, "--cache", tmp_path / "cache", "--size", "160"]
    assert run_command(evaluate.main, *arguments, "--model", "random") is None
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert {figures[name] for name in figures if name.startswith("pck")} == {100}


def test_wrong_data_are_one_sentence(run_command, spair, tmp_path):
    def error(*extra, data=spair):
        arguments = ["--data", data, "--model", "constant", "--cache", tmp_path / "cache", *extra]
        return run_command(evaluate.main, "correspondence", *arguments)

    assert "PairAnnotation/val does not exist" in error("--split", "val")
    assert "--size 0 is no number of pixels" in error("--size", "0")
    images, box = ("one", "two"), [0, 0, 9, 9]
    wrong = write_pair(spair, "000009", "dog", images, ([[1, 1]], [[1, 1], [2, 2]]), (160, 96), box)
    assert "has 1 and 2 keypoints" in error()
    write_pair(spair, "000009", "dog", images, ([[1, 1]], [[1, 1]]), (160, 96), [9, 0, 9, 9])
    assert "expected left, top, right, bottom" in error()
    write_pair(spair, "000009", "dog", images, ([[1, 1]], [[1, 1]]), (96, 160), box)
    assert "is 96 x 160 but its keypoints" in error()
    wrong.write_text("{}")
    assert "is no description of a pair" in error()
    wrong.write_text("[1")
    assert "is no description of a pair" in error()
