"""Patch kernels' alignment against the formula with loops, and where the answer is known."""

import numpy as np
import pytest
import torch

from training.engine.assembly import build_method
from training.methods.method import At
from training.methods.paka import alignment, plan_views
from training.methods.self_distillation import LONG
from training.recipes.recipe import read_recipe
from video_distilled_encoder import InputError


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def plain(one, other):
    """1 - L of one image, as it is written: centred kernels, their product and their norms."""
    n = len(one)
    h = np.eye(n) - np.ones((n, n)) / n
    first, second = (h @ (z.numpy() @ z.numpy().T) @ h for z in (one, other))
    return np.trace(first @ second) / np.sqrt(np.trace(first @ first) * np.trace(second @ second))


def build(*overrides):
    settings = ["--objective.hidden=32", "--objective.bottleneck=16", "--backbone.train_blocks=null", *overrides]
    torch.manual_seed(0)
    method = build_method(read_recipe(["smoke", "paka"], settings)).double().train()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return method


def test_it_is_the_formula():
    one, other = draw(3, 9, 5), draw(3, 9, 7, seed=1)
    expected = [plain(a, b) for a, b in zip(one, other, strict=True)]
    assert alignment(one, other).numpy() == pytest.approx(expected, rel=1e-12)


def test_rotation_scale_and_shift_change_nothing():
    z = draw(2, 20, 6)
    rotation = torch.linalg.qr(draw(6, 6, seed=1)).Q
    for other in (z @ rotation, 3 * z, z + draw(1, 1, 6, seed=2)):
        assert alignment(z, other).numpy() == pytest.approx(1, abs=1e-12)
    stretched = z * torch.tensor([5.0, 1, 1, 1, 1, 1], dtype=torch.double)
    assert (alignment(z, stretched) < 0.95).all()


def test_other_places_are_not_aligned():
    z = draw(2, 20, 6)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    assert (alignment(z, z[:, order]) < 0.7).all()
    assert alignment(z[:, order], z[:, order]).numpy() == pytest.approx(1)


def test_two_patches_are_always_aligned_and_one_never():
    assert alignment(draw(3, 2, 6), draw(3, 2, 6, seed=1)).numpy() == pytest.approx(1)
    assert alignment(torch.ones(1, 9, 4), draw(1, 9, 4)).item() == 0


def test_the_loss_is_that_of_the_first_frame_with_the_teachers_last():
    method, pixels = build(), draw(3, 2, 3, 64, 64)
    total, metrics = method({"global": {"pixels": pixels}}, At(0.0))
    with torch.no_grad():
        learnt = method.student.head(method.student.backbone.forward_features(pixels[:, 0])[:, 1:])
        taught = method.teacher.head(method.teacher.backbone.forward_features(pixels[:, 1])[:, 1:])
    assert total.item() == pytest.approx(1 - np.mean([plain(a, b) for a, b in zip(learnt, taught, strict=True)]))
    others = np.mean([plain(learnt[n], taught[n - 1]) for n in range(3)])
    assert metrics["alignment_with_others"].item() == pytest.approx(others)
    total.backward()
    assert all(parameter.grad is not None for parameter in method.student.parameters() if parameter.requires_grad)
    assert all(parameter.grad is None for parameter in method.teacher.parameters())


def test_equal_frames_and_networks_have_no_loss():
    method, pixels = build(), draw(2, 1, 3, 64, 64).expand(-1, 2, -1, -1, -1)
    method.start_teacher()
    assert method({"global": {"pixels": pixels}}, At(0.0)).total.item() == pytest.approx(0, abs=1e-12)


def test_views_are_of_one_region_and_the_teachers_keeps_its_colours():
    recipe = read_recipe(["smoke", "paka"], ["--clips.frames=3"])
    first, last = plan_views(np.random.default_rng(0), (160, 120), recipe.spec)
    assert (first.frame, last.frame) == (0, 2)
    assert (first.style, last.style) == ("local", None)
    assert first._replace(frame=2, style=None) == last
    plain_recipe = read_recipe(["smoke", "paka"], ["--objective.student_style=null"])
    assert plan_views(np.random.default_rng(0), (160, 120), plain_recipe.spec)[0].style is None


def test_it_stops_when_patches_differ_along_one_direction():
    method, row = build(), {"patch_feature_std": 0.5, "patch_feature_rank": 1.01}
    assert not any(method.watch(row) for _ in range(LONG - 1))
    assert "effective rank of the features" in method.watch(row)
    alike = {"patch_feature_std": 0.0, "patch_feature_rank": 5.0}
    assert "the features have collapsed" in [method.watch(alike) for _ in range(LONG)][-1]


def test_one_frame_is_no_pair():
    with pytest.raises(InputError, match=r"at least 2, got 1; without time, set clips\.still true"):
        build("--clips.frames=1")
