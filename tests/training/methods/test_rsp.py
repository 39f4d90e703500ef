"""RSP against the numbers of its specification, and against its formulas written out in float64."""

import copy
import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from training.common import keyed
from training.engine import checkpoint
from training.engine.assembly import build_method
from training.engine.log import read_log
from training.engine.run import dry_run, pretrain
from training.methods import rsp
from training.methods.method import At
from training.methods.rsp import Latent, at_least, divergence, masked_mean, patchify, straight_through
from training.methods.self_distillation import LONG
from training.nn.some_patches import encode_some
from training.recipes.recipe import read_recipe
from video_distilled_encoder import Encoder, InputError

SMALL = ["--objective.decoder.width=48", "--objective.decoder.heads=4", "--objective.variables=6"]
SMALL += ["--objective.classes=5", "--objective.hidden=24", "--objective.prior_share=0.5"]
DRAW = {"dtype": torch.float64}


def build(*settings):
    recipe = read_recipe(["smoke", "rsp-cpu"], [*SMALL, *settings])
    torch.manual_seed(0)
    method = build_method(recipe).train()
    for layers in (method.student.prior, method.student.posterior):
        torch.nn.init.normal_(layers[2].weight, std=0.3)  # that the latent tells something
    return method


def batch(clips=2):
    generator = torch.Generator().manual_seed(1)
    now, later = torch.randn(2, clips, 1, 3, 64, 64, generator=generator)
    shown = torch.stack([torch.randperm(16, generator=generator)[:4].sort().values for _ in range(clips)])
    return {"now": {"pixels": now}, "later": {"pixels": later, "shown": shown[:, None]}}


def in_double(views):
    double = {"pixels": lambda tensor: tensor.double(), "shown": lambda tensor: tensor}
    return {group: {name: double[name](tensor) for name, tensor in found.items()} for group, found in views.items()}


def logits_of(shares):
    return torch.tensor(shares, **DRAW).log()[None, None]


def test_the_divergence_is_that_of_the_specification():
    uniform = logits_of([1 / 3] * 3)
    for balance in (0.0, 0.3, 1.0):
        found = divergence(Latent(logits_of([0.5, 0.25, 0.25]), uniform), balance)
        assert found.item() == pytest.approx(math.log(3) - 1.5 * math.log(2), rel=1e-12)
        assert found.item() == pytest.approx(0.058892, abs=1e-6)
    sure = 1e3 * F.one_hot(torch.arange(32) % 7, 32).double()[None]
    open_ = torch.zeros(1, 32, 32, **DRAW)
    assert divergence(Latent(sure, open_), 0.8).item() == pytest.approx(32 * math.log(32), rel=1e-12)
    assert 32 * math.log(32) == pytest.approx(110.904, abs=1e-3)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, 3, generator=generator, **DRAW)
    expected = torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=one) for one in logits))
    assert torch.allclose(divergence(Latent(*logits), 0.8), expected.sum(1), rtol=1e-12)


def test_prior_and_posterior_learn_by_their_shares_of_it():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 3, 4, 5, generator=generator, **DRAW)

    def gradients(loss):
        logits = [one.clone().requires_grad_() for one in start]
        loss(*logits).backward()
        return [one.grad for one in logits]

    def plain(posterior, prior):
        q, p = (torch.distributions.Categorical(logits=one) for one in (posterior, prior))
        return torch.distributions.kl_divergence(q, p).sum()

    of_posterior, of_prior = gradients(plain)
    found = gradients(lambda posterior, prior: divergence(Latent(posterior, prior), 0.8).sum())
    assert torch.allclose(found[0], 0.2 * of_posterior, rtol=1e-12)
    assert torch.allclose(found[1], 0.8 * of_prior, rtol=1e-12)


def test_what_is_free_costs_nothing_and_teaches_nothing():
    logits = torch.randn(2, 4, 5, **DRAW).requires_grad_()
    kl = divergence(Latent(logits, logits.detach()), 0.8)
    assert torch.equal(kl, torch.zeros_like(kl))
    loss = at_least(kl.mean(), 0.1)
    loss.backward()
    assert loss.item() == 0.1
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    # the mean counts: one clip above makes up for another below
    several = torch.tensor([0.3, 0.0], **DRAW).requires_grad_()
    at_least(several.mean(), 0.1).backward()
    assert several.grad.tolist() == [0.5, 0.5]


