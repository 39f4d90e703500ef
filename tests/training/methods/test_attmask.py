"""AttMask's masks against the counts of its specification, and its loss against iBOT's under the same masks."""

import copy
import shutil

import numpy as np
import pytest
import timm
import torch
from timm.layers import set_fused_attn
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock

from training.common import keyed
from training.engine import checkpoint
from training.engine.assembly import build_method
from training.engine.run import pretrain
from training.methods import attmask
from training.methods.attmask import attention_mask
from training.methods.method import At
from training.nn.attention import last_block
from training.nn.compiling import compile_parts
from training.nn.drop_path import DropPaths
from training.recipes.recipe import read_recipe
from video_distilled_encoder import InputError

NARROW = '--backbone.model_args={"embed_dim":64,"num_heads":2}'
SMALL = [
    "--backbone.architecture=vit_tiny_patch16_224",
    "--backbone.drop_path=0.0",
    "--views.global_size=128",
    "--views.local_size=32",
    "--views.local_views=2",
    "--objective.head.prototypes=24",
    "--objective.head.hidden=32",
    "--objective.head.bottleneck=16",
    "--run.batch_size=4",
    "--run.workers=0",
    "--extract.short_side=128",
]


@pytest.fixture
def plain_attention():
    set_fused_attn(False)
    yield
    set_fused_attn(True)


SHALLOW = {"depth": 2, "embed_dim": 64, "num_heads": 2}


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("vit_tiny_patch16_224", 1),
        ("vit_base_patch16_clip_224", 1),
        ("vit_small_patch14_reg4_dinov2", 5),
        ("vit_small_patch16_dinov3", 5),
        ("vit_pe_core_small_patch16_384", 1),
        ("eva02_small_patch14_224", 1),
    ],
)
def test_the_last_block_is_timms(plain_attention, name, prefix):
    torch.manual_seed(0)
    side = 56 if "patch14" in name else 64
    options = {"img_size": side} if "clip" in name else {"dynamic_img_size": True, **SHALLOW}
    backbone = timm.create_model(name, num_classes=0, **options).eval()
    for parameter in backbone.blocks[-1].attn.parameters():
        torch.nn.init.normal_(parameter, std=1.6 / backbone.embed_dim**0.5)  # that it attends to something
    seen = []
    backbone.blocks[-1].attn.attn_drop.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    pixels = torch.randn(2, 3, side, side)
    with torch.no_grad():
        last = last_block(backbone, pixels)
        assert torch.equal(last.tokens, backbone.forward_features(pixels))
    assert torch.equal(last.patches, last.tokens[:, prefix:])
    expected = seen[0][:, :, 0, prefix:]
    assert last.attention.shape == expected.shape == (2, backbone.blocks[0].attn.num_heads, 16)
    assert torch.allclose(last.attention, expected, atol=1e-6)
    assert expected.std() > 0.01
    scores = last.queries * backbone.blocks[-1].attn.scale @ last.keys.mT
    of_patches = seen[0][:, :, prefix:, prefix:]
    assert torch.allclose(torch.softmax(scores, -1), of_patches / of_patches.sum(-1, keepdim=True), atol=1e-6)
    block = backbone.blocks[-1]
    assert not block._forward_pre_hooks
    assert not block.attn.fused_attn


def test_the_last_block_of_compiled_parts_is_seen_too(monkeypatch):
    torch_compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: torch_compile(f, backend="eager", **options))
    backbone = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True).eval()
    pixels = torch.randn(1, 3, 64, 64)
    expected = last_block(backbone, pixels)
    compile_parts(backbone)
    got = last_block(backbone, pixels)
    assert torch.allclose(got.attention, expected.attention, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"block_fn": ResPostBlock},  # its norm comes after the attention
        {"block_fn": ParallelScalingBlock},
        {"class_token": False, "global_pool": "avg"},
        {"class_token": False, "global_pool": "avg", "reg_tokens": 4},
        {"attn_layer": "diff"},
    ],
)
def test_the_last_block_of_another_kind_is_refused(options):
    backbone = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64, depth=1, **options)
    with pytest.raises(
        InputError, match=r"in ViTs with a class token and blocks as .* have them; this one's last block is a"
    ):
        last_block(backbone, torch.randn(1, 3, 64, 64))


def test_under_autocast_patches_are_not_attended_to_alike():
    torch.manual_seed(0)
    backbone = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        attention = last_block(backbone, pixels).attention
    assert attention.dtype == torch.float32
    assert min(len(head.unique()) for head in attention[0]) > 180


def masked(mode, share, hint=0.3, attention=None, seed=0, rows=1):
    attention = torch.arange(196.0).repeat(rows, 1) if attention is None else attention
    order = keyed.uniform(seed, torch.arange(len(attention)), attention.shape[-1])
    return attention_mask(attention, mode, share, hint, 0.1, order)


@pytest.mark.parametrize(("share", "count"), [(0.1, 19), (0.3, 58), (0.5, 98)])
def test_high_masks_exactly_the_most_attended_and_low_the_least(share, count):
    assert masked("high", share)[0].nonzero()[:, 0].tolist() == list(range(196 - count, 196))
    assert masked("low", share)[0].nonzero()[:, 0].tolist() == list(range(count))
    assert not (masked("low", share) & masked("high", share)).any()
    alike = torch.ones(2, 196)
    low, high = (masked(mode, share, attention=alike) for mode in ("low", "high"))
    assert (low.sum(-1) == count).all()
    assert (high.sum(-1) == count).all()
    assert not (low & high).any()


