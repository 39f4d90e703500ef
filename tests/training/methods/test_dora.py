"""DoRA against the numbers of its specification, and against its formulas written out in float64."""

import math

import numpy as np
import pytest
import torch

from training.common import keyed
from training.data.views import Box
from training.engine.assembly import build_method
from training.engine.log import read_log
from training.engine.run import dry_run, pretrain
from training.methods import dora
from training.methods.dora import binarise, follow, overlap, share_out, show, view_weights
from training.methods.method import At
from training.methods.self_distillation import LONG
from training.recipes.recipe import read_recipe
from video_distilled_encoder import InputError

SMALL = [
    "--backbone.model_args.embed_dim=48",
    "--backbone.model_args.num_heads=4",
    "--backbone.drop_path=0.0",
    "--clips.frames=3",
    "--views.local_size=32",
    "--views.local_views=3",
    "--objective.head.prototypes=24",
    "--objective.objects=2",
    "--objective.targets=centering",
]


def build(*settings):
    recipe = read_recipe(["smoke", "dora"], [*SMALL, *settings])
    torch.manual_seed(0)
    method = build_method(recipe).train()
    for parameter in method.student.backbone.blocks[-1].attn.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # that it attends to something
    method.start_teacher()
    torch.nn.init.normal_(method.student.head.mlp[-1].weight, std=0.2)  # that the student is not the teacher
    return method


def batch(clips=2, frames=3, local=3):
    generator = torch.Generator().manual_seed(1)
    return {
        "global": {"pixels": torch.randn(clips, frames, 3, 64, 64, generator=generator)},
        "local": {"pixels": torch.randn(clips, frames * local, 3, 32, 32, generator=generator)},
    }


def as_double(views):
    return {group: {"pixels": found["pixels"].double()} for group, found in views.items()}


def test_patches_are_shared_out_as_sinkhorn_knopp_has_it():
    assert torch.allclose(share_out(torch.zeros(2, 196, 3), 0.05, 30), torch.tensor(1 / 3))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 196, 3, generator=generator, dtype=torch.float64)
    # at a deviation of 0.2 the worst of 12 columns is off by 1.06e-3 after 30 rounds, in plain Sinkhorn-Knopp as well
    narrow, wide = share_out(0.15 * logits, 0.05, 30), share_out(logits, 0.05, 30)
    assert torch.allclose(narrow.sum(2), torch.ones(4, 196, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(wide.sum(2), torch.ones(4, 196, dtype=torch.float64), atol=1e-12)
    assert (narrow.sum(1) - 196 / 3).abs().max() < 1e-3
    for scale, found in ((0.15, narrow), (1.0, wide)):
        plain = torch.exp(scale * logits / 0.05)
        for _ in range(30):
            plain = plain / plain.sum(1, keepdim=True)
            plain = plain / plain.sum(2, keepdim=True)
        assert torch.allclose(found, plain, atol=1e-12)
    assert share_out(300 * logits.float(), 0.05, 30).isfinite().all()


def test_an_object_is_followed_to_where_the_keys_are_like_it():
    generator = torch.Generator().manual_seed(0)
    objects = torch.randn(2, 3, 12, generator=generator, dtype=torch.float64)
    alike = torch.randn(2, 4, 2, 1, 6, generator=generator, dtype=torch.float64).expand(2, 4, 2, 196, 6)
    assert torch.allclose(follow(objects, alike), torch.tensor(1 / 196, dtype=torch.float64))
    keys = torch.randn(2, 4, 2, 9, 6, generator=generator, dtype=torch.float64)
    keys[:, 2] = keys[:, 0]
    places = follow(objects, keys)
    assert torch.equal(places[:, 2], places[:, 0])
    joined = torch.cat([keys[1, 3, 0], keys[1, 3, 1]], dim=-1)  # heads side by side
    scores = torch.stack([(joined[n] * objects[1, 2]).sum() / math.sqrt(12) for n in range(9)])
    assert torch.allclose(places[1, 3, 2], torch.softmax(scores, 0))


def test_what_is_more_than_the_average_is_kept():
    places = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.28, 0.24, 0.24, 0.24]], dtype=torch.float64).view(2, 1, 1, 4)
    peaked = [True, True, False, False]
    assert binarise(places)[:, 0, 0].tolist() == [peaked, [True, False, False, False]]
    unit = np.array([[0.5, 0.3, 0.1, 0.1], [0.28, 0.24, 0.24, 0.24]])
    unit /= np.sqrt((unit**2).sum(1, keepdims=True))
    assert (unit > unit.mean()).tolist() == [peaked, [True] * 4]
    assert binarise(places, of_batch=True)[:, 0, 0].tolist() == [peaked, [True] * 4]


