"""Distillation against its formulas: what the teacher is, how its tokens are scaled, when the loss is 0."""

import json

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.transforms.functional import to_pil_image, to_tensor

from training.engine import checkpoint
from training.engine.assembly import build_method
from training.engine.log import read_log
from training.engine.run import pretrain
from training.methods.distill import explained, plan_views, relation_divergence, resize
from training.methods.method import At
from training.models.loading import hash_weights, in_timm
from training.models.model import Model
from training.nn.standardize import Moments, Standardize, hadamard
from training.recipes.recipe import read_recipe
from video_distilled_encoder import InputError, ModelConfig

TEACHER = "random:vit_tiny_patch16_224"
SMALL = [
    "--backbone.architecture=vit_tiny_patch16_224",
    "--backbone.drop_path=0.0",
    "--views.global_size=64",
    "--objective.hidden=64",
    "--objective.predictor.heads=3",
    "--run.batch_size=4",
    "--run.workers=0",
    "--extract.short_side=128",
]


def build(*settings, teacher=TEACHER):
    recipe = read_recipe("distill", [*SMALL, f"--objective.teacher={teacher}", *settings])
    torch.manual_seed(0)
    return build_method(recipe).train()


def batch(frames=1, clips=3, side=64):
    generator = torch.Generator().manual_seed(1)
    return {"global": {"pixels": torch.randn(clips, frames, 3, side, side, generator=generator)}}


@pytest.mark.parametrize("settings", [[], ["--objective.patch_loss=mse", "--objective.scaling=l2"]])
def test_losses_are_the_formulas(settings):
    method, views = build("--objective.relation_weight=0.5", *settings), batch()
    total, metrics = method(views, At(0.0))
    pixels = views["global"]["pixels"][:, 0]
    backbone = method.teacher.encoder.backbone
    with torch.no_grad():
        tokens = backbone.forward_features(pixels)
        cls, patches = method.student(pixels)
    target = F.normalize(tokens[:, 1:], dim=-1) if settings else tokens[:, 1:]
    difference = (patches - target).double()
    smooth = torch.where(difference.abs() < 1, difference**2 / 2, difference.abs() - 0.5)
    expected = {
        "cls_loss": (1 - (cls * tokens[:, 0]).sum(-1) / cls.norm(dim=-1) / tokens[:, 0].norm(dim=-1)).mean(),
        "patch_loss": (difference**2).mean() if settings else smooth.mean(),
        "relation_loss": plain_divergence(patches.double(), tokens[:, 1:].double(), 0.07),
    }
    for name, value in expected.items():
        assert metrics[name].item() == pytest.approx(value.item(), rel=1e-4), name
    weighted = metrics["cls_loss"] + metrics["patch_loss"] + 0.5 * metrics["relation_loss"]
    assert total.item() == pytest.approx(weighted.item(), rel=1e-6)


def plain_divergence(student, teacher, temperature):
    total = 0.0
    for learnt, taught in zip(student, teacher, strict=True):
        for n in range(len(taught)):
            p, q = (
                torch.softmax(
                    torch.stack([F.cosine_similarity(x[n], x[m], dim=0) for m in range(len(x))]) / temperature, 0
                )
                for x in (taught, learnt)
            )
            total = total + (p * (p.log() - q.log())).sum()
    return total / student.shape[0] / student.shape[1]


@pytest.mark.parametrize("scaling", ["standard", "phi_s", "l2", "none"])
@pytest.mark.parametrize("loss", ["smooth_l1", "mse"])
def test_a_student_that_is_the_teacher_loses_nothing(scaling, loss):
    method = build(
        f"--objective.scaling={scaling}", f"--objective.patch_loss={loss}", "--objective.relation_weight=1.0"
    )
    views = batch(clips=8)
    method.prepare([views])
    method.student.backbone.load_state_dict(method.teacher.encoder.backbone.state_dict())
    method.student.cls_head = nn.Identity()
    method.student.patch_head = method.scaling
    metrics = method(views, At(0.0)).metrics
    assert metrics["cls_loss"].item() == pytest.approx(0, abs=1e-5)
    assert metrics["patch_loss"].item() == pytest.approx(0, abs=1e-6)
    assert metrics["patch_r2"].item() == pytest.approx(1, abs=1e-4)
    if scaling in ("none", "l2"):  # angles between tokens are not those of scaled tokens
        assert metrics["relation_loss"].item() == pytest.approx(0, abs=1e-4)


