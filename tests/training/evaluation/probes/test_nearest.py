import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from training.evaluation.probes import nearest as probe

CLASSES = 6


@pytest.mark.parametrize("k", [1, 7, 20])
def test_votes_equal_scikit_learns(k, monkeypatch):
    monkeypatch.setattr(probe, "SIMILARITIES", 1000)  # several parts
    rng = np.random.default_rng(k)
    centres = rng.normal(size=(CLASSES, 16))
    labels, wanted = rng.integers(0, CLASSES, 80), rng.integers(0, CLASSES, 50)
    bank, queries = (2 * centres[which] + 3 * rng.normal(size=(len(which), 16)) for which in (labels, wanted))
    theirs = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distances: np.exp((1 - distances) / 0.07)
    )
    expected = theirs.fit(bank, labels).predict_proba(queries)
    similarities, neighbours = probe.nearest(torch.tensor(queries), torch.tensor(bank), k)
    votes = probe.vote(similarities, torch.tensor(labels)[neighbours], CLASSES)
    assert np.allclose(votes, expected, atol=1e-4)
    assert 0.2 < (votes.argmax(1).numpy() == wanted).mean() < 1
