"""Maps that are carried and turned, against shifts, formulas and SciPy, in float64."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch

from training.nn.warping import arrivals, middles, read, turn, turned, within


def maps(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def warp(picture, flow):
    return read(picture, arrivals(flow, picture.shape[-1], picture.shape[-2]))


def constant(x, y, height, width):
    return torch.tensor([x, y], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, height, width)


def test_no_flow_changes_nothing():
    picture = maps(2, 3, 7, 10)
    assert torch.allclose(warp(picture, torch.zeros(2, 2, 7, 10, dtype=torch.float64)), picture, atol=1e-12)
    assert torch.allclose(warp(picture.float(), torch.zeros(2, 2, 7, 10)), picture.float(), atol=1e-6)


def test_a_constant_flow_shifts_and_what_it_uncovers_is_told():
    picture = maps(1, 2, 8, 9)
    flow = constant(3.0, -2.0, 8, 9)
    shifted, seen = warp(picture, flow), within(arrivals(flow, 9, 8))[0]
    assert torch.allclose(shifted[0, :, 2:, :6], picture[0, :, :6, 3:], atol=1e-12)
    expected = torch.zeros(8, 9, dtype=torch.bool)
    expected[2:, :6] = True
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("kind", ["translation", "zoom"])
def test_what_moved_comes_back_to_where_it_was(kind):
    """x'(p + f(p)) = x(p): brought along by f, x' is x, where linear interpolation has no error."""
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (20, 24)), indexing="ij")
    scene = lambda x, y: torch.stack([2 * x - y + 1, 0.5 * y])[None]  # noqa: E731
    if kind == "translation":
        flow = constant(2.25, -1.5, 20, 24)
        moved = scene(x - 2.25, y + 1.5)
    else:
        flow = 0.1 * torch.stack([x - 11.5, y - 9.5])[None]
        moved = scene(11.5 + (x - 11.5) / 1.1, 9.5 + (y - 9.5) / 1.1)
    ends = torch.stack([x, y]) + flow[0]
    inner = (ends[0] >= 0) & (ends[0] <= 23) & (ends[1] >= 0) & (ends[1] <= 19)
    assert 0.5 < inner.double().mean() < 1
    assert torch.allclose(warp(moved, flow)[0][:, inner], scene(x, y)[0][:, inner], atol=1e-12)


def test_maps_are_read_as_scipy_does():
    picture, places = maps(2, 3, 6, 9), maps(2, 4, 5, 2, seed=1)
    got = read(picture, places)
    for number in range(2):
        rows, columns = (
            ((places[number, ..., axis] + 1) * count / 2 - 0.5).numpy() for axis, count in ((1, 6), (0, 9))
        )
        for channel in range(3):
            expected = scipy.ndimage.map_coordinates(
                picture[number, channel].numpy(), [rows, columns], order=1, mode="nearest"
            )
            assert np.allclose(got[number, channel], expected, atol=1e-12)


def test_a_map_that_is_turned_and_turned_back_is_as_it_was():
    angle = math.radians(9)
    turn_by = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    affine = (turn_by / 0.93).double()[None] @ torch.diag(torch.tensor([-1.0, 1.0], dtype=torch.float64))
    places = middles((16, 16), affine)
    ramp = torch.stack([places[..., 0] - 2 * places[..., 1], places.sum(-1)])[None]
    back_to = turned(places, torch.linalg.inv(affine))
    back = read(turn(ramp, affine), back_to)
    ones = read(turn(torch.ones(1, 1, 16, 16, dtype=torch.float64), affine), back_to)
    whole = (within(back_to) & (ones[:, 0] > 1 - 1e-9))[0]
    assert 0.6 < whole.double().mean() < 1
    # on a ramp interpolation is exact but for the outermost half cell, where a map goes on as at its edge
    inner = whole & (back_to.abs() < 1 - 1 / 16).all(-1)[0]
    assert torch.allclose(back[0][:, inner], ramp[0][:, inner], atol=1e-9)


def test_quarter_turns_and_mirrors_are_exact():
    picture = maps(1, 2, 5, 5)
    mirror, quarter = torch.tensor([[[-1.0, 0], [0, 1]], [[0, -1.0], [1, 0]]], dtype=torch.float64)
    assert torch.allclose(turn(picture, mirror[None]), picture.flip(3), atol=1e-12)
    assert torch.allclose(turn(picture, quarter[None]), picture.rot90(1, (2, 3)), atol=1e-12)
    back = turn(turn(picture, quarter[None]), torch.linalg.inv(quarter)[None])
    assert torch.allclose(back, picture, atol=1e-12)
    assert torch.equal(turn(picture, 3 * mirror[None])[..., 0, 0], torch.zeros(1, 2, dtype=torch.float64))


def test_places_stay_exact_under_autocast():
    picture, affine = maps(2, 3, 64, 64).float(), maps(2, 2, 2, seed=1).float()
    flow = 9 * maps(2, 2, 64, 64, seed=2).float()
    expected = turn(picture, affine), warp(picture, flow)
    with torch.autocast("cpu", torch.bfloat16):
        got = turn(picture, affine), warp(picture, flow)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
