import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from training import evaluate
from training.evaluation.data.labels import VOID
from training.evaluation.data.segmentation import LAYOUTS, Pair
from training.evaluation.probes.segmentation import Split
from training.evaluation.protocols import knn_segmentation as protocol

CLASSES = 11


@pytest.fixture
def colours(coloured_set, tmp_path):
    """A data set whose classes are colours; the top rows are void."""
    return coloured_set(tmp_path / "set", train=12, test=5, void_rows=16)


def test_a_patch_has_its_most_frequent_class():
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 4, VOID], size=(12, 20), p=[0.3, 0.2, 0.2, 0.3]).astype(np.uint8)
    got = protocol.majority(torch.tensor(labels), (3, 4), CLASSES)
    for row, column in np.ndindex(3, 4):
        patch = labels[4 * row : 4 * row + 4, 5 * column : 5 * column + 5]
        counts = {number: (patch == number).sum() for number in (0, 1, 4, VOID)}
        assert counts[int(got[row, column])] == max(counts.values())
    assert set(got.unique().tolist()) > {0, VOID}
    half = torch.tensor([[2, VOID], [VOID, 3]], dtype=torch.uint8)
    assert protocol.majority(half, (1, 1), CLASSES).item() == VOID
    assert protocol.majority(torch.full((2, 2), VOID, dtype=torch.uint8), (1, 1), CLASSES).item() == VOID


def test_votes_equal_scikit_learns():
    rng = np.random.default_rng(0)
    tokens, labels = rng.normal(size=(90, 8)), rng.integers(0, CLASSES, 90)
    labels[:CLASSES] = range(CLASSES)
    queries = rng.normal(size=(3, 5, 8))
    theirs = KNeighborsClassifier(
        12, metric="cosine", algorithm="brute", weights=lambda distances: np.exp((1 - distances) / 0.07)
    )
    expected = theirs.fit(tokens, labels).predict_proba(queries.reshape(15, 8)).reshape(3, 5, CLASSES)
    unit = torch.nn.functional.normalize(torch.tensor(tokens).float(), dim=1)
    got = protocol.patch_votes(protocol.Bank(unit, torch.tensor(labels)), torch.tensor(queries), 12, CLASSES)
    assert np.allclose(got, expected, atol=1e-4)


def test_the_bank_is_a_draw_of_labelled_patches(tmp_path):
    labels = np.kron(np.array([[0, 1, 11], [2, 11, 3]]), np.ones((4, 4))).astype(np.uint8)
    Image.fromarray(labels).save(tmp_path / "label.png")
    features = torch.arange(1, 13).float().view(2, 2, 3, 1) * torch.tensor([1.0, 0.0]) + torch.tensor([0.0, 1.0])
    pairs = [Pair(tmp_path / "none.png", tmp_path / "label.png", "", number) for number in range(2)]
    split = Split(features.half(), pairs, LAYOUTS["camvid"])
    whole = protocol.fill_bank(split, 100, seed=0)
    assert whole.labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert torch.allclose(whole.tokens.norm(dim=1), torch.ones(8))
    ratio = whole.tokens[:, 0] / whole.tokens[:, 1]
    assert torch.allclose(ratio, torch.tensor([1.0, 2, 4, 6, 7, 8, 10, 12]), rtol=1e-4)
    part, again, other = (protocol.fill_bank(split, 5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(part.tokens, again.tokens)
    assert part.labels.shape == (5,)
    assert not torch.equal(part.tokens, other.tokens)


def test_command_on_colours(run_command, colours, tmp_path, capsys):
    arguments = ["knn-segmentation", "--data", colours, "--cache", tmp_path / "cache", "--k", "5"]
    assert run_command(evaluate.main, *arguments, "--model", "pixels", "--bank", "150") is None
    result = json.loads(capsys.readouterr().out)
    assert result["figures"]["miou"] > 85
    assert result["setting"]["bank"] == 150
    assert result["setting"]["size"] == [64, 96]
    assert result["data"]["test"] == "set/test, 5 images"
    assert run_command(evaluate.main, *arguments, "--model", "constant") is None
    result = json.loads(capsys.readouterr().out)
    assert result["setting"]["bank"] == 12 * 18
    assert result["figures"]["miou"] < 15  # one class everywhere: a third of a third


def test_wrong_options_are_one_sentence(run_command, colours, tmp_path):
    def error(*extra):
        arguments = ["--data", colours, "--model", "constant", "--cache", tmp_path / "cache", *extra]
        return run_command(evaluate.main, "knn-segmentation", *arguments)

    assert "--k must be from 1 to the 20 patches of the bank, got 30" in error("--bank", "20")
    assert "--bank 0 is no number of patches" in error("--bank", "0")
    assert "dev does not exist" in error("--train-split", "dev")
    for path in (colours / "trainannot").iterdir():
        labels = np.full((64, 96), 11, np.uint8)
        labels[0, 0] = 1  # no patch is mostly of a class
        Image.fromarray(labels).save(path)
    assert "all patches of the 12 training images are void" in error()
