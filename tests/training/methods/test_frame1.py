"""FRAME's first stage: when the loss is 0, how its two parts are scaled, and what it keeps."""

import numpy as np
import pytest
import torch
from torch import nn

from training.engine import checkpoint
from training.engine.assembly import build_method
from training.engine.log import read_log
from training.engine.run import dry_run, pretrain
from training.methods import frame1
from training.methods.method import At
from training.methods.self_distillation import LONG
from training.models.loading import hash_weights
from training.nn.mean_scaling import MeanScaling
from training.nn.optimizer import OptimizerConfig
from training.recipes.recipe import read_recipe
from video_distilled_encoder import Encoder, InputError

TEACHERS = ["--objective.spatial_teacher=random:vit_tiny_patch16_224", "--objective.semantic_size=64"]
TEACHERS += ["--objective.semantic_teacher=random:vit_small_patch16_224"]
TINY = ["--backbone.architecture=vit_tiny_patch16_224", "--backbone.model_args={}"]


def build(*settings):
    recipe = read_recipe(["smoke", "frame1-cpu"], [*TEACHERS, *TINY, *settings])
    torch.manual_seed(0)
    return build_method(recipe).train()


def batch(clips=3):
    generator = torch.Generator().manual_seed(1)
    return {"global": {"pixels": torch.randn(clips, 1, 3, 64, 64, generator=generator)}}


def test_losses_are_the_formulas_over_their_means():
    method, views = build("--objective.cls_weight=0.5"), batch()
    got = method(views, At(0.0))
    pixels = views["global"]["pixels"][:, 0]
    spatial, semantic = (model.encoder.backbone for model in method.teachers.all())
    with torch.no_grad():
        tokens = method.student.backbone.forward_features(pixels)
        block, (patches, cls) = method.student.spatial.block, (tokens[:, 1:], tokens[:, 0])
        patches = patches + block.attn(block.norm1(patches))
        patches = patches + block.mlp(block.norm2(patches))
        taught, learnt = semantic.forward_features(pixels)[:, 0], method.student.semantic(cls)
        mse = ((patches - spatial.forward_features(pixels)[:, 1:]) ** 2).mean()
        cosine = 1 - ((taught * learnt).sum(1) / taught.norm(dim=1) / learnt.norm(dim=1)).mean()
    assert got.metrics["patch_loss"].item() == pytest.approx(mse.item(), rel=1e-4)
    assert got.metrics["cls_loss"].item() == pytest.approx(cosine.item(), rel=1e-4)
    assert got.total.item() == pytest.approx(1.5, rel=1e-6)  # each is its own mean so far
    got.total.backward()
    assert all(parameter.grad is not None for parameter in method.student.parameters())


def test_a_student_that_is_the_teacher_loses_nothing():
    method = build("--objective.semantic_teacher=random:vit_tiny_patch16_224")
    teacher = method.teachers.spatial.encoder.backbone
    method.student.backbone.load_state_dict(teacher.state_dict())
    for layer in (method.student.spatial.block.attn.proj, method.student.spatial.block.mlp.fc2):
        nn.init.zeros_(layer.weight)  # nothing but what goes by unchanged
        nn.init.zeros_(layer.bias)
    nn.init.eye_(method.student.semantic.weight)
    nn.init.zeros_(method.student.semantic.bias)
    assert isinstance(method.student.spatial.linear, nn.Identity)
    got = method(batch(), At(0.0))
    assert got.metrics["patch_loss"].item() == pytest.approx(0, abs=1e-9)
    assert got.metrics["cls_loss"].item() == pytest.approx(0, abs=1e-6)
    assert got.metrics["patch_r2"].item() == pytest.approx(1, abs=1e-6)


