import numpy as np
import pytest
import torch

from training.reporting.measures import Measures, Series, choose_pairs, part_of_frames
from training.reporting.page import Clip, Row, Subject, cell, fill_table, nothing_to_tell, write_page

ROW = Row("found", "", lambda measures: measures.chance[1.0], True)


def subject(series):
    return Subject("model", torch.zeros(1), Measures({}, series, {}, {1.0: series}, 1.0), torch.device("cpu"))


@pytest.mark.parametrize("memory", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("gap", [0.1, 2.0])
@pytest.mark.parametrize("seconds", [2.5, 3, 4, 6, 8, 12, 24])
def test_of_a_clip_without_any_difference_few_verdicts_are_false(seconds, gap, memory):
    """Noise of each frame, which is forgotten within `memory` seconds; a pair has that of both its frames."""
    rng = np.random.default_rng(0)
    times = np.arange(int(seconds * 8) + 1) / 8
    pairs = np.array(choose_pairs(times, np.zeros(len(times)))[gap])
    kept = np.exp(-1 / (8 * memory)) if memory else 0.0
    noise = rng.normal(size=(1500, len(times)))
    for frame in range(1, len(times)):
        noise[:, frame] = kept * noise[:, frame - 1] + np.sqrt(1 - kept**2) * noise[:, frame]
    values = noise[:, pairs[:, 0]] + noise[:, pairs[:, 1]]
    start, part = times[pairs[:, 0]], part_of_frames(times, gap)[pairs[:, 0]]
    zero = subject(Series(np.zeros(len(pairs)), start, part))
    false = np.mean([cell(ROW, subject(Series(one, start, part)), zero)[1] != "" for one in values])
    assert false <= 0.07


def test_a_difference_that_is_there_is_told():
    start = np.linspace(0, 10, 24)
    noise = np.random.default_rng(0).normal(0, 0.1, 24)
    ours, theirs = (
        subject(Series(level + noise * sign, start, np.arange(24) // 5)) for level, sign in ((1.0, 1), (0.5, -1))
    )
    assert cell(ROW, ours, theirs)[1] == "better"
    assert cell(ROW, theirs, ours)[1] == "worse"


@pytest.mark.parametrize(
    ("frames", "word"),
    [
        (np.zeros((20, 48, 64, 3)), "of one colour throughout"),
        (np.random.default_rng(0).integers(0, 256, (1, 48, 64, 3)).repeat(20, 0), "stands still"),
        (np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3)), ""),
    ],
)
def test_clips_without_anything_to_see_get_a_word_and_no_verdict(frames, word):
    clip = Clip("clip", list(frames.astype(np.uint8)), np.arange(20) / 8, np.zeros(20))
    silence = nothing_to_tell(clip)
    assert word in silence
    assert bool(silence) == bool(word)
    series = [Series(np.full(24, level), np.linspace(0, 10, 24), np.arange(24) // 5) for level in (1.0, 2.0)]
    models = [
        Subject(
            name, torch.zeros(1), Measures({1.0: s}, series[0], {1.0: s}, {1.0: series[0]}, 1.0), torch.device("cpu")
        )
        for name, s in zip("ab", series, strict=True)
    ]
    table, sentence = fill_table(models, [1.0], silence)
    assert (word in sentence) if word else ("better at" in sentence)
    assert ("better" in table) == (not word)


def test_a_small_thing_that_moves_is_a_clip_that_moves():
    frames = np.full((10, 120, 160, 3), 90, np.uint8)
    frames[0, 0, 0] = 200
    for number in range(10):
        frames[number, 40:48, 10 * number : 10 * number + 8] = 220
    assert nothing_to_tell(Clip("clip", list(frames), np.arange(10) / 8, np.zeros(10))) == ""


def test_the_page_names_the_device_that_was_measured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"GPU {device}")
    clip = Clip("clip", [np.full((32, 32, 3), shade, np.uint8) for shade in (10, 200)], np.arange(2.0), np.zeros(2))
    series = Series(np.ones(1), np.zeros(1), np.zeros(1, int))
    measures = Measures({1.0: series}, series, {1.0: series}, {1.0: series}, 1.0)
    for device, name in ((torch.device("cpu"), "processor, "), (torch.device("cuda", 1), "GPU cuda:1, ")):
        page = write_page(clip, [Subject("model", torch.rand(2, 2, 2, 8), measures, device)], {1.0: [(0, 1)]})
        assert name in page
