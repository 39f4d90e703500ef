from training.engine.throughput import measure
from training.recipes.recipe import read_recipe


def test_figures_are_measured(clip):
    figures = measure([clip], read_recipe("smoke"), steps=2)
    for name in (
        "frames_extracted_per_second",
        "clips_loaded_per_second",
        "steps_per_second",
        "clips_per_second",
        "peak_memory_gib",
    ):
        assert figures[name] > 0, name
    assert 0 <= figures["data_wait_share"] < 1
