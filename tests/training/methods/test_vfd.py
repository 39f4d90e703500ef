"""Equations 1 and 2 against a plain float64 evaluation with loops, gradients included."""

import copy

import numpy as np
import pytest
import torch

from training.engine.assembly import build_method
from training.methods.method import At
from training.recipes.recipe import read_recipe

TAU_S, TAU_T = 0.1, 0.05


def build(*overrides):
    settings = [
        "--objective.targets=centering",
        "--objective.teacher_temperature=[0.05,0.05]",
        "--objective.head.prototypes=24",
        "--backbone.drop_path=0.0",
        *overrides,
    ]
    recipe = read_recipe("smoke", settings)
    torch.manual_seed(0)
    method = build_method(recipe).double().train()
    with torch.no_grad():
        for module in (method.cls_balance, method.patch_balance):
            module.center.normal_(std=0.05)
        for parameter in method.student.parameters():  # student and teacher must not be equal
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return method


def batch(clips=2, locals_=4):
    generator = torch.Generator().manual_seed(1)
    draw = {"generator": generator, "dtype": torch.double}
    sizes = {"global": (3, 64), "local": (locals_, 32)}
    return {group: {"pixels": torch.randn(clips, n, 3, side, side, **draw)} for group, (n, side) in sizes.items()}


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cross_entropy(p, logits):
    """-sum p log softmax(logits), for one token, differentiable in the logits."""
    total = logits.new_zeros(())
    log_sum = torch.logsumexp(logits, 0)
    for k in range(len(p)):
        total = total - p[k] * (logits[k] - log_sum)
    return total


def plain_losses(method, views, *, shared=True, predict_local=True):
    """Equations 1 and 2, frame by frame, view by view and token by token."""
    student, teacher = method.student, method.teacher
    patch_head = "head" if shared else "patch_head"
    clips, frames, locals_per_frame = 2, 3, 2
    dense, global_ = [], []
    for b in range(clips):
        for j in range(frames - 1):
            with torch.no_grad():
                future = teacher.backbone.forward_features(views["global"]["pixels"][b, j + 1][None])[0]
                z = getattr(teacher, patch_head)(future[1:]).numpy()
                p = softmax((z - method.patch_balance.center.numpy()) / TAU_T)
            tokens = student.predictor(student.backbone.forward_features(views["global"]["pixels"][b, j][None]))[0]
            logits = getattr(student, patch_head)(tokens[1:]) / TAU_S
            dense.append(sum(cross_entropy(p[n], logits[n]) for n in range(len(p))) / len(p))
        for j in range(1, frames):
            with torch.no_grad():
                cls = teacher.backbone.forward_features(views["global"]["pixels"][b, j][None])[0, 0]
                z = teacher.head(cls).numpy()
                p = softmax((z - method.cls_balance.center.numpy()) / TAU_T)
            for number in range(locals_per_frame):
                local = views["local"]["pixels"][b, (j - 1) * locals_per_frame + number]
                tokens = student.backbone.forward_features(local[None])
                if predict_local:
                    tokens = student.predictor(tokens)
                global_.append(cross_entropy(p, student.head(tokens[0, 0]) / TAU_S))
    return sum(dense) / len(dense), sum(global_) / len(global_)


@pytest.mark.parametrize(
    ("overrides", "options"),
    [
        ([], {}),
        (["--objective.head.shared=false"], {"shared": False}),
        (["--objective.local_path=bypass"], {"predict_local": False}),
    ],
    ids=["paper", "separate heads", "locals bypass the predictor"],
)
def test_losses_and_gradients_equal_the_equations(overrides, options):
    method, views = build(*overrides), batch()
    reference = copy.deepcopy(method)
    total, metrics = method(views, At(0.0))
    total.backward()
    dense, global_ = plain_losses(reference, views, **options)
    (0.5 * dense + 0.5 * global_).backward()
    assert metrics["dense_loss"].item() == pytest.approx(dense.item(), rel=1e-9)
    assert metrics["global_loss"].item() == pytest.approx(global_.item(), rel=1e-9)
    assert total.item() == pytest.approx(0.5 * dense.item() + 0.5 * global_.item(), rel=1e-9)
    expected = dict(reference.student.named_parameters())
    for name, parameter in method.student.named_parameters():
        assert parameter.grad is not None, name
        error = (parameter.grad - expected[name].grad).norm() / expected[name].grad.norm().clamp(min=1e-12)
        assert error < 1e-6, name


def test_the_teacher_never_receives_a_gradient():
    method = build()
    method(batch(), At(0.0)).total.backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in method.teacher.parameters())
    assert not method.teacher.training
    assert method.student.training


