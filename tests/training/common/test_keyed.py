import pytest
import torch

from training.common import keyed


def test_numbers_are_uniform_independent_and_a_function_of_their_place():
    rows = torch.arange(4000)
    drawn = keyed.uniform(7, rows, 6)
    assert drawn.shape == (4000, 6)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = torch.histc(drawn, bins=20, min=0, max=1)
    assert ((counts - 1200) ** 2 / 1200).sum() < 44  # chi squared of 19 degrees of freedom, 1 in 1000
    assert torch.corrcoef(drawn.T).fill_diagonal_(0).abs().max() < 0.06
    assert torch.corrcoef(torch.stack([drawn[:-1, 0], drawn[1:, 0]]))[0, 1].abs() < 0.06
    assert torch.equal(keyed.uniform(7, rows[1000:1010], 6), drawn[1000:1010])
    assert torch.equal(keyed.uniform(7, rows, 3), drawn[:, :3])
    other = keyed.uniform(8, rows, 6)
    assert torch.corrcoef(torch.stack([drawn.flatten(), other.flatten()]))[0, 1].abs() < 0.03


def test_normal_numbers_are_normal_and_a_function_of_their_place():
    scipy = pytest.importorskip("scipy.stats")
    rows = torch.arange(4000)
    drawn = keyed.normal(7, rows, 5)
    assert drawn.shape == (4000, 5)
    assert scipy.kstest(drawn.flatten().numpy(), "norm").pvalue > 1e-3
    assert torch.corrcoef(drawn.T).fill_diagonal_(0).abs().max() < 0.06
    assert drawn.isfinite().all()
    assert torch.equal(keyed.normal(7, rows[100:110], 5), drawn[100:110])
