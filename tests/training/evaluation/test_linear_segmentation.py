import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import jaccard_score

from training import evaluate
from training.evaluation.data.segmentation import LAYOUTS, VOID
from training.evaluation.protocols import linear_segmentation as protocol

CAMVID = Path(__file__).parents[4] / "shared" / "data" / "camvid"
CLASSES = 11


@pytest.fixture
def colours(coloured_set, tmp_path):
    """A data set whose classes are colours, so that pixels alone can be segmented."""
    return coloured_set(tmp_path, train=12, test=5, void_rows=3)


def test_the_score_equals_scikit_learns():
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 2, 5, VOID], size=(40, 50))
    prediction = rng.choice([0, 1, 2, 5], size=(40, 50))
    got = protocol.confusion_matrix(torch.tensor(prediction), torch.tensor(labels, dtype=torch.uint8), CLASSES)
    valid = labels != VOID
    expected = sklearn_confusion(labels[valid], prediction[valid], labels=range(CLASSES))
    assert np.array_equal(got, expected)
    iou = protocol.intersection_over_union(got)
    assert np.isnan(iou[[3, 4, 6, 7, 8, 9, 10]]).all()
    theirs = jaccard_score(labels[valid], prediction[valid], labels=[0, 1, 2, 5], average=None)
    assert np.allclose(iou[[0, 1, 2, 5]], theirs)


def test_the_loss_equals_pixelwise_cross_entropy():
    torch.manual_seed(0)
    labels = torch.randint(0, CLASSES + 1, (2, 32, 48))
    labels[labels == CLASSES] = VOID
    logits = torch.randn(2, CLASSES, 2, 3)
    shares = torch.stack([protocol.class_shares(image.to(torch.uint8), (2, 3), CLASSES) for image in labels])
    ours = -(shares * logits.log_softmax(1).movedim(1, -1)).sum() / shares.sum()
    upsampled = torch.nn.functional.interpolate(logits, (32, 48), mode="nearest")
    theirs = torch.nn.functional.cross_entropy(upsampled, labels, ignore_index=VOID)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_the_standardisation_is_folded_in_rightly():
    torch.manual_seed(0)
    tokens = (torch.randn(4, 3, 5, 7) * torch.arange(1, 8) + 3).half()
    layer = protocol.StandardizedLinear(tokens, 2)
    flat = tokens.double().flatten(0, 2)
    standard = (tokens.double() - flat.mean(0)) / flat.std(0, correction=0)
    expected = standard @ layer.linear.weight.double().T + layer.linear.bias.double()
    assert torch.allclose(layer(tokens).double(), expected, atol=1e-3)


def test_command_on_colours(run_command, colours, tmp_path, capsys):
    out = tmp_path / "result.json"
    arguments = ["linear-segmentation", "--data", colours, "--steps", "150", "--cache", tmp_path / "cache"]
    assert run_command(evaluate.main, *arguments, "--model", "pixels", "--out", out) is None
    result = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == result
    assert result["figures"]["miou"] > 85
    assert result["protocol"] == "linear-segmentation"
    assert result["setting"]["size"] == [64, 96]
    assert result["data"]["test"].endswith("5 images")


def test_wrong_data_is_one_sentence(run_command, colours):
    def error(*extra):
        arguments = ["--data", colours, "--model", "pixels", "--cache", colours / "cache", *extra]
        return run_command(evaluate.main, "linear-segmentation", *arguments)

    assert "dev does not exist; expected dev/NAME.jpg and devannot/NAME.png" in error("--test-split", "dev")
    label = colours / "testannot" / "3.png"
    labels = np.array(Image.open(label))
    Image.fromarray(np.full_like(labels, 77)).save(label)
    assert "3.png holds class 77; classes are 0 to 10, and 11 for void" in error("--steps", "1")
    label.unlink()
    assert "do not match, e.g. ['3']" in error()


@pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is not beside the checkout")
def test_camvids_files_are_read():
    layout = LAYOUTS["camvid"]
    pairs = layout.find(CAMVID, "val")
    assert len(pairs) == 101
    labels = np.stack([layout.read(pair.label) for pair in pairs[:20]])
    assert labels.shape == (20, 360, 480)
    assert set(np.unique(labels)) <= {*range(11), VOID}


def test_future_labels_share_the_features_of_the_present(tmp_path):
    """Frames of one grey level whose labels are one number each: features of frame n, label of frame n + 1."""
    for number in range(4):
        for folder, value in (("train", 40 * number), ("trainannot", number)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(np.full((32, 32), value, np.uint8)).save(tmp_path / folder / f"a_{number}.png")
    pairs = LAYOUTS["camvid"].find(tmp_path, "train")
    features = torch.arange(4.0).view(4, 1, 1, 1)
    ahead = protocol.look_ahead(protocol.Split(features, pairs, LAYOUTS["camvid"]), 1)
    assert ahead.features.flatten().tolist() == [0, 1, 2]
    assert [int(ahead.labels(number)[0, 0]) for number in range(3)] == [1, 2, 3]
