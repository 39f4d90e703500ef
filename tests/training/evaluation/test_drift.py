import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from training import evaluate
from training.evaluation.data.video_frames import EncodedClip, other_frame
from training.evaluation.protocols import drift


def clips_of(grids):
    """(videos, pairs, 2, h, w, C) -> clips whose pairs follow one another."""
    found = []
    for number, grid in enumerate(grids):
        frames = grid.flatten(0, 1)
        pairs = {0.5: np.arange(2 * len(grid)).reshape(-1, 2)}
        found.append(EncodedClip(f"v{number}", frames.mean((1, 2)), frames, pairs))
    return found


def figures_of(grids):
    clips = clips_of(grids)
    return drift.summarize(drift.measure(clips, [0.5], 0), clips, [0.5])


def test_the_area_equals_scikit_learns():
    rng = np.random.default_rng(0)
    positives, negatives = rng.integers(0, 12, 300) / 7, rng.integers(-3, 9, 200) / 7
    expected = roc_auc_score(np.repeat([1, 0], [300, 200]), np.concatenate([positives, negatives]))
    assert drift.area_under_curve(torch.tensor(positives), torch.tensor(negatives)) == pytest.approx(expected, 1e-12)
    assert drift.area_under_curve(torch.ones(3), torch.ones(5)) == 0.5


def test_measures_equal_loops():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(3, 2, 1, 2, 3, 5))
    clips = clips_of(torch.tensor(np.concatenate([first, first + 0.5 * rng.normal(size=first.shape)], axis=2)))
    found = drift.measure_video(clips, 1, 0.5, torch.Generator().manual_seed(0))

    def cosine(a, b):
        a, b = np.asarray(a), np.asarray(b)
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    same, other, within, cls = [], [], [], []
    for pair in range(2):
        base, later = clips[1].grid[2 * pair], clips[1].grid[2 * pair + 1]
        clip, frame = other_frame(clips, 1, pair, 0.5)
        assert clip != 1
        for place in np.ndindex(2, 3):
            same.append(cosine(base[place], later[place]))
            other.append(cosine(base[place], clips[clip].grid[frame][place]))
            within += [cosine(base[place], base[q]) for q in np.ndindex(2, 3) if q != place]
        cls.append(cosine(clips[1].cls[2 * pair], clips[1].cls[2 * pair + 1]))
    assert found["drift"] == pytest.approx(1 - np.mean(same))
    assert found["other"] == pytest.approx(1 - np.mean(other))
    assert found["within"] == pytest.approx(1 - np.mean(within))
    assert found["drift_cls"] == pytest.approx(1 - np.mean(cls))
    assert found["margin"] == pytest.approx(np.mean(same) - np.mean(other))
    expected = roc_auc_score([1] * len(same) + [0] * len(other), same + other)
    assert found["auc"] == pytest.approx(expected)


def test_what_drifts_least_is_not_what_scores():
    torch.manual_seed(0)
    constant = figures_of(torch.ones(3, 2, 2, 4, 5, 8) * 0.3)
    assert constant["drift"] == constant["margin"] == 0
    assert constant["auc"] == constant["auc_within"] == constant["auc_cls"] == 50
    position = figures_of(torch.randn(4, 5, 64).expand(3, 2, 2, -1, -1, -1))
    assert (position["drift"], position["auc"], position["auc_within"]) == (0, 50, 100)
    frame = figures_of(torch.randn(3, 1, 1, 1, 1, 64).expand(-1, 2, 2, 4, 5, -1))
    assert (frame["auc"], frame["auc_within"], frame["within"]) == (100, 50, 0)
    still = figures_of(torch.randn(3, 1, 1, 4, 5, 64).expand(-1, 2, 2, -1, -1, -1))
    assert (still["drift"], still["auc"], still["auc_within"]) == (0, 100, 100)


def test_other_patches_are_other():
    generator = torch.Generator().manual_seed(0)
    found = torch.stack([drift.other_patches(5, generator) for _ in range(200)])
    assert (found != torch.arange(5)).all()
    assert len(found[:, 2].unique()) == 4


def test_pictures_that_change_size_are_one_sentence(run_command, tmp_path):
    folder = tmp_path / "data" / "walk"
    folder.mkdir(parents=True)
    for number in range(40):
        Image.new("RGB", (80, 64 if number < 12 else 48), (number, 0, 0)).save(folder / f"{number}.jpg")
    arguments = ["--data", tmp_path / "data", "--offsets", "0.1", "--model", "pixels", "--cache", tmp_path / "cache"]
    told = run_command(evaluate.main, "drift", *arguments)
    assert told == "error: the pictures of walk are 64x80 and 48x80; put those of each size into folders of their own"


def test_command(run_command, make_video, clip, tmp_path, capsys):
    folder = make_video("videos/noise.mp4", size=(128, 96)).parent
    (folder / "dog.mp4").write_bytes(clip.read_bytes())
    out = tmp_path / "out.json"
    arguments = ["--data", folder, "--frames", "2", "--offsets", "0.1", "1", "--size", "96", "128"]
    arguments += ["--cache", tmp_path / "cache", "--out", out, "--model", "pixels"]
    assert run_command(evaluate.main, "drift", *arguments) is None
    figures = json.loads(out.read_text())["figures"]
    assert figures["at 0.1 s"]["drift"] < figures["at 1 s"]["drift"]
    assert figures["auc"] > 60
    assert figures["units"].keys() == {"dog.mp4", "noise.mp4"}
    assert (figures["half_a"], figures["half_b"]) == tuple(figures["units"].values())
    assert np.mean(list(figures["units"].values())) == pytest.approx(figures["auc"], abs=0.01)
    low, high = figures["interval"]
    assert low <= figures["auc"] <= high