def test_a_draw_is_one_hot_with_the_gradient_of_the_shares():
    shares = torch.softmax(torch.randn(3, 4, 5), -1).requires_grad_()
    drawn = straight_through(shares, torch.rand(3, 4))
    assert ((drawn == 0) | (drawn == 1)).all()
    assert (drawn.sum(-1) == 1).all()
    weights = torch.randn(3, 4, 5)
    (drawn * weights).sum().backward()
    assert torch.equal(shares.grad, weights)


def test_classes_are_drawn_as_often_as_their_shares_say():
    shares = torch.tensor([0.1, 0.0, 0.6, 0.3]).expand(8000, 1, 4)
    drawn = straight_through(shares, keyed.uniform(5, torch.arange(8000), 1))
    counts = drawn.sum((0, 1))
    assert counts[1] == 0
    expected = 8000 * torch.tensor([0.1, 0.6, 0.3])
    assert ((counts[[0, 2, 3]] - expected) ** 2 / expected).sum() < 13.8  # chi squared of 2, 1 in 1000
    edge = straight_through(torch.tensor([[[0.5, 0.4999999]]]), torch.tensor([[0.99999999]]))
    assert edge.tolist() == [[[0, 1]]]


def test_patches_hold_their_pixels_and_are_standardised():
    pixels = 3 * torch.randn(2, 3, 48, 32, **DRAW) + 1
    patches = patchify(pixels, 16, norm=False)
    assert patches.shape == (2, 6, 768)
    assert torch.equal(F.pixel_shuffle(patches.mT.unflatten(2, (3, 2)), 16), pixels)
    assert set(patches[1, 3].tolist()) == set(pixels[1, :, 16:32, 16:32].flatten().tolist())  # second row and column
    scaled = patchify(pixels, 16, norm=True)
    assert scaled.mean(-1).abs().max() < 1e-12
    assert torch.allclose(scaled.var(-1), torch.ones(2, 6, **DRAW), atol=1e-5)


def test_shown_patches_do_not_count():
    assert [rsp.shown_of(count, 0.75) for count in (196, 16, 1)] == [49, 4, 1]
    errors, shown = torch.rand(2, 196, **DRAW), torch.stack([torch.randperm(196)[:49] for _ in range(2)])
    other = errors.scatter(1, shown, 100.0)
    assert masked_mean(errors, shown).item() == masked_mean(other, shown).item()
    rest = [errors[clip, n] for clip in range(2) for n in range(196) if n not in shown[clip].tolist()]
    assert masked_mean(errors, shown).item() == pytest.approx(np.mean(rest), rel=1e-12)


