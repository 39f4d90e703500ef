import torch
from timm.layers import DropPath
from torch import nn

from training.common import keyed
from training.nn.drop_path import DropPaths
from training.nn.heads import Predictor, PredictorConfig
from video_distilled_encoder import ModelConfig


class Branch(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.drop_path = DropPath(rate)

    def forward(self, x):
        # each layer has a channel of its own
        return torch.cat([x[..., 1:], self.drop_path(x[..., :1])], dim=-1)


def scales(rows=4000, rates=(0.5, 0.5), rank=0, seed=0, step=0, passes=1, tokens=2):
    """Return (layers, rows) what each layer multiplied its rows by, in the last of so many passes."""
    stack = nn.Sequential(*[Branch(rate) for rate in rates]).train()
    paths = DropPaths(stack, rank)
    paths.begin(keyed.key_of(seed, step))
    for _ in range(passes):
        out = stack(torch.ones(rows, tokens, len(rates)))
    assert torch.equal(out, out[:, :1].expand_as(out))
    return out[:, 0].T


def test_rows_are_dropped_at_the_rate_and_the_rest_scaled_as_timm_does():
    (out,) = scales(40_000, rates=[0.3])
    assert abs((out != 0).float().mean() - 0.7) < 0.01
    theirs = DropPath(0.3).train()(torch.ones(1000, 2, 3))
    assert torch.allclose(theirs.unique(), out.unique())


def test_choices_differ_between_layers_steps_seeds_and_passes_and_are_independent():
    first, second = scales() != 0
    others = [scales(**change)[0] != 0 for change in ({"step": 1}, {"seed": 1}, {"passes": 2}, {"passes": 3})]
    for other in (second, *others):
        assert abs((first == other).float().mean() - 0.5) < 0.04
    assert torch.equal(first, scales()[0] != 0)
    assert torch.equal(first, scales(tokens=5)[0] != 0)
    neighbours = (first[1:] == first[:-1]).float().mean()
    assert abs(neighbours - 0.5) < 0.04


def test_two_processes_choose_like_one():
    assert torch.equal(scales(), torch.cat([scales(2000, rank=0), scales(2000, rank=1)], dim=1))


def test_every_drop_path_of_backbone_and_predictor_is_replaced():
    backbone = ModelConfig("vit_tiny_patch16_224").build_backbone(drop_path_rate=0.1)
    model = nn.ModuleDict({"backbone": backbone, "predictor": Predictor(192, PredictorConfig(heads=3, drop_path=0.2))})
    assert sum(isinstance(module, DropPath) for module in model.modules()) == 26
    paths = DropPaths(model, rank=0)
    assert paths.layers == 28  # with the two of the first block, of rate 0
    assert not any(isinstance(module, DropPath) for module in model.modules())


def test_a_backbone_is_timm_s_in_eval_mode_and_a_function_of_the_step_in_training():
    torch.manual_seed(0)
    backbone = ModelConfig("vit_tiny_patch16_224").build_backbone(drop_path_rate=0.5)
    pixels = torch.randn(4, 3, 32, 32)
    before = backbone.eval()(pixels)
    paths = DropPaths(backbone, rank=0)
    assert torch.equal(backbone(pixels), before)
    backbone.train()

    def step(number):
        paths.begin(number)
        return backbone(pixels)

    first = step(0)
    assert not torch.equal(first, step(1))
    assert torch.equal(first, step(0))
