"""DINO's and iBOT's losses against plain loops over views, pairs and patches, in float64."""

import copy

import numpy as np
import pytest
import torch

from training.common.yaml_files import names_in
from training.data.batch import augment, collate
from training.data.loading import Place
from training.engine.assembly import build_method, clip_views
from training.methods import ibot, load_method, method_names
from training.methods.method import At
from training.recipes.recipe import RECIPES, read_recipe
from video_distilled_encoder import InputError

TAU_S, TAU_T = 0.1, 0.05
SMALL = [
    "--backbone.architecture=vit_tiny_patch16_224",
    "--backbone.drop_path=0.0",
    "--views.global_size=64",
    "--views.local_size=32",
    "--views.local_views=3",
    "--objective.head.prototypes=24",
    "--objective.head.hidden=32",
    "--objective.head.bottleneck=16",
    "--objective.teacher_temperature=[0.05,0.05]",
]


def build(recipe_name, *overrides):
    recipe = read_recipe(recipe_name, [*SMALL, *overrides])
    torch.manual_seed(0)
    method = build_method(recipe).double().train()
    with torch.no_grad():
        for balance in (method.cls_balance, method.patch_balance):
            balance.center.normal_(std=0.05)
        for parameter in method.student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return recipe, method


def batch(clips=2, locals_=3):
    generator = torch.Generator().manual_seed(1)
    draw = {"generator": generator, "dtype": torch.double}
    mask = torch.zeros(clips, 2, 16, dtype=torch.bool)
    mask[0, 0, [3, 4, 7]] = True
    mask[1, 1, [0, 15]] = True
    return {
        "global": {"pixels": torch.randn(clips, 2, 3, 64, 64, **draw), "mask": mask},
        "local": {"pixels": torch.randn(clips, locals_, 3, 32, 32, **draw)},
    }


def target(method, tokens, balance):
    return torch.softmax((method.teacher.head(tokens) - balance.center) / TAU_T, -1)


def cross_entropy(p, logits):
    return -(p * torch.log_softmax(logits / TAU_S, -1)).sum()


def plain_dino(method, views, student_globals):
    terms = []
    for b in range(2):
        student = [method.student.head(cls) for cls in student_globals[b]]
        student += [
            method.student.head(method.student.backbone.forward_features(view[None])[0, 0])
            for view in views["local"]["pixels"][b]
        ]
        for own in range(2):
            with torch.no_grad():
                cls = method.teacher.backbone.forward_features(views["global"]["pixels"][b, own][None])[0, 0]
                p = target(method, cls, method.cls_balance)
            terms += [cross_entropy(p, logits) for other, logits in enumerate(student) if other != own]
    return sum(terms) / len(terms)


def assert_equal_gradients(method, reference):
    expected = dict(reference.student.named_parameters())
    for name, parameter in method.student.named_parameters():
        if expected[name].grad is None:
            assert parameter.grad is None or parameter.grad.norm() == 0, name
            continue
        error = (parameter.grad - expected[name].grad).norm() / expected[name].grad.norm().clamp(min=1e-12)
        assert error < 1e-6, name


def test_dino_equals_a_loop_over_pairs_of_views():
    _, method = build("dino-pre-crop")
    views, reference = batch(), copy.deepcopy(method)
    total, _ = method(views, At(0.0))
    total.backward()
    encode = reference.student.backbone.forward_features
    expected = plain_dino(
        reference, views, [[encode(view[None])[0, 0] for view in clip] for clip in views["global"]["pixels"]]
    )
    expected.backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-9)
    assert_equal_gradients(method, reference)


def masked_tokens(student, image, mask):
    """Timm's forward with the embedded patches under the mask replaced."""
    hook = student.backbone.patch_embed.register_forward_hook(
        lambda module, inputs, patches: torch.where(mask.view(1, 4, 4, 1), student.mask_token, patches)
    )
    tokens = student.backbone.forward_features(image[None])[0]
    hook.remove()
    return tokens


