import numpy as np
import pytest
import torch

from training.nn.balance import Balance, sinkhorn_bias
from video_distilled_encoder.errors import InputError


def test_centering_follows_dino():
    rng = np.random.default_rng(0)
    prototypes = rng.normal(size=(7, 4))
    balance = Balance(7, "centering", momentum=0.9).double()
    center = np.zeros(7)
    for _ in range(3):
        teacher = rng.normal(size=(10, 4))
        bias = balance(torch.tensor(teacher), torch.tensor(prototypes), 0.05).numpy()
        assert np.allclose(bias, center / 0.05)
        center = 0.9 * center + 0.1 * (teacher @ prototypes.T).mean(0)
    assert np.allclose(balance.center.numpy(), center)


@pytest.mark.parametrize("chunk", [7, 1000])
def test_sinkhorn_knopp_follows_the_plain_iteration(chunk):
    rng = np.random.default_rng(0)
    teacher, prototypes = rng.normal(size=(40, 4)), rng.normal(size=(6, 4))
    scores = teacher @ prototypes.T / 0.5
    q = np.exp(scores)
    for _ in range(3):
        q = q / q.sum(0, keepdims=True)
        q = q / q.sum(1, keepdims=True)
    bias = sinkhorn_bias(torch.tensor(teacher), torch.tensor(prototypes), 0.5, chunk=chunk)
    got = torch.softmax(torch.tensor(scores) - bias, -1).numpy()
    assert np.allclose(got, q, atol=1e-12)


def test_sinkhorn_knopp_balances_the_prototypes():
    generator = torch.Generator().manual_seed(0)
    teacher, prototypes = torch.randn(40, 4, generator=generator), torch.randn(6, 4, generator=generator)
    bias = sinkhorn_bias(teacher, prototypes, 0.5, iterations=200)
    used = torch.softmax(teacher @ prototypes.T / 0.5 - bias, -1).sum(0)
    assert torch.allclose(used, torch.full((6,), 40 / 6), atol=1e-3)


def test_sinkhorn_survives_sharp_logits():
    assert sinkhorn_bias(torch.randn(30, 4) * 100, torch.randn(5, 4), 0.01).isfinite().all()


def test_unknown_kind_is_refused():
    with pytest.raises(InputError, match="centering, sinkhorn_knopp"):
        Balance(3, "whitening")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["centering", "sinkhorn_knopp"])
def test_bf16_gives_nearly_the_same_balance(kind):
    generator = torch.Generator().manual_seed(0)
    teacher = torch.nn.functional.normalize(torch.randn(200, 16, generator=generator), dim=-1)
    prototypes = torch.nn.functional.normalize(torch.randn(30, 16, generator=generator), dim=-1)
    exact, rough = Balance(30, kind), Balance(30, kind)
    for _ in range(2):
        expected = exact(teacher, prototypes, 0.1)
        with torch.autocast("cpu", torch.bfloat16):
            got = rough(teacher.bfloat16(), prototypes, 0.1)
    assert got.dtype == torch.float32
    assert (got - expected).abs().max() < 0.05
