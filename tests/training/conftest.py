import pytest
import torch

from training.engine.log import read_log
from video_distilled_encoder import Encoder


@pytest.fixture(scope="session")
def losses():
    """Return the loss of each step of a run."""
    return lambda run: [row["loss"] for row in read_log(run / "log.jsonl")]


@pytest.fixture
def learnt_a_little():
    """Check that the encoder of a short run is near the bundled release, and is not that release."""

    def check(run):
        begin, end = (
            Encoder.from_pretrained(name).backbone.state_dict() for name in ("nota/vfd-vits16", run / "encoder")
        )
        assert all(torch.allclose(begin[name], end[name], atol=0.01) for name in begin)
        assert any(not torch.equal(begin[name], end[name]) for name in begin)

    return check