@pytest.mark.parametrize(("key", "kept"), [(3, True), (4, False)])
def test_the_loss_is_the_formulas(key, kept):
    """Clip by clip, with the decoder written out; with another key the latent and the noise are others."""
    method, views = build().double(), in_double(batch())
    student, backbone, objective = method.student, method.student.backbone, method.objective
    got = method(views, At(0.1, key=3, first_row=6))
    noise = keyed.normal(keyed.key_of(key, 1), torch.tensor([6, 7]), 3 * 64 * 64).view(2, 3, 64, 64)
    chances = keyed.uniform(keyed.key_of(key, 2), torch.tensor([6, 7]), 6)
    places = torch.stack([rsp.sincos_positions((4, 4), 48)[n] for n in range(16)]).double()
    zero = torch.zeros(1, 48, **DRAW)

    def attend(layer, queries, keys, values, heads=4):
        parts = []
        for h in range(heads):
            q, k, v = (x[:, 12 * h : 12 * h + 12] for x in (queries, keys, values))
            parts.append(torch.softmax(q @ k.T / 12**0.5, -1) @ v)
        return layer.proj(torch.cat(parts, -1))

    def decode(memory):
        x = student.decoder.mask_token + torch.cat([zero, places])
        for block in student.decoder.blocks:
            asked = block.norm_memory(memory)
            k, v = block.cross.kv(asked).split(48, -1)
            x = x + attend(block.cross, block.cross.q(block.norm_cross(x)), k, v)
            x = x + attend(block.attn, *block.attn.qkv(block.norm_self(x)).split(48, -1))
            x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm_mlp(x))))
        return student.decoder.head(student.decoder.norm(x))[1:]

    pixel_losses, restored, divergences = [], [], []
    for clip in range(2):
        now, later = (views[group]["pixels"][clip] for group in ("now", "later"))
        first, second = (backbone.forward_features(x)[0] for x in (now, later + 0.5 * noise[clip]))
        posterior = student.posterior(torch.cat([first[0], second[0]])).view(6, 5)
        prior = student.prior(first[0]).view(6, 5)
        q, p = torch.distributions.Categorical(logits=posterior), torch.distributions.Categorical(logits=prior)
        divergences.append(torch.distributions.kl_divergence(q, p).sum())
        drawn = torch.zeros(6, 5, **DRAW)
        for variable in range(6):
            total, number = 0.0, 0
            while (total := total + q.probs[variable, number].item()) <= chances[clip, variable].item():
                number += 1
            drawn[variable, number] = 1
        target = torch.stack(
            [later[0, :, 16 * r : 16 * r + 16, 16 * c : 16 * c + 16].reshape(-1) for r in range(4) for c in range(4)]
        )
        target = (target - target.mean(1, keepdim=True)) / (target.var(1, keepdim=True) + 1e-6).sqrt()
        memory = student.from_frame(first)
        memory = torch.cat([memory[:1], memory[1:] + places])
        predicted = decode(torch.cat([student.from_latent(drawn.flatten())[None], memory]))
        pixel_losses.append(((predicted - target) ** 2).mean())
        shown = views["later"]["shown"][clip, 0].tolist()
        tokens = backbone._pos_embed(backbone.patch_embed(later))[:, [0, *(1 + n for n in shown)]]
        tokens = student.from_shown(backbone.norm(backbone.blocks(tokens)))[0]
        whole = [tokens[0]]
        for n in range(16):
            whole.append((tokens[1 + shown.index(n)] if n in shown else student.decoder.mask_token) + places[n])
        hidden = [n for n in range(16) if n not in shown]
        restored.append(((decode(torch.stack(whole)) - target)[hidden] ** 2).mean())
    means = {"pixel_loss": pixel_losses, "mae_loss": restored, "kl": divergences}
    means = {name: torch.stack(values).mean() for name, values in means.items()}
    assert means["kl"] > objective.free_nats
    total = means["pixel_loss"] + 0.01 * means["kl"] + means["mae_loss"]
    assert (got.total.item() == pytest.approx(total.item(), rel=1e-9)) is kept
    if kept:
        for name, value in means.items():
            assert got.metrics[name].item() == pytest.approx(value.item(), rel=1e-9), name


def test_the_prior_draws_without_the_later_frame_and_all_parts_learn():
    method, views = build(), batch()
    got = method(views, At(0.0, key=3))
    got.total.backward()
    assert all(parameter.grad is not None for parameter in method.student.parameters() if parameter.requires_grad)
    assert method.student.prior[0].weight.grad.abs().max() > 0
    frozen = {name for name, parameter in method.student.named_parameters() if not parameter.requires_grad}
    assert frozen == {"backbone.pos_embed"}
    other = copy.deepcopy(views)
    other["later"]["pixels"].normal_()
    rows = torch.arange(2)
    seen = []
    for found in (views, other):
        tokens = method.encode(found["now"]["pixels"][:, 0], found["later"]["pixels"][:, 0], rows, At(0.0, 3))
        latent = method.infer(tokens[:, :, 0])
        seen.append((latent, method.guess(tokens[:, 0], latent.prior, rows, At(0.0, 3))))
    assert torch.allclose(seen[0][1], seen[1][1], atol=1e-6)
    assert not torch.allclose(seen[0][0].posterior, seen[1][0].posterior, atol=1e-3)
    # the gap of one clip, of an earlier key, is that of its two predictions
    at = At(0.0, key=3)
    tokens = method.encode(views["now"]["pixels"][:, 0], views["later"]["pixels"][:, 0], rows, at)[:1, 0]
    latent = Latent(*(logits[:1] for logits in seen[0][0]))
    target = patchify(views["later"]["pixels"][:1, 0], 16, True)
    draw = straight_through(torch.softmax(latent.posterior, -1), keyed.uniform(keyed.key_of(3, 2), rows[:1], 6))
    gap = F.mse_loss(seen[0][1][:1], target) - F.mse_loss(method.predict(tokens, draw), target)
    assert got.metrics["prior_gap"].item() == pytest.approx(gap.item(), abs=1e-5)


