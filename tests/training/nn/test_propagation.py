"""Propagation against loops, against the evaluation's, and on clips of which the answer is known."""

import numpy as np
import pytest
import torch

from training.evaluation.probes.propagation import Variant, propagate
from training.nn.propagation import comes_home, mean_of_best, transport


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def plain_transport(features, top_k, radius, temperature):
    """Patch by patch; (T, h, w, C) -> (N, N)."""
    frames, height, width, _ = features.shape
    unit = (features / features.norm(dim=-1, keepdim=True)).flatten(1, 2).numpy()
    carried = [np.eye(height * width)]
    for t in range(1, frames):
        rows = np.zeros((height * width, height * width))
        for p in range(height * width):
            found = []
            for s in range(t):
                for q in range(height * width):
                    if max(abs(p // width - q // width), abs(p % width - q % width)) <= radius:
                        found.append((unit[t, p] @ unit[s, q], s, q))
            best = sorted(found, reverse=True)[:top_k]
            weights = np.exp(np.array([cosine for cosine, _, _ in best]) / temperature)
            for weight, (_, s, q) in zip(weights / weights.sum(), best, strict=True):
                rows[p] += weight * carried[s][q]
        carried.append(rows)
    return carried[-1]


@pytest.mark.parametrize(("top_k", "radius"), [(1, 9), (5, 1), (3, 2)])
def test_it_is_what_loops_find(top_k, radius):
    features = draw(2, 3, 3, 4, 6)
    got = transport(features, top_k=top_k, radius=radius, temperature=0.1)
    expected = [plain_transport(clip, top_k, radius, 0.1) for clip in features]
    assert got.numpy() == pytest.approx(np.stack(expected), abs=1e-12)
    assert got.sum(-1).numpy() == pytest.approx(1)


def test_it_is_the_propagation_of_the_evaluation():
    clips = draw(2, 4, 5, 4, 8).float()
    variant = Variant("ours", context=7, radius=2, top_k=5, temperature=0.1, width=1)
    got = transport(clips, top_k=5, radius=2, temperature=0.1)
    for clip, found in zip(clips, got, strict=True):
        *_, last = propagate(clip, torch.eye(20).view(5, 4, 20), variant)
        assert torch.allclose(found, last.flatten(0, 1), atol=1e-5)


def test_nothing_moves_in_a_still_clip():
    features = draw(2, 1, 4, 4, 16).expand(-1, 4, -1, -1, -1)
    identity = torch.eye(16, dtype=torch.double).expand(2, -1, -1)
    assert torch.equal(transport(features, top_k=1, radius=6, temperature=0.1), identity)
    # five are taken, of which the others are unlike and at this temperature weigh nothing
    orthogonal = torch.eye(16, dtype=torch.double).view(1, 1, 4, 4, 16).expand(-1, 4, -1, -1, -1)
    got = transport(orthogonal, top_k=5, radius=6, temperature=0.02)
    assert torch.allclose(got, identity[:1], atol=1e-12)
    assert comes_home(got, got, (4, 4)).all()


def test_what_moves_is_followed():
    scene = draw(5, 12, 16)
    features = torch.stack([scene[:, t : t + 6] for t in (0, 1, 2)])[None]  # everything goes left, a patch a frame
    got = transport(features, top_k=1, radius=1, temperature=0.1)[0].argmax(-1).view(5, 6)
    place = torch.arange(30).view(5, 6)
    assert torch.equal(got[:, :4], place[:, 2:])
    back = transport(features.flip(1), top_k=1, radius=1, temperature=0.1)
    home = comes_home(transport(features, top_k=1, radius=1, temperature=0.1), back, (5, 6))[0].view(5, 6)
    assert home[:, :4].all()


def test_permuted_patches_come_from_permuted_patches():
    features = draw(1, 3, 4, 4, 8)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    settings = {"top_k": 3, "radius": 4, "temperature": 0.1}
    permuted = transport(features.flatten(2, 3)[:, :, order].unflatten(2, (4, 4)), **settings)
    assert torch.allclose(permuted, transport(features, **settings)[:, order][:, :, order], atol=1e-12)


def test_where_all_is_alike_all_counts_alike():
    got = transport(torch.ones(1, 3, 4, 4, 8), top_k=5, radius=4, temperature=0.1)
    assert torch.allclose(got, torch.full((1, 16, 16), 1 / 16))
    near = mean_of_best(torch.tensor([[0.5, -torch.inf, 0.5]]), torch.eye(3), top_k=1, temperature=0.1)
    assert near.tolist() == [[0.5, 0.0, 0.5]]


def test_a_patch_that_is_hidden_does_not_come_home():
    features = draw(1, 2, 4, 4, 16)
    features[:, 1] = features[:, 0]
    features[:, 1, 3, 3] = features[:, 0, 0, 1]  # what was at (0, 1) is seen there twice
    there, back = (transport(found, top_k=1, radius=6, temperature=0.1) for found in (features, features.flip(1)))
    home = comes_home(there, back, (4, 4))[0].view(4, 4)
    assert not home[3, 3]
    assert home.sum() == 15


@pytest.mark.parametrize(("radius", "expected"), [(0, [1, 0, 0, 0]), (1, [1, 1, 0, 0]), (2, [1, 1, 1, 0])])
def test_how_far_off_home_is(radius, expected):
    there = torch.eye(4)[None]
    back = torch.eye(4)[[0, 2, 0, 0]][None]  # of a row of four patches, to 0, 1, 2 and 3 columns beside
    assert comes_home(there, back, (1, 4), radius)[0].tolist() == [bool(value) for value in expected]
