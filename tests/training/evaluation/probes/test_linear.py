import torch

from training.evaluation.probes.linear import StandardizedLinear


def test_the_standardisation_is_folded_in_rightly():
    torch.manual_seed(0)
    tokens = (torch.randn(4, 3, 5, 7) * torch.arange(1, 8) + 3).half()
    layer = StandardizedLinear(tokens, 2)
    flat = tokens.double().flatten(0, 2)
    standard = (tokens.double() - flat.mean(0)) / flat.std(0, correction=0)
    expected = standard @ layer.linear.weight.double().T + layer.linear.bias.double()
    assert torch.allclose(layer(tokens).double(), expected, atol=1e-3)
