import copy

import pytest
import torch
from torch.nn.utils.parametrizations import weight_norm

from training.nn.heads import HeadConfig, Predictor, PredictorConfig, ProjectionHead


@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_projection_head_equals_torchs_weight_norm(norm_last_layer):
    torch.manual_seed(0)
    head = ProjectionHead(12, HeadConfig(20, 16, 8, norm_last_layer)).double()
    with torch.no_grad():
        head.gain.mul_(torch.rand_like(head.gain) + 0.5)
    last = weight_norm(torch.nn.Linear(8, 20, bias=False).double(), dim=0)
    with torch.no_grad():
        last.parametrizations.weight.original0.copy_(head.gain)
        last.parametrizations.weight.original1.copy_(head.prototypes)
    reference = torch.nn.Sequential(copy.deepcopy(head.mlp))
    tokens = torch.randn(3, 5, 12, dtype=torch.double)
    expected = last(torch.nn.functional.normalize(reference(tokens), dim=-1))
    logits = head(tokens)
    assert torch.allclose(logits, expected, atol=1e-12)
    weights = torch.randn_like(logits)
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.allclose(head.prototypes.grad, last.parametrizations.weight.original1.grad, atol=1e-12)
    if norm_last_layer:
        assert head.gain.grad is None
    else:
        assert torch.allclose(head.gain.grad, last.parametrizations.weight.original0.grad, atol=1e-12)


def test_predictor_lets_every_token_see_every_other():
    torch.manual_seed(0)
    predictor = Predictor(12, PredictorConfig(hidden=24, heads=3)).double()
    tokens = torch.randn(1, 6, 12, dtype=torch.double, requires_grad=True)
    predictor(tokens)[0, 0].sum().backward()
    assert (tokens.grad[0].abs().sum(-1) > 0).all()
    assert sum(p.numel() for p in Predictor(384, PredictorConfig()).parameters()) == pytest.approx(4.7e6, rel=0.02)
