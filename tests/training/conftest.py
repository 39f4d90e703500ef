import pytest
import torch

from training.engine import checkpoint
from training.engine.log import read_log
from training.recipes.recipe import read_recipe
from video_distilled_encoder import Encoder


@pytest.fixture(scope="session", autouse=True)
def _no_curves():
    """Runs in this process draw none, which takes them longer than to learn; `test_pretrain.run` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.engine.run.plot_curves", lambda *of: None)
        yield


@pytest.fixture(scope="session")
def losses():
    """Return the loss of each step of a run."""
    return lambda run: [row["loss"] for row in read_log(run / "log.jsonl")]


@pytest.fixture(scope="session")
def rate_of_the_last_step():
    """Return the learning rate that a run's recipe and plan have for its last step."""

    def rate(run):
        recipe, plan = read_recipe(str(run / "recipe.yaml")), checkpoint.load_newest(run / "checkpoints").plan
        peak = recipe.optimizer.peak(recipe.run.batch_size, recipe.clips.frames)
        return recipe.optimizer.at(plan.progress(plan.steps - 1), peak)["learning_rate"]

    return rate


@pytest.fixture(scope="session")
def from_tiny(tiny_directory):
    """Settings of a run that begins at the tiny encoder, which is written twenty times as fast as a release."""
    arguments = '{"embed_dim":64,"depth":6,"num_heads":2}'
    architecture = ["--backbone.architecture=vit_tiny_patch16_224", f"--backbone.model_args={arguments}"]
    return [f"--run.init_from={tiny_directory}", *architecture]


@pytest.fixture
def learnt_a_little():
    """Check that the encoder of a short run is near the one that it began at, and is not that one."""

    def check(run, release):
        begin, end = (Encoder.from_pretrained(name).backbone.state_dict() for name in (release, run / "encoder"))
        assert all(torch.allclose(begin[name], end[name], atol=0.01) for name in begin)
        assert any(not torch.equal(begin[name], end[name]) for name in begin)

    return check
