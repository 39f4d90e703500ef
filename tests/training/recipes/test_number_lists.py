import pytest

from training.recipes.recipe import read_recipe
from video_distilled_encoder import InputError


@pytest.mark.parametrize(
    "words",
    [["0.99", "0.998"], ["0.99,0.998"], ["0.99, 0.998"], ["[0.99,0.998]"], ["[0.99, 0.998]"], ["(0.99", "0.998)"]],
    ids=" ".join,
)
def test_two_numbers_are_taken_in_every_form(words):
    options = ["--run.steps=3", "--objective.teacher_momentum", *words, "--optimizer.betas=0.8,0.9", "--run.seed", "7"]
    recipe = read_recipe("vfd-vits16", options)
    assert recipe.objective.teacher_momentum == (0.99, 0.998)
    assert recipe.optimizer.betas == (0.8, 0.9)
    assert (recipe.run.steps, recipe.run.seed) == (3, 7)


def test_any_number_of_numbers_and_none():
    recipe = read_recipe("vfd-vits16", ["--views.end_sizes", "64", "96", "128", "--views.pre_crop_area", "null"])
    assert (recipe.views.end_sizes, recipe.views.pre_crop_area) == ((64, 96, 128), None)
    assert read_recipe("vfd-vits16", ["--views.end_sizes=[]"]).views.end_sizes == ()


@pytest.mark.parametrize("words", [["0.99"], ["0.9", "0.99", "0.999"], ["a,b"], ["{}"], ["0.9;0.99"], []], ids=" ".join)
def test_something_else_is_answered_with_an_example(words):
    with pytest.raises(InputError, match=r"betas takes two numbers, such as --optimizer.betas 0.9 0.999; got"):
        read_recipe("vfd-vits16", ["--optimizer.betas", *words, "--run.seed", "7"])


@pytest.mark.parametrize("value", ["0.9", "0.9 0.99", "[0.9]", "[a, b]", "{}"])
def test_so_it_is_in_a_recipe(tmp_path, value):
    path = tmp_path / "mine.yaml"
    path.write_text(f"method: vfd\noptimizer:\n  betas: {value}\n")
    with pytest.raises(InputError, match=r"optimizer.betas .*0.9,? 0.999"):
        read_recipe(str(path))