def test_the_latent_comes_to_tell_what_the_earlier_frame_leaves_open(one_thread):
    """One blank frame is followed by one of four pictures: without the latent their mean is the best there is."""
    settings = ["--objective.mae_weight=0", "--objective.decoder.depth=1", "--objective.prior_share=1.0"]
    recipe = read_recipe(
        ["smoke", "rsp-cpu"], [*SMALL[:2], *settings, "--views.global_size=32", "--views.local_size=32"]
    )
    torch.manual_seed(0)
    method, generator = build_method(recipe).train(), torch.Generator().manual_seed(1)
    pictures = F.interpolate(torch.randn(4, 3, 8, 8, generator=generator), 32)
    target = patchify(pictures, 16, norm=True)
    without = F.mse_loss(target.mean(0).expand_as(target), target).item()
    optimizer = torch.optim.AdamW([p for p in method.trained.parameters() if p.requires_grad], lr=3e-3)
    for step in range(180):
        later = pictures[torch.randint(4, (16,), generator=generator)][:, None]
        shown = torch.zeros(16, 1, 1, dtype=torch.long)
        views = {"now": {"pixels": torch.zeros(16, 1, 3, 32, 32)}, "later": {"pixels": later, "shown": shown}}
        optimizer.zero_grad()
        losses = method(views, At(0.0, key=step))
        losses.total.backward()
        optimizer.step()
    assert losses.metrics["pixel_loss"] < 0.6 * without
    assert losses.metrics["prior_gap"] > 0.3 * without
    assert losses.metrics["kl"] > math.log(4)


def test_rows_of_a_batch_are_drawn_apart_whoever_computes_them():
    method, views = build(), batch(4)
    whole = method(views, At(0.0, key=9)).metrics
    halves = []
    for n in (0, 2):
        part = {group: {name: tensor[n : n + 2] for name, tensor in found.items()} for group, found in views.items()}
        halves.append(method(part, At(0.0, key=9, first_row=n)).metrics)
    for name in ("pixel_loss", "mae_loss", "kl"):
        assert sum(half[name] for half in halves).item() / 2 == pytest.approx(whole[name].item(), rel=1e-5), name
    again = method(views, At(0.0, key=9)).metrics
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_positions_are_sines_and_cosines_of_the_place():
    positions = rsp.sincos_positions((14, 14), 384)
    for place, (row, column) in {0: (0, 0), 17: (1, 3), 195: (13, 13)}.items():
        for quarter, (angle_of, at) in enumerate(
            [(math.sin, column), (math.cos, column), (math.sin, row), (math.cos, row)]
        ):
            for n in (0, 5, 95):
                expected = angle_of(at / 10_000 ** (n / 96))
                assert positions[place, 96 * quarter + n].item() == pytest.approx(expected, abs=1e-6)
    method = build()
    embedded = method.student.backbone.pos_embed
    assert torch.equal(embedded[0, 0], torch.zeros(64))
    assert torch.equal(embedded[0, 1:], rsp.sincos_positions((14, 14), 64))
    half = rsp.sincos_positions((7, 7), 384, of=(14, 14))
    middle = rsp.sincos_positions((1, 1), 384, of=(14, 14))
    assert half[0, 96 * 3].item() == pytest.approx(math.cos(0.5), abs=1e-6)
    assert middle[0, 0].item() == pytest.approx(math.sin(6.5), abs=1e-6)
    assert build("--objective.positions=learnt").student.backbone.pos_embed.requires_grad


@pytest.mark.parametrize("architecture", ["vit_small_patch16_dinov3", "vit_small_patch14_reg4_dinov2"])
def test_of_all_patches_shown_nothing_is_left_out(architecture):
    arguments = {"depth": 2, "embed_dim": 64, "num_heads": 2}
    side = 56 if "patch14" in architecture else 64
    settings = [f"--backbone.architecture={architecture}", f"--backbone.model_args={arguments}"]
    method = build(*settings, f"--views.global_size={side}", f"--views.local_size={side}").double()
    backbone, pixels = method.student.backbone, torch.randn(3, 3, side, side, **DRAW)
    tokens = backbone.forward_features(pixels)
    order = torch.stack([torch.randperm(16) for _ in range(3)])
    found, prefix = encode_some(backbone, pixels, order), backbone.num_prefix_tokens
    assert torch.allclose(found[:, :prefix], tokens[:, :prefix], atol=1e-9)
    expected = torch.take_along_dim(tokens[:, prefix:], order[..., None], dim=1)
    assert torch.allclose(found[:, prefix:], expected, atol=1e-9)


def test_views_are_one_region_of_two_frames_a_random_time_apart():
    recipe = read_recipe("rsp")
    spec = rsp.clip_spec(recipe.spec)
    assert (spec.offsets, spec.gap, spec.draws) == ((0.0,), (0.13, 1.6), 2)
    now, later = rsp.plan_views(np.random.default_rng(0), (640, 360), recipe.spec)
    assert (now.frame, later.frame) == (0, 1)
    assert (now.box, now.flip, now.style, now.size) == (later.box, later.flip, None, (224, 224))
    assert later.arrays["shown"].shape == (49,)
    assert len(set(later.arrays["shown"].tolist())) == 49
    assert recipe.optimizer.peak(recipe.run.batch_size, 2) == pytest.approx(1.5e-4 * 1536 / 256)