def test_masked_pixels_are_gray_and_the_others_stay():
    frames = torch.randn(2, 3, 3, 32, 48)
    mask = torch.rand(2, 3, 2, 6) > 0.5
    seen = show(frames, mask, 16)
    assert seen.shape == (2, 3, 2, 3, 32, 48)
    for patch in range(6):
        rows, columns = (slice(16 * n, 16 * n + 16) for n in divmod(patch, 3))
        here, kept = seen[..., rows, columns], mask[..., patch]
        original = frames[:, :, None, :, rows, columns].expand_as(here)
        assert torch.equal(here[kept], original[kept])
        assert (here[~kept] == 0).all()


def test_objects_and_local_views_weigh_half_each_but_for_the_authors_quirks():
    plain = view_weights(8, 3, 6)
    assert torch.allclose(plain, torch.tensor([1 / 6] * 3 + [1 / 12] * 6, dtype=torch.float64))
    authors = view_weights(8, 3, 6, quirks=True)
    assert (2 * authors[:3]).tolist() == pytest.approx([0.380, 0.375, 0.333], abs=5e-4)
    # the sums as the code runs them: what a frame adds is never reset, only divided
    losses, total, running = torch.rand(3, 8, dtype=torch.float64), 0.0, 0.0
    for of_object in losses:
        for of_frame in of_object:
            running += of_frame
        running /= 8
        total += running
    assert (2 * authors[:3] @ losses.mean(1)).item() == pytest.approx(float(total) / 3, rel=1e-12)
    assert authors[3] == 0
    assert authors[4:].tolist() == pytest.approx([float(authors[:3].sum()) / 5] * 5)


def test_overlap_is_the_intersection_over_the_union():
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 0, 0]]).bool().view(1, 1, 3, 4)
    assert overlap(mask).item() == pytest.approx((1 / 3 + 1 + 1 / 3) / 3)
    assert overlap(mask[:, :, :1]).item() == 1


