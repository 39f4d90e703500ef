"""How fast a machine extracts, loads and trains; the first steps are left out."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from training.common import distributed
from training.common.distributed import World
from training.data.clips import ClipIndex
from training.data.extraction import extract_all
from training.data.frame_store import open_stores
from training.data.loading import load_batches
from training.data.resident import ResidentFrames
from training.engine.assembly import build_method, clip_index, clip_views
from training.engine.estimate import find_phases
from training.engine.log import read_log
from training.engine.plan import Plan
from training.engine.run import load_frames
from training.engine.schedule import Schedule
from training.engine.trainer import Trainer
from training.recipes.recipe import Recipe
from video_distilled_encoder.sources.source import Asked

_WARM_UP = 3


def measure(data: Sequence[Path], recipe: Recipe, steps: int, asked: Asked | None = None) -> dict[str, object]:
    """Return the figures as a dictionary."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        stores = open_stores(extract_all(data, Path(folder) / "frames", recipe.extract, asked=asked))
        extracted = sum(map(len, stores)) / (time.perf_counter() - start)
        index = clip_index(recipe, stores)
        world = distributed.start(recipe.run.device, full_float32=recipe.run.precision == "fp32")
        frames = load_frames(recipe, stores, world)
        recipe = _shortened(recipe, steps)
        loaded = _clips_loaded(recipe, index, world)
        trained = time_training(recipe, index, world, steps, frames)
    return {
        "recipe": {"method": recipe.method, "batch_size": recipe.run.batch_size, "workers": recipe.run.workers},
        "device": distributed.device_name(world.device.type),
        "frames_extracted_per_second": round(extracted, 1),
        "clips_loaded_per_second": round(loaded, 1),
        **trained,
        "versions": {"torch": torch.__version__, "python": sys.version.split()[0]},
    }


def _clips_loaded(recipe: Recipe, index: ClipIndex, world: World) -> float:
    schedule = Schedule(recipe, Plan.of(recipe.run.total_steps(index.samples)), 0, world)
    clips = clip_views(recipe, index, resident=recipe.clips.in_memory == "device")
    with closing(load_batches(clips, schedule, world, recipe.run.workers)) as batches:
        for _ in islice(batches, _WARM_UP):
            pass
        start = time.perf_counter()
        count = sum(recipe.run.batch_size for _ in batches)
    return count / (time.perf_counter() - start)


def time_training(
    recipe: Recipe, index: ClipIndex, world: World, steps: int, frames: ResidentFrames | None
) -> dict[str, float | None]:
    """Train for a few steps; return rates, shares of the time, and the peak memory."""
    recipe = _shortened(recipe, steps)
    torch.manual_seed(recipe.run.seed)
    method = build_method(recipe)
    clips = clip_views(recipe, index, resident=frames is not None)
    phases = find_phases(recipe, clip_views(recipe, index), method.to(world.device))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(recipe, method, clips, Path(folder), world, phases, frames)
        trainer.run()
        rows = read_log(trainer.log.path)[_WARM_UP:]
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    seconds = means["seconds"]
    figures = {
        "steps_per_second": 1 / seconds,
        "clips_per_second": recipe.run.batch_size / seconds,
        "data_wait_share": means["data_wait"] / seconds,
        "balance_share": means.get("balance_time", 0.0) / seconds,
        "loss_share": means.get("loss_time", 0.0) / seconds,
        "tflop_per_second": means["tflop_per_second"],
        "utilization": means.get("utilization"),
        "peak_memory_gib": means["memory_gib"],
    }
    return {name: value if value is None else float(f"{value:.4g}") for name, value in figures.items()}


def _shortened(recipe: Recipe, steps: int) -> Recipe:
    return replace(recipe, run=replace(recipe.run, steps=steps + _WARM_UP, log_every=1, checkpoint_every=10**9))
