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
