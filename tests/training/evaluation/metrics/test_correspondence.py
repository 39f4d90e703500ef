import numpy as np
import pytest
import torch

from training.evaluation.metrics.correspondence import chance_share, cycle_map, cycle_share, match, most_similar
from training.models.loading import Pixels


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_cycles_equal_a_loop(generator):
    rng = np.random.default_rng(0)
    start, end = rng.normal(size=(5, 7, 6)), rng.normal(size=(4, 6, 6))

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    expected = np.zeros((5, 7), bool)
    for y, x in np.ndindex(5, 7):
        there = max(np.ndindex(4, 6), key=lambda q: cosine(start[y, x], end[q]))
        home = max(np.ndindex(5, 7), key=lambda p: cosine(start[p], end[there]))
        expected[y, x] = max(abs(home[0] - y), abs(home[1] - x)) <= 1
    found = cycle_map(torch.tensor(start), torch.tensor(end), generator)
    assert np.array_equal(found.numpy(), expected)
    assert 0 < expected.mean() < 1


def test_a_shift_by_two_patches_is_found_in_the_interior(generator):
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 256, (96, 192, 3), dtype=np.uint8)
    first, second = scene[:, :128], scene[:, 32:160]
    grids = Pixels().encode([first, second], (96, 128)).grid.movedim(1, -1)
    found = cycle_map(*grids, generator)
    assert found[:, 2:].all()
    there, _ = match(*grids, generator)
    assert (there.view(6, 8)[:, 2:] == torch.arange(48).view(6, 8)[:, :-2]).all()


def test_saying_nothing_scores_chance(generator):
    constant = torch.ones(14, 24, 8)
    shares = [cycle_share(constant, constant, generator) for _ in range(40)]
    neighbourhoods = [
        (min(y + 1, 13) - max(y - 1, 0) + 1) * (min(x + 1, 23) - max(x - 1, 0) + 1) for y, x in np.ndindex(14, 24)
    ]
    assert chance_share(14, 24) == pytest.approx(np.mean(neighbourhoods) / 336)
    assert np.mean(shares) == pytest.approx(chance_share(14, 24), rel=0.15)
    noisy = constant.half() * 0.3333
    assert cycle_share(noisy, noisy, generator) < 0.1


def test_ties_are_broken_evenly(generator):
    two = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]])
    found = torch.stack([match(two, two, generator)[0] for _ in range(300)])
    assert (found[:, 0] == 0).all()
    assert torch.bincount(found[:, 2], minlength=4)[1:].min() > 70
    assert cycle_share(torch.zeros(3, 3, 4), torch.zeros(3, 3, 4), generator) < 1


def test_position_alone_comes_home_on_any_frame(generator):
    position = torch.eye(48).view(6, 8, 48)
    assert cycle_share(position, position, generator) == 1


def test_noise_comes_home_half_of_the_time(generator):
    noise = torch.randn(40, 10, 10, 256, generator=generator)
    exact = [cycle_share(a, b, generator, radius=0) for a, b in zip(noise[::2], noise[1::2], strict=True)]
    assert np.mean(exact) == pytest.approx(100 / 199, abs=0.05)


def test_ties_are_drawn_where_the_generator_is(monkeypatch):
    drawn, rand = [], torch.rand
    monkeypatch.setattr(torch, "rand", lambda *of, **how: drawn.append(how["device"]) or rand(*of, **how))
    generator = torch.Generator().manual_seed(0)
    assert set(most_similar(torch.ones(64, 3), generator).tolist()) == {0, 1, 2}
    assert drawn == [generator.device]