@pytest.mark.parametrize("quirks", ["none", "authors"])
def test_the_loss_is_the_formulas(quirks):
    """Image by image, with the last block written out."""
    method, views = build(f"--objective.quirks={quirks}").double(), as_double(batch())
    at = At(0.2, key=5)
    got = method(views, at)
    frames, local = views["global"]["pixels"], views["local"]["pixels"].unflatten(1, (3, 3))
    teacher = method.teacher.backbone
    given = []
    teacher.blocks[-1].register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    order = sorted(range(4), key=lambda head: keyed.number(keyed.key_of(5, 1), head))[:2]
    maps = torch.zeros(2, 3, 2, 16, dtype=torch.float64)
    taught = torch.zeros(2, 3, 48, dtype=torch.float64)
    with torch.no_grad():
        for clip in range(2):
            for frame in range(3):
                tokens = teacher.forward_features(frames[clip, frame][None])[0]
                taught[clip, frame] = tokens[0]
                block = teacher.blocks[-1]
                qkv = block.norm1(given[-1])[0] @ block.attn.qkv.weight.T + block.attn.qkv.bias
                q, k = qkv[:, :48], qkv[:, 48:96]
                if frame == 0:
                    rows = [
                        torch.softmax(q[0, 12 * h : 12 * h + 12] @ k[:, 12 * h : 12 * h + 12].T / 12**0.5, 0)
                        for h in order
                    ]
                    named = [sum(row[1 + n] * q[1 + n] for n in range(16)) for row in rows]
                    unit = tokens[1:] / tokens[1:].norm(dim=1, keepdim=True)
                    scores = torch.stack([unit @ one for one in named], 1) / 0.05
                    shares = torch.exp(scores - scores.max())
                    for _ in range(30):
                        shares = shares / shares.sum(0)
                        shares = shares / shares.sum(1, keepdim=True)
                    objects = [(shares[:, o, None] * unit).sum(0) for o in range(2)]
                for number in range(2):
                    maps[clip, frame, number] = torch.softmax(k[1:] @ objects[number] / 48**0.5, 0)
    maps /= maps.norm(dim=-1, keepdim=True)
    logits = lambda tower, tokens, temperature: tower.head(tokens) / temperature  # noqa: E731
    sums = []
    for number in range(2):
        of_frames = []
        for frame in range(3):
            of_clips = []
            for clip in range(2):
                found = maps[:, frame, number] if quirks == "authors" else maps[clip, frame, number]
                kept = (maps[clip, frame, number] > found.mean()).view(4, 4)
                seen = frames[clip, frame].clone()
                for row in range(4):
                    for column in range(4):
                        if not kept[row, column]:
                            seen[:, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 0
                target = torch.softmax(logits(method.teacher, taught[clip, frame], 0.04), -1)

                def entropy(pixels, target=target):
                    token = method.student.backbone.forward_features(pixels[None])[0, 0]
                    return -(target * torch.log_softmax(logits(method.student, token, 0.1), -1)).sum()

                own = range(1, 3) if quirks == "authors" else range(3)
                others = torch.stack([entropy(local[clip, frame, n]) for n in own]).mean()
                of_clips.append((entropy(seen) + others) / 2)
            of_frames.append(torch.stack(of_clips).mean())
        before = sums[-1] / 3 if sums and quirks == "authors" else 0
        sums.append(torch.stack(of_frames).mean() + before)
    assert got.total.item() == pytest.approx((sum(sums) / 2).item(), rel=1e-9)
    assert 0.2 < got.metrics["kept"] < 0.8


def test_a_copy_of_the_first_frame_has_its_masks_and_no_gradient_reaches_the_teacher():
    method, views = build(), batch()
    frames = views["global"]["pixels"]
    frames[:, 2] = frames[:, 0]
    _, mask = method.teach(frames, At(0.0, key=3))
    assert torch.equal(mask[:, 2], mask[:, 0])
    assert not torch.equal(mask[:, 1], mask[:, 0])
    method(views, At(0.5)).total.backward()
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    assert all(parameter.grad is not None for parameter in method.student.parameters() if parameter.requires_grad)


def test_heads_are_drawn_from_the_key_and_all_of_them_are():
    method, frames = build(), batch()["global"]["pixels"]
    again = method.teach(frames, At(0.0, key=3))[1]
    assert torch.equal(method.teach(frames, At(0.0, key=3))[1], again)
    drawn = {method.teach(frames, At(0.0, key=key))[1].sum().item() for key in range(40)}
    assert len(drawn) > 3
    halves = [method.teach(frames[n : n + 1], At(0.0, 3, n))[1] for n in range(2)]
    assert torch.equal(torch.cat(halves), again)


def test_views_are_one_region_of_all_frames_and_local_ones_apart():
    recipe = read_recipe("dora")
    views = dora.plan_views(np.random.default_rng(0), (640, 360), recipe.spec)
    large, small = views[:8], views[8:]
    assert [view.frame for view in large] == list(range(8))
    assert len({(view.box, view.flip) for view in large}) == 1
    assert [view.frame for view in small] == [frame for frame in range(8) for _ in range(6)]
    assert {view.size for view in small} == {(112, 112)}
    assert not any(view.flip for view in small)
    assert all(isinstance(view.box, Box) for view in views)
    assert (recipe.clips.frames, recipe.clips.stride, recipe.objective.head.prototypes) == (8, 1.0, 65536)


def test_masks_that_tell_nothing_stop_the_run():
    method = build()
    row = {"kept": 0.0, "cls_feature_std": 1.0}
    assert all(method.watch(row) is None for _ in range(LONG - 1))
    assert "kept 0.0% of the patches" in method.watch(row)
    assert method.watch({**row, "kept": 0.4}) is None
    collapsed = {"kept": 0.4, "cls_feature_std": 0.0}
    assert "collapsed" in [method.watch(collapsed) for _ in range(LONG)][-1]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--objective.objects=5", "one of the 4 heads"),
        ("--objective.objects=0", "must be positive"),
        ("--views.local_views=0", "at least 1, got 0"),
        ("--objective.local_flip=2", "is a probability"),
    ],
)
def test_what_cannot_be_is_refused(setting, message):
    with pytest.raises(InputError, match=message):
        build(setting)


def test_it_begins_at_a_release_and_tells_of_itself(clip, tmp_path, learnt_a_little, tiny_directory, from_tiny):
    settings = [*from_tiny, "--run.workers=0", "--run.steps=2", "--run.batch_size=1"]
    settings += ["--clips.frames=2", "--clips.stride=0.5", "--views.global_size=64", "--views.local_size=32"]
    settings += ["--views.local_views=1", "--objective.head.prototypes=32", "--run.log_every=1"]
    settings += ["--objective.objects=2"]  # the heads of its last block
    recipe = read_recipe(["dora"], [*settings, "--extract.short_side=128", "--extract.fps=10"])
    assert "GFLOP a clip" in dry_run([clip], tmp_path / "run", recipe, tmp_path / "frames", False)
    pretrain([clip], tmp_path / "run", recipe, frames=tmp_path / "frames")
    learnt_a_little(tmp_path / "run", tiny_directory)
    assert {"kept", "overlap", "cls_feature_std"} <= read_log(tmp_path / "run" / "log.jsonl")[-1].keys()
