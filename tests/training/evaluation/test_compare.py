import json

import numpy as np

from training import evaluate


def write(path, name, miou, **changes):
    result = {"protocol": "p", "setting": {"size": 1}, "data": "d", "model": {"name": name}, "figures": {"miou": miou}}
    result["figures"]["iou"] = {"road": 1.0}
    path.write_text(json.dumps(result | changes))
    return path


def test_a_row_for_each_result(run_command, tmp_path, capsys):
    files = [write(tmp_path / "a.json", "random", 17.31), write(tmp_path / "b.json", "longer-name", 7.5)]
    assert run_command(evaluate.main, "compare", *files) is None
    assert capsys.readouterr().out.splitlines() == [
        "model         miou",
        "random       17.31",
        "longer-name   7.50",
    ]


def test_only_like_is_compared_with_like(run_command, tmp_path):
    one = write(tmp_path / "a.json", "random", 1)
    other = write(tmp_path / "b.json", "random", 1, setting={"size": 2})
    assert "b.json has another setting than a.json" in run_command(evaluate.main, "compare", one, other)
    (tmp_path / "c.json").write_text("[]")
    assert "c.json is not a result" in run_command(evaluate.main, "compare", one, tmp_path / "c.json")


def test_figures_by_video_are_compared_video_by_video(run_command, tmp_path, capsys):
    rng = np.random.default_rng(0)
    base = rng.normal(50, 20, 12)
    files = []
    for name, values in (
        ("first", base),
        ("better", base + rng.normal(5, 1, 12)),
        ("alike", base + rng.normal(0, 9, 12)),
    ):
        figures = {"gap": values.mean(), "videos": {str(video): value for video, value in enumerate(values)}}
        files.append(write(tmp_path / f"{name}.json", name, 0.0, figures=figures))
    assert run_command(evaluate.main, "compare", *files) is None
    head, first, better, alike = capsys.readouterr().out.splitlines()
    assert head.endswith("by video, against first")
    assert first.split()[1:] == [f"{base.mean():.2f}"]
    assert better.endswith("larger")
    assert "+5." in better or "+4." in better
    assert alike.endswith("cannot tell")


def test_several_figures_of_a_video_are_not_compared(run_command, tmp_path, capsys):
    figures = {"flicker": 3.0, "videos": {"a": {"flicker": 0.1, "followed": 0.5}}}
    files = [write(tmp_path / f"{name}.json", name, 0.0, figures=figures) for name in "ab"]
    assert run_command(evaluate.main, "compare", *files) is None
    assert capsys.readouterr().out.splitlines()[0] == "model  flicker"
