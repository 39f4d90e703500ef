import argparse
import json

import numpy as np
import pytest
import torch

from training import evaluate
from training.evaluation.data.video_frames import EncodedClip
from training.evaluation.metrics.correspondence import chance_share
from training.evaluation.protocols import cycle
from training.evaluation.statistics.bootstrap import interval


def clips_of(grids, offsets=(0.5,)):
    """(videos, pairs, 2, h, w, C) -> clips whose pairs follow one another."""
    found = []
    for number, grid in enumerate(grids):
        pairs = np.arange(2 * len(grid)).reshape(-1, 2)
        frames = grid.flatten(0, 1)
        found.append(EncodedClip(f"v{number}", frames.mean((1, 2)), frames, dict.fromkeys(offsets, pairs)))
    return found


def figures_of(grids):
    clips = clips_of(grids)
    return cycle.summarize(*cycle.measure(clips, [0.5], 0), clips, [0.5])


def test_what_is_known_of_it():
    torch.manual_seed(0)
    still = torch.randn(4, 3, 1, 6, 8, 64).expand(-1, -1, 2, -1, -1, -1)
    perfect = figures_of(still)
    assert perfect["cycle"] == 100
    assert 45 < perfect["control"] < 65  # unrelated frames: N / (2N - 1), and neighbours of home
    assert perfect["gap"] == pytest.approx(perfect["cycle"] - perfect["control"], abs=0.011)
    position = figures_of(torch.randn(6, 8, 64).expand(4, 3, 2, -1, -1, -1))
    assert (position["cycle"], position["control"], position["gap"]) == (100, 100, 0)
    noise = figures_of(torch.randn(4, 6, 2, 6, 8, 64))
    assert noise["cycle"] == pytest.approx(noise["control"], abs=6)
    assert abs(noise["gap"]) < 6
    constant = figures_of(torch.ones(4, 8, 2, 6, 8, 4))
    assert constant["cycle"] == pytest.approx(100 * chance_share(6, 8), abs=3)
    assert abs(constant["gap"]) < 4


def test_figures_are_means_over_videos_with_halves():
    rng = np.random.default_rng(0)
    shares, control = rng.uniform(0.5, 1, (5, 2)), rng.uniform(0, 0.3, (5, 2))
    clips = clips_of(torch.zeros(5, 1, 2, 2, 2, 4), (0.1, 1.0))
    figures = cycle.summarize(shares, control, clips, [0.1, 1.0])
    gap = 100 * (shares - control)
    assert figures["gap"] == pytest.approx(gap.mean(), abs=0.01)
    assert figures["half_a"] == pytest.approx(gap[[0, 2, 4]].mean(), abs=0.01)
    assert figures["half_b"] == pytest.approx(gap[[1, 3]].mean(), abs=0.01)
    assert figures["at 1 s"]["cycle"] == pytest.approx(100 * shares[:, 1].mean(), abs=0.01)
    assert figures["interval"] == pytest.approx(interval(gap.mean(1)), abs=0.01)
    assert list(figures["units"]) == [f"v{number}" for number in range(5)]


def test_command(run_command, make_video, clip, tmp_path, capsys):
    folder = make_video("videos/noise.mp4", size=(128, 96)).parent
    (folder / "dog.mp4").write_bytes(clip.read_bytes())
    arguments = ["--data", folder, "--frames", "2", "--offsets", "0.1", "1", "--size", "96", "128"]
    for model in ("pixels", "constant"):
        out = tmp_path / f"{model}.json"
        extra = ["--cache", tmp_path / "cache", "--out", out, "--model", model]
        assert run_command(evaluate.main, "cycle", *arguments, *extra) is None
        result = json.loads(out.read_text())
        assert result["setting"]["grid"] == [6, 8]
        assert result["data"]["videos"] == ["dog.mp4", "noise.mp4"]
        near, far = (result["figures"][f"at {offset} s"]["gap"] for offset in ("0.1", "1"))
        assert near > far if model == "pixels" else abs(near) < 15
    capsys.readouterr()
    assert run_command(evaluate.main, "compare", tmp_path / "pixels.json", tmp_path / "constant.json") is None
    assert "gap" in capsys.readouterr().out


def test_options_have_defaults():
    parser = argparse.ArgumentParser()
    cycle.add_arguments(parser)
    assert parser.parse_args([]).offsets == [0.1, 0.2, 0.5, 1.0, 2.0]
