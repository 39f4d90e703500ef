import pytest

from training.engine.log import read_log


@pytest.fixture(scope="session")
def losses():
    """Return the loss of each step of a run."""
    return lambda run: [row["loss"] for row in read_log(run / "log.jsonl")]