@pytest.mark.parametrize(("dense", "global_"), [(1.0, 0.0), (0.0, 1.0)])
def test_one_loss_alone(dense, global_):
    method, views = build(f"--objective.dense_weight={dense}", f"--objective.global_weight={global_}"), batch()
    total, metrics = method(views, At(0.0))
    name = "dense_loss" if dense else "global_loss"
    assert {"dense_loss", "global_loss"} & metrics.keys() == {name}
    assert total.item() == metrics[name].item()


def test_teacher_frames_last_uses_the_last_pair_only():
    last, both = build("--objective.teacher_frames=last"), build()
    views = batch(locals_=2)
    views["global"]["pixels"] = views["global"]["pixels"][:, 1:]  # those that are planned
    assert last(views, At(0.0)).total.item() == both(views, At(0.0)).total.item()


def test_unnormed_predictor_input():
    method = build("--objective.predictor.norm_input=false")
    pixels = batch()["global"]["pixels"][:, 0]
    backbone = method.student.backbone
    assert torch.allclose(backbone.norm(method._student_tokens(pixels)), backbone.forward_features(pixels), atol=1e-10)


def test_teacher_starts_equal_and_follows_by_its_momentum():
    recipe = read_recipe("smoke")
    method = build_method(recipe)
    student, teacher = dict(method.student.named_parameters()), dict(method.teacher.named_parameters())
    assert "predictor" not in {name.split(".")[0] for name in teacher}
    assert all(torch.equal(student[name], parameter) for name, parameter in teacher.items())
    before = {name: parameter.clone() for name, parameter in teacher.items()}
    with torch.no_grad():
        for parameter in student.values():
            parameter.add_(torch.randn_like(parameter))
    method.update_teacher(0.9)
    for name, parameter in teacher.items():
        assert torch.allclose(parameter, 0.9 * before[name] + 0.1 * student[name], atol=1e-6)


def test_sampled_patches_are_those_of_the_mask_and_unbiased():
    method, views = build(), batch()
    generator = torch.Generator().manual_seed(2)
    whole = method(views, At(0.0)).metrics["dense_loss"].item()
    sampled = build("--objective.patch_share=0.25")
    order = torch.rand(2, 1, 16, generator=generator).argsort(-1)
    losses = []
    for part in range(4):  # the four masks share out all patches of a clip
        views["global"]["mask"] = (order // 4 == part).expand(2, 3, 16)
        losses.append(sampled(views, At(0.0)).metrics["dense_loss"].item())
        sampled.load_state_dict(method.state_dict() | {"patch_balance.center": build().patch_balance.center})
    assert len(set(losses)) == 4
    assert np.mean(losses) == pytest.approx(whole, rel=1e-9)


def test_with_token_dropout_the_student_sees_nothing_but_the_compared_patches():
    settings = ["--objective.patch_share=0.25", "--objective.token_dropout=0.5", "--objective.global_weight=0.0"]
    method, views = build(*settings), batch()
    mask = torch.rand(2, 1, 16, generator=torch.Generator().manual_seed(3)).argsort(-1) < 4
    first, second = views["global"]["pixels"][:, :2].unbind(1)  # the teacher does not see the first
    hidden = ~mask.unflatten(-1, (4, 4)).repeat_interleave(16, -2).repeat_interleave(16, -1)  # (clips, 1, 64, 64)
    noise = hidden * torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(4), dtype=torch.double)

    def dense(frame, progress):
        method.patch_balance.center.zero_()
        frames = {"pixels": torch.stack([frame, second], 1), "mask": mask.expand(2, 2, 16)}
        return method({**views, "global": frames}, At(progress)).metrics["dense_loss"].item()

    assert dense(first, 0.2) == dense(first + noise, 0.2)
    assert dense(first, 0.7) != dense(first + noise, 0.7)


def test_tokens_of_the_seen_patches_are_timm_s_of_a_backbone_without_the_others():
    method, views = build("--objective.patch_share=0.25", "--objective.token_dropout=1.0"), batch()
    pixels, backbone = views["global"]["pixels"][:, 0], method.student.backbone
    seen = torch.tensor([[3, 5, 6], [0, 9, 12]])

    class Seen(torch.nn.Module):
        def forward(self, tokens):
            return torch.cat([tokens[:, :1], tokens[:, 1:][torch.arange(2)[:, None], seen]], 1)

    got = method._student_tokens(pixels, seen[..., None])
    backbone.patch_drop = Seen()
    assert torch.allclose(got, backbone.forward_features(pixels), atol=1e-12)