def test_a_latent_that_tells_nothing_stops_the_run_and_so_do_features_all_alike():
    method = build("--objective.patience=7")
    row = {"kl": 0.1, "patch_feature_std": 1.0}
    assert all(method.watch(row) is None for _ in range(6))
    assert "for 7 steps the latent has told no more than 0.1 nats" in method.watch(row)
    assert method.watch({**row, "kl": 0.2}) is None
    endless = build("--objective.patience=null")
    assert all(endless.watch(row) is None for _ in range(2000))
    collapsed = {"kl": 1.0, "patch_feature_std": 0.0}
    assert "collapsed" in [method.watch(collapsed) for _ in range(LONG)][-1]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--clips.frames=3", "must be 2, got 3"),
        ("--objective.gap=[0.5,0.2]", "0 < low <= high"),
        ("--objective.classes=1", "at least 2"),
        ("--objective.mask_share=1.0", "between 0 and 1"),
        ("--objective.patience=0", "a number of steps"),
        ("--objective.decoder.heads=5", "multiple of 4, and of decoder.heads 5"),
    ],
)
def test_what_cannot_be_is_refused(setting, message):
    with pytest.raises(InputError, match=message):
        build(setting)


def test_a_run_learns_resumes_to_the_bit_and_tells_of_itself(clip, tmp_path):
    settings = ["--run.steps=30", "--run.batch_size=8", "--run.checkpoint_every=15", "--optimizer.learning_rate=3e-3"]
    recipe = read_recipe(["smoke", "rsp-cpu"], [*settings, "--backbone.drop_path=0.1"])
    whole, again, frames = (tmp_path / name for name in ("whole", "again", "frames"))
    assert "GFLOP a clip" in dry_run([clip], whole, recipe, frames, False)
    pretrain([clip], whole, recipe, frames=frames)
    rows = read_log(whole / "log.jsonl")
    assert rows[-1]["pixel_loss"] < 0.95 * rows[0]["pixel_loss"]
    assert rows[-1]["mae_loss"] < 0.95 * rows[0]["mae_loss"]
    assert {"kl", "prior_gap", "prior_entropy", "posterior_entropy", "posterior_batch_entropy"} <= rows[-1].keys()
    shutil.copytree(whole, again)
    for name in ("checkpoints/step-00000030", "encoder"):
        shutil.rmtree(again / name)
    pretrain([clip], again, recipe, frames=frames, resume=True)
    states = [checkpoint.load_newest(run / "checkpoints") for run in (whole, again)]
    for kind in ("model", "optimizer"):
        one, other = (getattr(state, kind) for state in states)
        assert all(torch.equal(one[name], other[name]) for name in one)
    saved = Encoder.from_pretrained(again / "encoder").backbone.state_dict()
    assert all(torch.equal(states[0].model[f"student.backbone.{name}"], tensor) for name, tensor in saved.items())


def test_it_begins_at_a_release_and_is_gone_on_from(clip, tmp_path, tiny_directory, from_tiny):
    settings = ["--run.workers=0", "--run.steps=2", "--run.batch_size=2", "--run.log_every=1", "--extract.fps=10"]
    settings += ["--views.global_size=64", "--extract.short_side=128"]
    run, frames = tmp_path / "run", tmp_path / "frames"
    read = lambda *more: read_recipe(["rsp-cpu"], [*settings, *more])  # noqa: E731
    pretrain([clip], run, read(*from_tiny), frames=frames)
    begin, end = (Encoder.from_pretrained(name).backbone.state_dict() for name in (tiny_directory, run / "encoder"))
    assert all(torch.allclose(begin[name], end[name], atol=0.05) for name in begin)
    assert torch.equal(begin["pos_embed"], end["pos_embed"])
    assert not torch.equal(begin["blocks.3.attn.qkv.weight"], end["blocks.3.attn.qkv.weight"])
    pretrain([clip], tmp_path / "next", read(*from_tiny, f"--run.init_from={run / 'handover'}"), frames=frames)
    state = checkpoint.load_newest(tmp_path / "next" / "checkpoints").model
    first = checkpoint.load_newest(run / "checkpoints").model
    assert torch.allclose(state["student.decoder.mask_token"], first["student.decoder.mask_token"], atol=0.02)
