import json

import pytest
from PIL import Image

from training.engine.curves import plot_curves


@pytest.mark.parametrize("loss", [[], [2.0], [3.0, 3.0], [float("nan"), float("inf")], [1.0, 1e30]])
def test_any_log_can_be_drawn(tmp_path, loss):
    pytest.importorskip("matplotlib")
    lines = [json.dumps({"step": step + 1, "loss": value, "other": 1.0}) for step, value in enumerate(loss)]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    plot_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (2200, 352)


def test_a_run_that_went_on_elsewhere_logs_other_things(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [{"step": 1, "loss": 2.0, "utilization": 0.4}, {"step": 2, "loss": 1.0, "other": 3.0}]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    plot_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (2200, 352)