def test_the_teacher_stays_as_it_is_and_in_no_state(clip, tmp_path):
    method, views = build(), batch()
    before, seen = hash_weights(method.teacher.encoder), method.teach(views["global"]["pixels"][:, 0])
    optimizer = torch.optim.AdamW(method.trained.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        method(views, At(0.0)).total.backward()
        optimizer.step()
        method.after_step(At(0.0))
    assert hash_weights(method.teacher.encoder) == before
    assert torch.equal(method.teach(views["global"]["pixels"][:, 0]).grid, seen.grid)
    assert not method.teacher.encoder.training
    assert all(parameter.grad is None for parameter in method.teacher.encoder.parameters())
    assert {name.split(".")[0] for name in method.state_dict()} == {"student", "scaling"}
    assert isinstance(method.teacher, Model)


def test_the_students_weights_do_not_depend_on_the_teacher():
    one, other = build(), build(teacher="random:vit_small_patch16_224")
    states = [method.student.backbone.state_dict() for method in (one, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("kind", ["standard", "phi_s"])
def test_scaled_channels_have_mean_0_and_deviation_1(kind):
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(24, 24, generator=generator)
    features = torch.randn(5000, 24, generator=generator) @ spread + 3 * torch.randn(24, generator=generator)
    moments = Moments()
    for part in features.split(1000):
        moments.add(part)
    scaling = Standardize(24, kind)
    scaling.fit(moments)
    scaled = scaling(features)
    assert scaled.mean(0).abs().max() < 1e-2
    assert (scaled.std(0) - 1).abs().max() < 1e-2
    if kind == "phi_s":  # one factor for all distances
        pairs = torch.randint(5000, (2, 100), generator=generator)
        before, after = ((x[pairs[0]] - x[pairs[1]]).norm(dim=-1) for x in (features, scaled))
        assert (before / after).std() / (before / after).mean() < 1e-4


@pytest.mark.parametrize("order", [1, 2, 12, 20, 192, 320, 384, 768, 1024, 1152])
def test_hadamard_matrices(order):
    matrix = hadamard(order)
    assert torch.allclose(matrix @ matrix.T, torch.eye(order, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(matrix.abs(), torch.full_like(matrix, order**-0.5))
    with pytest.raises(InputError, match="no Hadamard matrix of order 28"):
        hadamard(28)


def test_relations_are_blind_to_rotations_and_regression_is_not():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 9, 8, generator=generator)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
    plain, rotated = (relation_divergence(x, teacher, 0.07) for x in (student, student @ rotation))
    assert plain.item() == pytest.approx(rotated.item(), rel=1e-4)
    assert F.mse_loss(student, teacher).item() != pytest.approx(
        F.mse_loss(student @ rotation, teacher).item(), rel=1e-2
    )
    assert relation_divergence(teacher @ rotation, teacher, 0.07).item() == pytest.approx(0, abs=1e-5)


def test_the_share_explained_is_scikit_learns():
    from sklearn.metrics import r2_score

    generator = torch.Generator().manual_seed(0)
    target = torch.randn(3, 10, 5, generator=generator) * torch.arange(1, 6)
    predicted = target + torch.randn(3, 10, 5, generator=generator)
    expected = r2_score(target.flatten(0, 1), predicted.flatten(0, 1), multioutput="variance_weighted")
    assert explained(predicted, target).item() == pytest.approx(expected, rel=1e-5)


def test_grids_of_other_patches_are_made_equal_or_resized():
    teacher = timm.create_model(
        "vit_tiny_patch16_224", patch_size=14, img_size=56, num_classes=0, dynamic_img_size=True
    )
    method = build()
    method.teacher = in_timm(teacher, {"name": "patch 14"})
    assert method.teacher.patch_size == 14
    pixels = batch()["global"]["pixels"][:, 0]
    taught = method.teach(pixels)
    assert taught.grid.shape[-2:] == (4, 4)
    config = method.teacher.config  # seen as its own data would have it
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    own_mean, own_std = (torch.tensor(values).view(3, 1, 1) for values in (ModelConfig().mean, ModelConfig().std))
    smaller = F.interpolate(pixels * own_std + own_mean, (56, 56), mode="bicubic", antialias=True)
    expected = teacher.eval().forward_features((smaller - mean) / std)[:, 1:]
    assert torch.allclose(taught.patches, expected, atol=1e-4)
    larger = build("--objective.teacher_scale=1.5")
    cut = batch(side=96)
    taught = larger.teach(cut["global"]["pixels"][:, 0])
    with torch.no_grad():
        finer = larger.teacher.features(cut["global"]["pixels"][:, 0], larger.config, (96, 96)).grid
    assert finer.shape[-2:] == (6, 6)
    assert torch.allclose(taught.grid[:, :, 0, 0], finer[:, :, :2, :2].mean((2, 3)), atol=1e-6)
    assert torch.equal(taught.patches, taught.grid.flatten(2).mT)
    assert larger.shrink(cut["global"]["pixels"][:, 0]).shape[-2:] == (64, 64)
    assert larger(cut, At(0.0)).total.isfinite()
    ramp = torch.arange(4.0).repeat(4).view(1, 16, 1)  # a column's number
    assert torch.allclose(resize(ramp, (4, 4), (2, 2)).view(2, 2), torch.tensor([[0.5, 2.5]] * 2))


def test_a_sharper_view_is_the_teachers_and_the_student_sees_it_scaled_down():
    settings = [*SMALL, f"--objective.teacher={TEACHER}", "--objective.teacher_scale=2"]
    (view,) = plan_views(np.random.default_rng(0), (320, 240), read_recipe("distill", settings).spec)
    assert view.size == (128, 128)
    method, views = build("--objective.teacher_scale=2"), batch(side=128)
    pixels = views["global"]["pixels"][:, 0]
    with torch.no_grad():
        tokens = method.teacher.encoder.backbone.forward_features(pixels)[:, 1:]
    expected = F.avg_pool2d(tokens.mT.unflatten(2, (8, 8)), 2)
    assert torch.allclose(method.teach(pixels).grid, expected, atol=1e-5)
    images = (pixels * torch.tensor(0.1) + 0.5).clamp(0, 1)
    ours = method.shrink(images).clamp(0, 1)
    for image, small in zip(images, ours, strict=True):
        expected = to_tensor(to_pil_image(image).resize((64, 64), Image.Resampling.BICUBIC))
        assert (small - expected).abs().max() < 2.5 / 255  # Pillow computes in 8 bits
    assert method.student(method.shrink(pixels))[1].shape[1] == 16
    assert method(views, At(0.0)).total.isfinite()


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
def test_a_convolutional_network_teaches(name):
    method = build("--objective.teacher_scale=2", "--objective.scaling=standard")
    network = timm.create_model(name, num_classes=0).eval()
    method.teacher = in_timm(network, {"name": name})
    taught = method.teach(batch(side=128)["global"]["pixels"][:, 0])
    assert taught.grid.shape[-2:] == (4, 4)
    assert taught.cls.shape[-1] == taught.patches.shape[-1] == network.num_features
    finer = in_timm(network, {"name": name}, strides=[16])
    with torch.no_grad():
        grid = finer.features(torch.zeros(1, 3, 64, 64), ModelConfig(), (64, 64)).grid
    assert grid.shape[-2:] == (4, 4)  # as the student's, of as many pixels
    with pytest.raises(InputError, match="its maps are 2, 4, 8, 16, 32 times" if name == "resnet10t" else "not 12"):
        in_timm(network, {"name": name}, strides=[12])


@pytest.mark.parametrize("prefix", ["", "openvino:"])
def test_a_run_learns_and_tells_what_from(clip, tmp_path, prefix):
    if prefix:
        pytest.importorskip("openvino")
    recipe = read_recipe(
        "distill",
        [
            *SMALL,
            f"--objective.teacher={prefix}{TEACHER}",
            "--objective.scaling_batches=3",
            "--objective.next_frame=true",
            "--clips.frames=2",
            "--run.steps=12",
            "--run.log_every=1",
            "--optimizer.learning_rate=2e-2",
        ],
    )
    out = tmp_path / "run"
    pretrain([clip], out, recipe, frames=tmp_path / "frames")
    rows = read_log(out / "log.jsonl")
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert all(row["patch_r2"] <= 1 for row in rows)
    state = checkpoint.load_newest(out / "checkpoints").model
    assert state["scaling.mean"].abs().max() > 0
    card = (out / "encoder" / "README.md").read_text()
    assert f"`{prefix}random`" in card
    assert "a licence that is not stated" in card
    assert set(json.loads((out / "run.json").read_text())["outside"]) == {f"{prefix}random"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--objective.teacher="], "set objective.teacher"),
        (["--objective.cls_weight=0", "--objective.patch_weight=0"], "nor all 0"),
        (["--objective.next_frame=true"], r"clips\.frames of at least 2, got 1"),
        (["--objective.teacher=timm:nothing"], "timm has no model 'nothing'"),
        (["--objective.scaling_batches=0"], "must be positive"),
        (["--objective.teacher_scale=-1"], "must be positive, got -1"),
        (["--objective.teacher_scale=1.1"], "gives random views of 70x70 pixels; it takes multiples of 16"),
    ],
)
def test_what_cannot_work_is_said(settings, message):
    with pytest.raises(InputError, match=message):
        build(*settings)
