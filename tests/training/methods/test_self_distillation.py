import pytest
import torch

from training.methods.self_distillation import feature_spread


def test_spread_and_rank_are_those_of_the_covariances_eigenvalues():
    torch.manual_seed(0)
    tokens = torch.randn(3, 40, 16) * torch.linspace(0.1, 2, 16) + 1
    std, rank = feature_spread(tokens)
    unit = tokens.double().flatten(0, 1)
    unit = unit / unit.norm(dim=1, keepdim=True)
    values = torch.linalg.eigvalsh(torch.cov(unit.T))
    assert rank.item() == pytest.approx((values.sum() ** 2 / values.square().sum()).item(), rel=1e-4)
    assert std.item() == pytest.approx((unit.std(0).mean() * 4).item(), rel=1e-5)


def test_extremes():
    torch.manual_seed(0)
    assert feature_spread(torch.randn(20_000, 8))[1] > 7.9
    line = torch.randn(500, 1) * torch.tensor([[1.0, 2.0, 3.0]]) + torch.tensor([[0.0, 0.0, 20.0]])
    assert feature_spread(line)[1] == pytest.approx(1, abs=0.02)
    std, rank = feature_spread(torch.ones(50, 8))
    assert std < 1e-5
    assert torch.isfinite(rank)