def test_ibot_equals_a_loop_over_masked_patches():
    _, method = build("ibot")
    views, reference = batch(), copy.deepcopy(method)
    total, metrics = method(views, At(0.0))
    total.backward()
    tokens = [
        [masked_tokens(reference.student, view, mask) for view, mask in zip(clip, masks, strict=True)]
        for clip, masks in zip(views["global"]["pixels"], views["global"]["mask"], strict=True)
    ]
    global_ = plain_dino(reference, views, [[view[0] for view in clip] for clip in tokens])
    patch = 0.0
    for b in range(2):
        for v in range(2):
            places = views["global"]["mask"][b, v].nonzero()[:, 0]
            with torch.no_grad():
                taught = reference.teacher.backbone.forward_features(views["global"]["pixels"][b, v][None])[0, 1:]
            for place in places:
                p = target(reference, taught[place], reference.patch_balance)
                logits = reference.student.head(tokens[b][v][1 + place])
                patch = patch + cross_entropy(p, logits) / len(places) / 4
    (global_ + patch).backward()
    assert metrics["global_loss"].item() == pytest.approx(global_.item(), rel=1e-9)
    assert metrics["dense_loss"].item() == pytest.approx(patch.item(), rel=1e-6)  # weights are float32
    assert_equal_gradients(method, reference)


@pytest.mark.parametrize("count", [0, 1, 17, 60, 98])
def test_block_masks_have_the_size_asked_for_and_are_blocks(count):
    masks = [ibot.block_mask(np.random.default_rng(seed), 14, count) for seed in range(20)]
    assert all(mask.sum() == count for mask in masks)
    if count == 60:
        together = np.mean([(mask[1:] & mask[:-1]).sum() / mask.sum() for mask in masks])
        assert together > 0.6  # of patches strewn at random 0.3 would have a masked one below
        assert not np.array_equal(masks[0], masks[1])


def test_time_aug_takes_views_from_both_frames():
    recipe = read_recipe("dino-time-aug")
    views = load_method("dino").plan_views(np.random.default_rng(0), (640, 360), recipe.spec)
    assert [view.frame for view in views] == [0, 1] + [0] * 4 + [1] * 4
    assert [view.style for view in views[:2]] == ["view1", "view2"]
    single = load_method("dino").plan_views(np.random.default_rng(0), (640, 360), read_recipe("dino-frames").spec)
    assert {view.frame for view in single} == {0}
    assert max(view.box.width * view.box.height for view in single[:2]) > 0.4 * 640 * 360 * 0.9


WITHOUT_PROTOTYPES = {"distill", "frame1", "frame1-cpu", "frame2", "frame2-cpu", "paka", "poodle", "poodle-cpu"}
WITHOUT_PROTOTYPES |= {"rsp", "rsp-cpu", "warm", "warm-gpu"}


@pytest.mark.parametrize("name", sorted(set(names_in(RECIPES)) - {"smoke", "cpu"} - WITHOUT_PROTOTYPES))
def test_every_recipe_builds_and_takes_its_own_views(name):
    recipe, method = build(name)

    class OneClip:
        size = (160, 90)

        def __getitem__(self, position):
            return self, np.arange(recipe.clips.frames)

        def number_of(self, position):
            return position

        def read(self, number, box, scale):
            frame = np.random.default_rng(number).integers(0, 255, (90, 160, 3), dtype=np.uint8)
            return frame[box.top : box.top + box.height, box.left : box.left + box.width]

    sample = clip_views(recipe, OneClip())[Place(0, 0.5)]
    views = augment(collate([sample]), torch.zeros(3), torch.ones(3))
    for found in views.values():
        found["pixels"] = found["pixels"].double()
    total, metrics = method(views, At(0.5))
    total.backward()
    assert total.isfinite()
    assert "cls_feature_std" in metrics or "patch_feature_std" in metrics


def test_methods_are_the_files_of_the_folder():
    assert method_names() == [
        "attmask",
        "dino",
        "distill",
        "dora",
        "frame1",
        "frame2",
        "ibot",
        "paka",
        "poodle",
        "rsp",
        "timet",
        "vfd",
    ]
    with pytest.raises(InputError, match=r"clips\.frames is 3"):
        build("dino-frames", "--clips.frames=3")
