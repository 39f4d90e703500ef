import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training import evaluate
from training.evaluation.data.labels import VOID
from training.evaluation.data.segmentation import LAYOUTS
from training.evaluation.measure import evaluate as measure
from training.evaluation.protocols import linear_segmentation

CAMVID = Path(__file__).parents[4] / "shared" / "data" / "camvid"


@pytest.fixture
def colours(coloured_set, tmp_path):
    """A data set whose classes are colours, so that pixels alone can be segmented."""
    return coloured_set(tmp_path, train=12, test=5, void_rows=3)


def test_command_on_colours(run_command, colours, tmp_path, capsys):
    out = tmp_path / "result.json"
    arguments = ["linear-segmentation", "--data", colours, "--steps", "150", "--cache", tmp_path / "cache"]
    assert run_command(evaluate.main, *arguments, "--model", "pixels", "--out", out) is None
    result = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == result
    assert result["figures"]["miou"] > 85
    assert result["protocol"] == "linear-segmentation"
    assert list(result["figures"]["units"]) == [f"from {number}" for number in range(5)]
    low, high = result["figures"]["interval"]
    assert low <= result["figures"]["miou"] <= high
    assert result["setting"]["size"] == [64, 96]
    assert result["data"]["test"].endswith("5 images")


def test_a_result_is_reused_for_the_same_data_only(run_command, colours, tmp_path, capsys):
    """The right figure of the second folder is measured beside it, without a result that could be reused."""

    def measure(data, out, *extra):
        arguments = ["--data", data, "--steps", "40", "--cache", tmp_path / "cache", "--model", "pixels", *extra]
        assert run_command(evaluate.main, "linear-segmentation", *arguments, "--out", tmp_path / out) is None
        return json.loads(capsys.readouterr().out)

    out = tmp_path / "result.json"
    first = measure(colours, "result.json", "--reuse")
    out.write_text(json.dumps({**first, "figures": {"miou": -1}}))
    arguments = ["--data", colours, "--steps", "40", "--cache", tmp_path / "cache", "--model", "pixels"]
    assert run_command(evaluate.main, "linear-segmentation", *arguments, "--out", out, "--reuse") is None
    printed = capsys.readouterr()
    assert json.loads(printed.out)["figures"] == {"miou": -1}
    assert "result.json is this result already" in printed.err
    label = colours / "testannot" / "0.png"
    Image.fromarray(np.zeros_like(np.array(Image.open(label)))).save(label)
    assert measure(colours, "result.json", "--reuse")["figures"] == measure(colours, "fresh.json")["figures"]
    old = {key: value for key, value in first.items() if key != "fingerprint"}
    out.write_text(json.dumps({**old, "figures": {"miou": -1}}))
    assert measure(colours, "result.json", "--reuse")["figures"]["miou"] > 0


@pytest.mark.parametrize("protocol", ["linear-segmentation", "knn-segmentation", "degradation", "upernet"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_that_are_all_void_are_refused_before_any_work(run_command, colours, monkeypatch, protocol, split):
    for path in (colours / f"{split}annot").iterdir():
        Image.fromarray(np.full_like(np.array(Image.open(path)), 11)).save(path)
    arguments = ["--data", colours, "--model", "random:vit_tiny_patch16_224", "--cache", colours / "cache"]
    arguments += ["--layout", "camvid"] if protocol == "upernet" else []
    told = run_command(evaluate.main, protocol, *arguments)
    assert f"label pictures of {colours / split} is void (11); check that the labels are of this layout" in told
    assert not (colours / "cache").exists()


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


def test_what_training_chose_in_this_process_is_no_part_of_a_measure(monkeypatch, coloured_set, tmp_path):
    data, seen = coloured_set(tmp_path / "colours", train=1, test=1), []

    def measured(model, args):
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return {"figures": {}}

    monkeypatch.setattr(linear_segmentation, "evaluate", measured)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        measure(["linear-segmentation", "--model", "pixels", "--data", str(data)])
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == [("highest", False)]
