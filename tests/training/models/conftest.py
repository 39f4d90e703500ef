import pytest
import torch


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    """What models give is compared with what is computed on the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
