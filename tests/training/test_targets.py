import numpy as np
import pytest
import torch

from training.loss import cross_entropy
from training.targets import Targets, sinkhorn_knopp
from video_distilled_encoder.errors import InputError


def test_cross_entropy_equals_the_formula_in_float64_with_gradients():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(3, 4, 11)), rng.dirichlet(np.ones(11), size=(3, 4))
    student = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
    teacher = torch.tensor(targets, dtype=torch.float32, requires_grad=True)
    loss = cross_entropy(student, teacher, 0.1)
    loss.backward()
    logits, targets = student.detach().double().numpy() / 0.1, teacher.detach().double().numpy()
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert loss.item() == pytest.approx(-(targets * np.log(softmax)).sum(-1).mean(), rel=1e-6)
    gradient = (softmax * targets.sum(-1, keepdims=True) - targets) / 0.1 / 12
    error = np.linalg.norm(student.grad.numpy() - gradient) / np.linalg.norm(gradient)
    assert error < 1e-6
    assert teacher.grad is None


def test_centering_follows_dino():
    rng = np.random.default_rng(0)
    targets = Targets(7, "centering", momentum=0.9).double()
    center = np.zeros(7)
    for _ in range(3):
        logits = rng.normal(size=(5, 2, 7))
        got = targets(torch.tensor(logits), 0.05).numpy()
        exponents = np.exp((logits - center) / 0.05)
        assert np.allclose(got, exponents / exponents.sum(-1, keepdims=True), atol=1e-5)
        center = 0.9 * center + 0.1 * logits.reshape(-1, 7).mean(0)
    assert np.allclose(targets.center.numpy(), center, atol=1e-6)


def test_sinkhorn_knopp_follows_the_plain_iteration():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(40, 6)) * 3
    q = np.exp(scores)
    for _ in range(3):
        q = q / q.sum(0, keepdims=True)
        q = q / q.sum(1, keepdims=True)
    got = sinkhorn_knopp(torch.tensor(scores)).numpy()
    assert np.allclose(got, q, atol=1e-12)
    balanced = sinkhorn_knopp(torch.tensor(scores), iterations=200).sum(0).numpy()
    assert np.allclose(balanced, 40 / 6, atol=1e-6)


def test_sinkhorn_survives_sharp_logits():
    assert sinkhorn_knopp(torch.randn(30, 5) * 1e4).isfinite().all()


def test_unknown_kind_is_refused():
    with pytest.raises(InputError, match="centering, sinkhorn_knopp"):
        Targets(3, "whitening")  # type: ignore[arg-type]
