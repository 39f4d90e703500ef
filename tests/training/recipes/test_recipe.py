import pytest

from training.recipes.recipe import parse_settings, read_recipe
from video_distilled_encoder import InputError


def test_what_is_read_in_code_is_what_a_command_line_says():
    """Code has one parser a method, which keeps nothing of what was read before."""
    settings = ["--run.steps=7", "--backbone.model_args.depth=3"]
    assert read_recipe("smoke", settings).backbone.model_args["depth"] == 3
    with pytest.raises((InputError, SystemExit)):
        read_recipe("smoke", ["--run.steps=many"])
    for name in ("smoke", "vfd-vits16", "smoke"):
        assert read_recipe(name) == parse_settings(["--recipe", name])[1]
    layers = ["smoke", "ibot"]
    assert read_recipe(layers, settings) == parse_settings(["--recipe", *layers, *settings])[1]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("run.seed=-1", "run.seed must be at least 0, got -1"),
        ("run.workers=-1", "run.workers must be at least 0, got -1"),
        ("optimizer.betas=[0.9,1.0]", r"optimizer.betas lie in \[0, 1\), got \(0.9, 1.0\)"),
        ("backbone.drop_path=1.5", r"backbone.drop_path is a probability in \[0, 1\), got 1.5"),
    ],
)
def test_what_cannot_be_is_refused(setting, message):
    with pytest.raises(InputError, match=message):
        read_recipe("smoke", [f"--{setting}"])