@pytest.mark.parametrize(("hint", "shown"), [(0.1, 1), (0.3, 5), (0.5, 9)])
def test_a_hint_shows_some_of_the_very_highest_again_at_random(hint, shown):
    high, hinted = masked("high", 0.3, rows=4000), masked("hint", 0.3, hint, rows=4000)
    revealed = high & ~hinted
    assert (revealed.sum(-1) == shown).all()
    assert (hinted.sum(-1) == 58 - shown).all()
    assert not revealed[:, : 196 - 19].any()
    counts, expected = revealed[:, -19:].sum(0), 4000 * shown / 19
    assert ((counts - expected) ** 2 / expected).sum() < 43  # chi squared of 18 degrees of freedom, 1 in 1000


def test_masks_go_with_the_patches():
    generator = torch.Generator().manual_seed(0)
    attention, order = torch.rand(3, 196, generator=generator), torch.rand(3, 196, generator=generator)
    places = torch.randperm(196, generator=generator)
    for mode in ("high", "hint", "low"):
        plain, moved = (attention_mask(a, mode, 0.4, 0.3, 0.1, o) for a, o in (
            (attention, order), (attention[:, places], order[:, places])
        ))  # fmt: skip
        assert torch.equal(plain[:, places], moved)


def build(name, *settings):
    recipe = read_recipe(name, [*SMALL, *settings])
    torch.manual_seed(0)
    return build_method(recipe).train()


def batch(clips=4):
    generator = torch.Generator().manual_seed(1)
    return {
        group: {"pixels": torch.randn(clips, 2, 3, side, side, generator=generator)}
        for group, side in (("global", 128), ("local", 32))
    }


def test_the_loss_is_ibots_under_the_same_masks():
    method, other, views = build("attmask"), build("ibot"), batch()
    other.load_state_dict(method.state_dict())
    at = At(0.2, key=5)
    mask = copy.deepcopy(method).teach(views, at)[1]
    assert mask.shape == (4, 2, 64)
    counts = mask.sum(-1)
    assert set(counts.flatten().tolist()) == {0, int(counts.max())}
    planned = {**views, "global": {**views["global"], "mask": mask}}
    assert method(views, at).total.item() == other(planned, at).total.item()


def test_masks_depend_on_the_place_in_the_run_alone():
    method, views = build("attmask"), batch()
    whole = method.teach(views, At(0.0, key=9))[1]
    halves = [{g: {"pixels": f["pixels"][part]} for g, f in views.items()} for part in (slice(2), slice(2, 4))]
    parts = [method.teach(half, At(0.0, 9, first))[1] for first, half in zip((0, 2), halves, strict=True)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(method.teach(views, At(0.0, key=10))[1], whole)


def test_masks_do_not_follow_the_dropped_paths(monkeypatch):
    method, views = build("attmask", NARROW, "--backbone.drop_path=0.5"), batch()
    paths = DropPaths(method.student.backbone, rank=0)
    orders, kept = [], []
    monkeypatch.setattr(attmask, "attention_mask", lambda *given: (orders.append(given[-1]), attention_mask(*given))[1])
    for step in range(60):
        at = At(0.0, keyed.key_of(0, step))
        paths.begin(at.key)
        method.teach(views, at)
        method.student.backbone.forward_features(torch.zeros(8, 3, 32, 32))
        kept.append([block.drop_path1.scale > 0 for block in method.student.backbone.blocks[1:]])
    kept = torch.stack([torch.cat(layer) for layer in zip(*kept, strict=True)]).float()
    together = torch.corrcoef(torch.cat([kept, torch.cat(orders).T]))[: len(kept), len(kept) :]
    assert together.abs().max() < 0.25  # of 480 rows, and 704 pairs


def test_a_share_of_the_views_is_masked_and_the_share_of_patches_is_drawn():
    method, views = build("attmask", NARROW, "--objective.mask_mode=high"), batch()
    counts = torch.cat([method.teach(views, At(0.0, key=key))[1].sum(-1) for key in range(60)])
    assert 0.35 < (counts > 0).float().mean() < 0.65
    drawn = counts[counts > 0]
    assert drawn.min() >= int(0.1 * 64)
    assert drawn.max() <= int(0.5 * 64)
    assert len(drawn.unique()) > 15
    numbers = [keyed.number(key, column) for key in range(500) for column in range(2)]
    assert np.abs(np.histogram(numbers, 10, (0, 1))[0] - 100).max() < 40


def test_a_run_learns_and_resumes_to_the_bit(clip, tmp_path):
    narrow = '--backbone.model_args={"embed_dim":64,"depth":4,"num_heads":2}'
    recipe = read_recipe("attmask", [*SMALL, narrow, "--run.steps=4", "--run.checkpoint_every=2"])
    states = []
    for name in ("whole", "again"):
        pretrain([clip], tmp_path / name, recipe, frames=tmp_path / "frames")
    for name in ("checkpoints/step-00000004", "encoder"):
        shutil.rmtree(tmp_path / "again" / name)
    pretrain([clip], tmp_path / "again", recipe, frames=tmp_path / "frames", resume=True)
    states = [checkpoint.load_newest(tmp_path / name / "checkpoints").model for name in ("whole", "again")]
    assert all(torch.equal(states[1][name], tensor) for name, tensor in states[0].items())
    with pytest.raises(InputError, match=r"hint_share must lie in \[0, 0.1\], the lower end"):
        build("attmask", "--objective.hint_share=.2")
