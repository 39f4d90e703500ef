import math

import numpy as np
import pytest
import torch

from training.schedules import cosine, linear_warmup, warmup_cosine
from training.trainer import clip_each


def test_cosine_follows_dinos_scheduler():
    steps = np.arange(100)
    dino = 0.4 + 0.5 * (0.04 - 0.4) * (1 + np.cos(np.pi * steps / 100))
    assert np.allclose([cosine(0.04, 0.4, s / 100) for s in steps], dino)


def test_warmup_cosine_rises_to_its_peak_and_falls_to_its_end():
    values = [warmup_cosine(5e-4, 1e-6, 0.1, s / 1000) for s in range(1000)]
    assert values[0] == 0
    assert values[50] == pytest.approx(2.5e-4)
    assert values[100] == max(values) == pytest.approx(5e-4)
    assert values[550] == pytest.approx((5e-4 + 1e-6) / 2)
    assert values[999] == pytest.approx(1e-6, rel=0.01)


def test_linear_warmup():
    assert linear_warmup(0.04, 0.07, 0.3, 0.15) == pytest.approx(0.055)
    assert linear_warmup(0.04, 0.07, 0.3, 0.8) == 0.07
    assert linear_warmup(0.04, 0.07, 0.0, 0.0) == 0.07


def test_each_tensor_is_clipped_by_its_own_norm():
    parameters = [torch.nn.Parameter(torch.zeros(4)) for _ in range(3)]
    for parameter, scale in zip(parameters[:2], (10.0, 0.5), strict=True):
        parameter.grad = torch.full((4,), scale)
    largest = clip_each(parameters, 3.0)
    assert largest.item() == pytest.approx(20.0)
    assert parameters[0].grad.norm().item() == pytest.approx(3.0, rel=1e-5)
    assert math.isclose(parameters[1].grad.norm().item(), 1.0)
    assert parameters[2].grad is None
