import numpy as np
import pytest
import torch

from training.evaluation.metrics.correspondence import cycle_share
from training.models.loading import Constant, Pixels
from training.reporting.measures import Series, changed_patches, choose_pairs, measure, part_of_frames


def test_pairs_lie_as_far_apart_as_their_gap():
    times = np.cumsum(np.random.default_rng(0).uniform(0.04, 0.16, 60))
    pairs = choose_pairs(times, np.zeros(len(times)))
    assert {0.5, 1.0, 2.0} <= pairs.keys()
    for gap, found in pairs.items():
        assert 0 < len(found) <= 24
        assert all(abs(times[later] - times[first] - gap) <= gap / 4 for first, later in found)
    assert choose_pairs(np.array([0.0, 0.5]), np.zeros(2)).keys() == {0.5}


def test_no_pair_crosses_a_cut():
    times, shots = np.arange(40) / 8, np.arange(40) // 25
    pairs = choose_pairs(times, shots)
    assert {0.25, 1.0, 2.0} <= pairs.keys()
    assert all(shots[first] == shots[later] for found in pairs.values() for first, later in found)


def test_no_pair_crosses_the_parts_that_sureness_is_counted_by():
    times = np.arange(97) / 8  # 12 s
    pairs = choose_pairs(times, np.zeros(len(times)))
    for gap, count in ((0.1, 5), (1.0, 4), (2.0, 3)):
        part = part_of_frames(times, gap)
        assert part.max() + 1 == count == int(12 / (2 + gap))
        assert {part[first] for first, _ in pairs[gap]} == set(range(count))
        assert all(part[first] == part[later] for first, later in pairs[gap])
    assert set(part_of_frames(times[:33], 2.0)) == {0}


def test_a_difference_is_taken_frame_by_frame():
    one = Series(np.array([3.0, 5.0, 4.0]), np.array([0.0, 1.0, 1.0]), np.array([0, 0, 1]))
    other = Series(np.array([2.0, 1.0]), np.array([1.0, 0.0]), np.array([0, 0]))
    assert one.above(other).parts.tolist() == [0, 0, 1]
    assert one.above(other).values.tolist() == [2.0, 3.0, 2.0]


@pytest.fixture
def panning():
    """Frames of noise that moves by one patch a frame: every patch but those that leave is found again."""
    wide = np.random.default_rng(0).integers(0, 255, (64, 16 * 30, 3), dtype=np.uint8)
    return [np.ascontiguousarray(wide[:, 16 * n : 16 * n + 160]) for n in range(8)], np.arange(8) / 4


def test_pixels_find_what_moved_and_constant_features_nothing(panning):
    frames, times = panning
    pairs = {0.25: [(n, n + 1) for n in range(7)]}

    def figures(model):
        grids = torch.stack([model.encode([frame], (64, 160)).grid[0].movedim(0, -1) for frame in frames])
        return measure(model, frames, times, grids, pairs)

    pixels, constant = figures(Pixels()), figures(Constant())
    assert pixels.cycle[0.25].values.min() >= 0.9  # nine of ten columns stay in the picture
    assert pixels.milliseconds > 0
    gain = constant.cycle[0.25].above(constant.chance[0.25]).values
    assert abs(gain.mean()) < 0.12
    assert constant.similarity[0.25].above(constant.unrelated).values == pytest.approx(np.zeros(7), abs=1e-6)
    assert pixels.similarity[0.25].times.tolist() == times[:7].tolist()


def test_what_changes_is_where_pixels_do():
    still = np.full((64, 96, 3), 90, np.uint8)
    moved = still.copy()
    moved[16:32, 32:40] = 200  # half of one patch of 4 x 6
    moved[48:52, 80:84] = 200  # a sixteenth of another
    moved[0, 0] += 15
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[1, 2] = True
    assert torch.equal(changed_patches(still, moved, (4, 6)), expected)
    assert torch.equal(changed_patches(moved, still, (4, 6)), expected)
    moved[16:32, 32:40] = 90
    assert changed_patches(still, moved, (4, 6)).nonzero().tolist() == [[3, 5]]  # the one that changes most
    assert changed_patches(still, still, (4, 6)).all()


def test_a_camera_that_stands_still_tells_encoders_apart_by_what_moves():
    """Before a still background, which any features find again, a thing moves and changes its looks."""
    rng = np.random.default_rng(0)
    background = rng.integers(0, 255, (64, 160, 3), dtype=np.uint8)
    frames = []
    for number in range(8):
        frame = background.copy()
        frame[16:48, 16 * number : 16 * number + 32] = rng.integers(0, 255, (32, 32, 3))
        frames.append(frame)
    grids = torch.stack([Pixels().encode([frame], (64, 160)).grid[0].movedim(0, -1) for frame in frames])
    pairs = {0.5: [(n, n + 2) for n in range(6)]}
    found = measure(Pixels(), frames, np.arange(8) / 4, grids, pairs)
    assert found.cycle[0.5].values.max() <= 0.5
    whole = [cycle_share(grids[first], grids[later], torch.Generator()) for first, later in pairs[0.5]]
    assert min(whole) > 0.6  # most of what finds its way back has not moved
