import torch
from timm.layers import DropPath

from training import drop_path
from training.drop_path import PureDropPath
from video_distilled_encoder import ModelConfig


def layer(rate=0.3, number=0, rank=0, seed=0, step=0):
    made = PureDropPath(rate, number, rank).train()
    drop_path.set_key([made], seed, step)
    return made


def test_rows_are_dropped_at_the_rate_and_the_rest_scaled_as_timm_does():
    x = torch.ones(40_000, 2, 3)
    out = layer(0.3)(x)
    kept = out[:, 0, 0] != 0
    assert abs(kept.float().mean() - 0.7) < 0.01
    assert torch.equal(out, torch.where(kept, 1 / 0.7, 0.0)[:, None, None].expand_as(x))
    theirs = DropPath(0.3).train()(x)
    assert torch.allclose(theirs[theirs != 0].unique(), out[out != 0].unique())
    assert torch.equal(layer(0.3).eval()(x), x)


def kept(x_rows=4000, tokens=2, **which):
    return layer(0.5, **which)(torch.ones(x_rows, tokens, 1))[:, 0, 0] != 0


def test_choices_differ_between_layers_steps_seeds_and_views_and_are_independent():
    first = kept()
    for other in (kept(number=1), kept(step=1), kept(seed=1), kept(tokens=5)):
        agreement = (first == other).float().mean()
        assert abs(agreement - 0.5) < 0.04
    assert torch.equal(first, kept())
    neighbours = (first[1:] == first[:-1]).float().mean()
    assert abs(neighbours - 0.5) < 0.04


def test_two_processes_choose_like_one():
    assert torch.equal(kept(), torch.cat([kept(2000, rank=0), kept(2000, rank=1)]))


def test_install_replaces_every_drop_path():
    backbone = ModelConfig("vit_tiny_patch16_224").build_backbone(drop_path_rate=0.1)
    rates = [module.drop_prob for module in backbone.modules() if isinstance(module, DropPath)]
    installed = drop_path.install(backbone, rank=0)
    assert [made.rate for made in installed] == rates
    assert len(rates) == 22
    assert not any(isinstance(module, DropPath) for module in backbone.modules())
    assert len({made.layer for made in installed}) == 22