def test_losses_are_divided_by_their_running_means():
    scaling = MeanScaling(2, momentum=0.9).double()
    rows = torch.tensor([[4.0, 0.1], [2.0, 0.3], [8.0, 0.2]], dtype=torch.float64)
    means, mean = [], rows[0]
    for row in rows:
        mean = mean + 0.1 * (row - mean)
        means.append(mean)
    for row, expected in zip(rows, means, strict=True):
        given = row.clone().requires_grad_()
        found = scaling(given)
        assert torch.allclose(found, row / expected)
        found.sum().backward()
        assert torch.allclose(given.grad, 1 / expected)  # the mean is a number, not a function
    assert scaling(torch.zeros(2, dtype=torch.float64)).tolist() == [0, 0]


def test_teachers_stay_as_they_are_and_in_no_state():
    method, views = build(), batch()
    before = [hash_weights(model.encoder) for model in method.teachers.all()]
    optimizer = torch.optim.AdamW(method.trained.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        method(views, At(0.0)).total.backward()
        optimizer.step()
    assert [hash_weights(model.encoder) for model in method.teachers.all()] == before
    assert {name.split(".")[0] for name in method.state_dict()} == {"student", "scaling"}


def test_without_a_semantic_teacher_patches_are_all_there_is():
    method = build("--objective.semantic_teacher=")
    got = method(batch(), At(0.0))
    assert "cls_loss" not in got.metrics
    assert got.total.item() == pytest.approx(1.0)
    assert method.student.semantic is None


def test_the_rate_begins_anew_in_each_cycle():
    config = OptimizerConfig(warmup=0.2, cycles=4, learning_rate_end=0.0)
    rates = [config.at(0.2 + 0.8 * share, 1.0)["learning_rate"] for share in (0, 0.125, 0.2499, 0.25, 0.625, 1.0)]
    assert rates == pytest.approx([1, 0.5, 0, 1, 0.5, 0], abs=1e-5)
    assert config.at(0.1, 1.0)["learning_rate"] == pytest.approx(0.5)
    plain = OptimizerConfig(warmup=0.2, learning_rate_end=0.0)
    rates = [plain.at(progress, 1.0)["learning_rate"] for progress in (0.0, 0.1, 0.2, 0.6, 1.0)]
    assert rates == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_collapse_stops_a_run():
    method = build()
    row = {"patch_feature_std": 0.0}
    assert "collapsed" in [method.watch(row) for _ in range(LONG)][-1]
    assert method.watch({"patch_feature_std": 0.5}) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--objective.spatial_teacher="], "set objective.spatial_teacher"),
        (["--objective.patch_weight=0", "--objective.semantic_teacher="], "without a semantic teacher"),
        (["--objective.scale_momentum=1"], r"in \[0, 1\)"),
        (["--optimizer.cycles=0"], "at least 1"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        build(*settings)


def test_a_run_learns_and_tells_what_from(clip, tmp_path):
    settings = ["--run.steps=24", "--run.batch_size=8", "--optimizer.learning_rate=3e-3", *TEACHERS]
    recipe = read_recipe(["smoke", "frame1-cpu"], settings)
    out, frames = tmp_path / "run", tmp_path / "frames"
    assert "GFLOP a clip" in dry_run([clip], out, recipe, frames, False)
    pretrain([clip], out, recipe, frames=frames)
    rows = read_log(out / "log.jsonl")
    for name in ("patch_loss", "cls_loss"):
        assert rows[-1][name] < 0.9 * rows[0][name]
    assert rows[-1]["patch_r2"] > rows[0]["patch_r2"]
    assert "`random`" in (out / "encoder" / "README.md").read_text()
    state = checkpoint.load_newest(out / "checkpoints").model
    assert state["scaling.mean"].min() > 0
    saved = Encoder.from_pretrained(out / "encoder").backbone.state_dict()
    assert torch.equal(saved["norm.weight"], state["student.backbone.norm.weight"])
    assert not any("spatial" in name for name in saved)


def test_views_are_one_frame_in_its_own_colours():
    recipe = read_recipe("frame1")
    (view,) = frame1.plan_views(np.random.default_rng(0), (640, 360), recipe.spec)
    assert (view.frame, view.size, view.style) == (0, (400, 400), None)
