import numpy as np
import pytest
import torch
from PIL import Image
from timm.models.vision_transformer import Attention

from training.data.clips import ClipIndex
from training.data.frame_store import ExtractConfig, FrameStore, extract_source
from training.engine.assembly import build_method, clip_views
from training.engine.estimate import expected_memory, find_phases, flops_per_clip
from training.methods.method import At
from training.pretrain import main
from training.recipes.recipe import read_recipe
from video_distilled_encoder.sources.video_files import VideoFile


def test_the_command_describes_and_draws_and_leaves_no_run(run_command, clip, tmp_path, capsys):
    arguments = ["--data", clip, "--out", tmp_path / "run", "--recipe", "smoke", "--frames", tmp_path / "frames"]
    assert run_command(main, *arguments, "--dry-run", "--run.steps=7") is None
    text = capsys.readouterr().out
    assert "1 videos, 15 clips; 7 steps of 4 clips" in text
    assert "memory on one device: about" in text
    written = text.split("\n\n")[0]
    (tmp_path / "again.yaml").write_text(written)
    assert read_recipe(str(tmp_path / "again.yaml")) == read_recipe("smoke", ["--run.steps=7"])
    with Image.open(tmp_path / "run.views.png") as picture:
        assert np.asarray(picture).std() > 10
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("batch", [2, 6])
def test_expected_activations_are_what_autograd_keeps_of_a_batch(clip, tmp_path, batch):
    recipe = read_recipe("smoke", [f"--run.batch_size={batch}", "--backbone.drop_path=0.0"])
    store = FrameStore(extract_source(VideoFile(clip), tmp_path, ExtractConfig(fps=10, short_side=128)))
    clips = clip_views(recipe, ClipIndex([store], recipe.clips, 0))
    method = build_method(recipe)
    memory = expected_memory(recipe, clips, method, bf16=False)
    held = {}

    def count(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    sizes = {"global": (3, 64), "local": (4, 32)}
    views = {group: {"pixels": torch.rand(batch, n, 3, side, side)} for group, (n, side) in sizes.items()}
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        losses = method(views, At(0.5))
    weights = sum(parameter.numel() * 4 for parameter in method.student.parameters())
    assert losses.total.isfinite()
    assert memory["activations"] == pytest.approx(sum(held.values()) - weights, rel=0.1)
    assert memory["weights, gradients, AdamW"] == pytest.approx(4 * weights, rel=0.1)


def test_arithmetic_is_that_of_the_layers(clip, tmp_path, one_thread):
    recipe = read_recipe("smoke")
    store = FrameStore(extract_source(VideoFile(clip), tmp_path, ExtractConfig(fps=10, short_side=128)))
    clips = clip_views(recipe, ClipIndex([store], recipe.clips, 0))
    method = build_method(recipe)
    forward = {"student": 0.0, "teacher": 0.0, "pixels": 0.0}

    def count(tower):
        def hook(layer, inputs, output):
            if isinstance(layer, Attention):  # queries with keys, and weights with values
                products = 2 * output.shape[1] * output.numel()
            else:
                products = layer.weight[0].numel() * output.numel()
            forward[tower] += 2 * products  # multiply-adds
            if tower == "student" and isinstance(layer, torch.nn.Conv2d):
                forward["pixels"] += 2 * products

        return hook

    for tower in ("student", "teacher"):
        for layer in getattr(method, tower).modules():
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d | Attention):
                layer.register_forward_hook(count(tower))
    got = flops_per_clip(clips, method, recipe.backbone.config)
    # two clips were counted; a backward pass costs twice the forward pass, but pixels get no gradient; the loss is some
    # percent
    layers = (3 * forward["student"] - forward["pixels"] + forward["teacher"]) / 2
    assert 0.995 * layers < got < 1.1 * layers
    assert all(parameter.grad is None for parameter in method.parameters())


def test_sizes_in_turn_cost_their_mean(clip, tmp_path):
    settings = ["--views.end_sizes=[32,96]", "--views.end_share=0.5"]
    recipe = read_recipe("smoke", settings)
    store = FrameStore(extract_source(VideoFile(clip), tmp_path, recipe.extract))
    clips, method = clip_views(recipe, ClipIndex([store], recipe.clips, 0)), build_method(recipe)
    first, last = find_phases(recipe, clips, method)
    config = recipe.backbone.config
    one, other = (flops_per_clip(clips, method, config, 0.5, step) for step in (0, 1))
    assert one < first.cost < other
    assert last.cost == (one + other) / 2
    largest = expected_memory(recipe, clips, method, bf16=False)["views"]
    assert largest > expected_memory(read_recipe("smoke"), clips, method, bf16=False)["views"]
