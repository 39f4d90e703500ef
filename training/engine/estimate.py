"""What a run would be, without running it: settings, steps, memory, and a sheet of real views."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from training.data.batch import Batch, augment, collate
from training.data.clips import ClipIndex
from training.data.loading import ClipViews, Place
from training.data.sheet import draw_sheet
from training.engine.assembly import clip_views
from training.engine.plan import Phase, mean_cost
from training.methods.method import At, Method
from training.recipes.recipe import Recipe
from video_distilled_encoder.model_config import ModelConfig

_LOGIT_COPIES = 4


def report(recipe: Recipe, index: ClipIndex, method: Method, picture: Path, bf16: bool) -> str:
    """Draw a sheet of views and describe the run in words.

    Args:
        recipe: all settings.
        index: the clips.
        method: what is trained, on the CPU.
        picture: where the sheet goes.
        bf16: whether the run would compute in bf16.
    """
    steps = recipe.run.total_steps(index.samples)
    clips = clip_views(recipe, index)
    draw_sheet(clips, range(min(8, len(index))), picture)
    memory = expected_memory(recipe, clips, method, bf16)
    parts = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in memory.items())
    flops = mean_cost(find_phases(recipe, clips, method))
    return (
        f"{recipe.to_yaml()}\n"
        f"{len(index.stores)} videos, {len(index)} clips; {steps} steps of {recipe.run.batch_size} clips\n"
        f"arithmetic: {flops / 1e9:.1f} GFLOP a clip, {flops * steps * recipe.run.batch_size / 1e15:.3g} PFLOP in all\n"
        f"memory on one device: about {sum(memory.values()) / 2**30:.1f} GiB ({parts})\n"
        f"views: {picture}"
    )


def expected_memory(recipe: Recipe, clips: ClipViews, method: Method, bf16: bool) -> dict[str, float]:
    """Return the bytes that training needs if one process takes the whole batch.

    Activations are measured, not guessed: one real clip goes through the method on the CPU, and what autograd keeps of
    it is counted and multiplied. What only exists for a moment is estimated.
    """
    trained = sum(parameter.numel() for parameter in method.trained.parameters() if parameter.requires_grad)
    others = sum(parameter.numel() for parameter in method.parameters()) - trained
    begin = [0.0, *recipe.phases()][-2]  # of the last phase, in which views are largest
    sizes = [recipe.views.at(begin, step).global_size for step in range(recipe.views.turns(begin))]
    largest = Place(0, begin, sizes.index(max(sizes)))
    batches = (_batch(clips, [largest] * count, recipe.backbone.config) for count in (1, 2))
    one, two = (_kept_by_autograd(method, batch, begin, bf16) for batch in batches)
    part = recipe.run.batch_size / recipe.run.accumulate
    pixels = sum(found["pixels"].numel() for found in clips[largest].values())
    return {
        "weights, gradients, AdamW": trained * 16.0 + (2 * one - two),
        "other weights": others * 4.0,
        "activations": part * (two - one),
        "views": part * pixels * 4.0,
        "logits": 4.0 * recipe.objective.logits_at_once() * _LOGIT_COPIES,
    }


def flops_per_clip(
    clips: ClipViews, method: Method, config: ModelConfig, progress: float = 1.0, step: int = 0
) -> float:
    """Return the floating-point operations of one clip, forward and backward; a multiply-add is two.

    PyTorch counts them for real clips, with the views that the run has in a step at `progress`, on the method's device.
    """
    device = next(method.parameters()).device
    batch = _batch(clips, [Place(0, progress, step)] * 2, config, device)
    # On a CPU torch counts attention only where it is written out.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        method.train()(batch, At(progress)).total.backward()
    method.zero_grad(set_to_none=True)
    return counter.get_total_flops() / 2


def find_phases(recipe: Recipe, clips: ClipViews, method: Method) -> list[Phase]:
    """Return the stretches of a run whose steps cost the same, or the same in turns, by the arithmetic of a clip."""
    method = deepcopy(method)  # whose running averages would move

    def cost(progress: float) -> float:
        turns = recipe.views.turns(progress)
        config = recipe.backbone.config
        return sum(flops_per_clip(clips, method, config, progress, step) for step in range(turns)) / turns

    return [Phase(end, cost(begin)) for begin, end in pairwise([0.0, *recipe.phases()])]


def _batch(clips: ClipViews, places: list[Place], config: ModelConfig, device: torch.device | None = None) -> Batch:
    """Return a batch as a method takes it."""
    mean, std = (torch.tensor(values, device=device) for values in (config.mean, config.std))
    return augment(collate([clips[place] for place in places]), mean, std)


def _kept_by_autograd(method: Method, batch: Batch, progress: float, bf16: bool) -> float:
    """Return the bytes that a forward pass keeps for the backward pass, weights left out."""
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in method.parameters()}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        losses = method.train()(batch, At(progress))  # alive until counted, so that no storage is counted for another
        assert losses.total.requires_grad
    return float(sum(kept.values()))
