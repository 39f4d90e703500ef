"""TimeT against a plain evaluation in float64, and on clips of which the assignments are known."""

import numpy as np
import pytest
import torch

from training.engine.assembly import build_method
from training.methods.method import At
from training.methods.self_distillation import LONG
from training.methods.timet import plan_views
from training.nn.propagation import transport
from training.recipes.recipe import read_recipe
from video_distilled_encoder import InputError

TAU_S, EPSILON = 0.1, 0.05


def build(*overrides):
    settings = [
        "--objective.head.prototypes=10",
        "--backbone.train_blocks=null",
        "--objective.radius=2",
        "--clips.frames=3",
        *overrides,
    ]
    recipe = read_recipe(["smoke", "timet"], settings)
    torch.manual_seed(0)
    method = build_method(recipe).double().train()
    with torch.no_grad():
        for parameter in method.student.parameters():
            if parameter.requires_grad:  # student and teacher must not be equal, nor patches alike
                parameter.add_(torch.randn_like(parameter) * 0.05)
        method.teacher.backbone.pos_embed.mul_(0.1)
    return method


def clips(count=2, frames=3, still=False):
    pixels = torch.randn(count, frames, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    return pixels[:, :1].expand_as(pixels) if still else pixels


def batch(pixels):
    return {"global": {"pixels": pixels}}


def patches_of(tower, pixels):
    return tower.backbone.forward_features(pixels)[:, 1:]


def sinkhorn(scores, rounds=3):
    """The textbook: columns, then rows, of exp(scores) in turn; rows sum to 1 in the end."""
    q = np.exp(scores - scores.max())
    for _ in range(rounds):
        q = q / q.sum(0) / q.shape[1]
        q = q / q.sum(1, keepdims=True) / q.shape[0]
    return q * q.shape[0]


@pytest.mark.parametrize("home", ["1", "0", "null"])
def test_the_loss_is_that_of_the_equations(home):
    method, pixels = build(f"--objective.home={home}"), clips()
    total, metrics = method(batch(pixels), At(0.0))
    with torch.no_grad():
        features = torch.stack([patches_of(method.teacher, clip) for clip in pixels])  # (B, T, N, C)
        scores = method.teacher.head(features[:, 0].flatten(0, 1)).numpy() / EPSILON
        first = sinkhorn(scores).reshape(2, 16, 10)
        logits = method.student.head(patches_of(method.student, pixels[:, -1])).numpy() / TAU_S
    errors, kept = [], []
    for b in range(2):
        grid = features[b].unflatten(1, (4, 4))
        found = (transport(frames[None], top_k=5, radius=2, temperature=0.1) for frames in (grid, grid.flip(0)))
        there, back = (one[0].numpy() for one in found)
        for p, row in enumerate(there @ first[b]):
            q = back[there[p].argmax()].argmax()
            kept.append(home == "null" or max(abs(p // 4 - q // 4), abs(p % 4 - q % 4)) <= int(home))
            errors.append(np.log(np.exp(logits[b, p]).sum()) - logits[b, p, row.argmax()])
    assert total.item() == pytest.approx(np.mean(np.array(errors) * kept), rel=1e-9)
    assert metrics["left_out"].item() == pytest.approx(1 - np.mean(kept))
    assert metrics["dense_loss"].item() == pytest.approx(np.array(errors)[kept].mean(), rel=1e-9)
    if home == "0":
        assert 0 < metrics["left_out"] < 1


def test_in_a_still_clip_the_assignment_stays_where_it_was():
    method, pixels = build("--objective.top_k=1"), clips(still=True)
    targets, kept, metrics = method.teach(pixels, 0.0)
    first = method.assign(patches_of(method.teacher, pixels[:, 0]), 0.0)
    assert torch.equal(targets, first.argmax(-1))
    assert kept.all()
    assert metrics["left_out"] == 0
    assert metrics["carried_entropy"].item() == pytest.approx(metrics["patch_entropy"].item())


def test_clips_in_another_order_have_the_same_loss():
    pixels = clips(4)
    one, other = (build()(batch(found), At(0.0)).total.item() for found in (pixels, pixels.flip(0)))
    assert one == pytest.approx(other, rel=1e-12)


def test_uniform_scores_are_assigned_to_all_alike():
    method = build()
    with torch.no_grad():
        method.teacher.head.prototypes.copy_(
            method.teacher.head.prototypes[:1].expand_as(method.teacher.head.prototypes)
        )
    shares = method.assign(patches_of(method.teacher, clips()[:, 0]), 0.0)
    assert torch.allclose(shares, torch.full_like(shares, 0.1))
    metrics = method.teach(clips(), 0.0)[2]
    assert metrics["patch_entropy"].item() == pytest.approx(np.log(10))


def test_a_patch_that_is_left_out_has_no_gradient(monkeypatch):
    method, pixels = build(), clips()
    targets, kept, metrics = method.teach(pixels, 0.0)
    chosen = torch.zeros_like(kept)
    chosen[1, 5] = True
    monkeypatch.setattr(method, "teach", lambda frames, progress: (targets, chosen, dict(metrics)))
    seen = []
    method.student.head.mlp.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].retain_grad() or inputs[0])
    )
    method(batch(pixels), At(0.0)).total.backward()
    assert torch.equal(seen[0].grad.abs().sum(-1) > 0, chosen)


def test_assignments_are_no_coarser_under_autocast():
    method, pixels = build().float(), clips(8).float()
    with torch.autocast("cpu", torch.bfloat16):
        metrics = method.teach(pixels, 0.0)[2]
    assert {metrics[name].dtype for name in ("patch_entropy", "carried_entropy")} == {torch.float32}
    assert metrics["carried_entropy"].item() != metrics["carried_entropy"].bfloat16().item()


def test_the_teacher_and_the_prototypes_of_length_one():
    method = build()
    method(batch(clips()), At(0.0)).total.backward()
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    assert torch.allclose(method.student.head.weight().norm(dim=-1), torch.ones(10, dtype=torch.double))


def test_all_frames_of_a_clip_are_cut_alike_and_keep_their_colours():
    recipe = read_recipe(["smoke", "timet"])
    views = plan_views(np.random.default_rng(0), (160, 120), recipe.spec)
    assert [view.frame for view in views] == [0, 1, 2, 3]
    assert len({(view.box, view.flip, view.size, view.style) for view in views}) == 1
    assert views[0].style is None


def test_it_stops_when_nothing_comes_home():
    method = build()
    rows = [{"left_out": 0.99, "patch_feature_std": 1.0}] * (LONG - 1)
    assert not any(method.watch(row) for row in rows)
    assert method.watch({"left_out": 0.1, "patch_feature_std": 1.0}) is None
    assert not any(method.watch(row) for row in rows)
    assert "have not come home" in method.watch(rows[0])
    alike = [{"left_out": 0.0, "patch_feature_std": 0.0}] * LONG
    assert "the features have collapsed" in [method.watch(row) for row in alike][-1]


def test_one_frame_is_no_clip():
    with pytest.raises(InputError, match=r"at least 2, got 1; without time, set clips\.still true"):
        build("--clips.frames=1")
