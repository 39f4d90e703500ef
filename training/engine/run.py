"""A run: from videos to an encoder in a run directory, on one process or several."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from training.common import distributed, stop
from training.common.cache import frame_stores
from training.common.distributed import World
from training.data.clips import ClipIndex
from training.data.extraction import extract_all
from training.data.frame_store import FrameStore, open_stores
from training.data.resident import ResidentFrames
from training.engine import checkpoint, handover
from training.engine.assembly import build_method, clip_index, clip_views
from training.engine.curves import plot_curves
from training.engine.directory import (
    check_data,
    check_out,
    check_outside,
    held,
    hours_of,
    is_run,
    run_card,
    start_directory,
)
from training.engine.estimate import find_phases, report
from training.engine.initial_weights import start_from
from training.engine.plan import Budget, Phase
from training.engine.schedule import share_of_batch
from training.engine.trainer import Trainer
from training.methods.method import Method
from training.recipes.recipe import Recipe
from video_distilled_encoder import Encoder
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.sources.source import Asked


def pretrain(
    data: Sequence[Path],
    out: Path,
    recipe: Recipe,
    *,
    frames: Path | None = None,
    asked: Asked | None = None,
    resume: bool = False,
    max_seconds: float | None = None,
    skip_unreadable: bool = False,
    shard_mib: float = handover.SHARD_MIB,
) -> bool:
    """Extract the videos, train, and write the encoder as the model directory `out/encoder`.

    Args:
        data: video files, data sets, or folders of them.
        out: the run directory.
        recipe: all settings.
        frames: folder of the frame stores; the user's cache by default.
        asked: cameras and episodes of data sets, and the rate of what has no clock.
        resume: go on with the run in `out`.
        max_seconds: how long all this may take; the recipe's length does not count then, and all schedules end when
            the time does. Without it, a run that is resumed keeps the plan that it had.
        skip_unreadable: leave out videos that cannot be read, instead of stopping at the first.
        shard_mib: largest size of a file of `out/handover`.

    Returns:
        Whether the last step was reached: not if the process was asked to stop.

    Raises:
        InputError: the videos cannot be used, or are not those of the run to resume, `out` is taken, there is nothing
            to resume, the time is too short to begin, or the loss diverged.
    """
    deadline = None if max_seconds is None else time.monotonic() + max_seconds
    check_out(out, recipe, resume)
    handover.check_size(shard_mib)
    world = distributed.start(recipe.run.device, full_float32=recipe.run.precision == "fp32")
    with held(out) if world.is_main else nullcontext():
        share_of_batch(recipe, world)
        start = begin(out, recipe, resume)
        world.say(start.text)
        stores = extract_once(world, data, frames or frame_stores(), recipe, skip_unreadable, deadline, asked)
        finished = train(out, recipe, world, open_stores(stores), start, deadline, shard_mib)
    # A process that fails does not leave the group, which would wait for the others, who wait for it: it ends, and its
    # launcher ends them.
    distributed.stop()
    return finished


def pretrain_whole(
    data: Sequence[Path],
    out: Path,
    recipe: Recipe,
    frames: Path,
    max_seconds: float | None = None,
    asked: Asked | None = None,
) -> None:
    """Start the run in `out`, or go on with it, up to its last step, which a run that was started has.

    One that was finished on another machine, of whose directory all came back but the checkpoints, is over.

    Raises:
        InputError: as `pretrain` does, or the process was asked to stop before.
    """
    if not checkpoint.find(out / "checkpoints") and handover.is_of_finished_run(out / handover.FOLDER):
        check_out(out, recipe, resume=True)
        return
    started = bool(checkpoint.find(out / "checkpoints"))
    seconds = None if started else max_seconds
    with stop.listening():
        finished = pretrain(data, out, recipe, frames=frames, asked=asked, resume=is_run(out), max_seconds=seconds)
    if not finished:
        raise InputError("stopped; the same command goes on")


def dry_run(
    data: Sequence[Path],
    out: Path,
    recipe: Recipe,
    frames: Path | None,
    skip_unreadable: bool,
    asked: Asked | None = None,
) -> str:
    """Describe the run and draw `OUT.views.png`; the videos are extracted, nothing is trained."""
    root = frames or frame_stores()
    stores = extract_all(data, root, recipe.extract, asked=asked, skip_unreadable=skip_unreadable)
    index = clip_index(recipe, open_stores(stores))
    bf16 = recipe.run.uses_bf16(distributed.choose_device(recipe.run.device))
    return report(recipe, index, build_method(recipe), out.with_name(f"{out.name}.views.png"), bf16)


class Beginning(NamedTuple):
    """What a run goes on from."""

    method: Method
    """With the weights that it begins with, unless there is a checkpoint."""
    saved: checkpoint.Checkpoint | None
    """Of the same run."""
    runs: list[dict[str, Any]]
    """The runs before it."""
    text: str
    """In words."""


def begin(out: Path, recipe: Recipe, resume: bool) -> Beginning:
    """Build a run's method and read what it goes on from, before hours of video are: it may have to be refused."""
    torch.manual_seed(recipe.run.seed)
    method = build_method(recipe)
    saved = checkpoint.load_newest(out / "checkpoints") if resume else None
    if saved:
        check_outside(out, method.outside())
        return Beginning(method, saved, handover.past_of(out).runs, f"going on after step {saved.step}")
    if recipe.run.init_from:
        text, runs = start_from(recipe.run.init_from, method)
        return Beginning(method, None, runs, text)
    return Beginning(method, None, [], "starting from random weights")


def extract_once(
    world: World,
    data: Sequence[Path],
    root: Path,
    recipe: Recipe,
    skip_unreadable: bool = False,
    deadline: float | None = None,
    asked: Asked | None = None,
) -> dict[Path, str]:
    """Extract the videos in one process of each machine while the others wait; return its stores in all of them.

    Raises:
        InputError: the machines have different videos.
    """
    stores: dict[Path, str] = {}
    if world.local_rank == 0:
        stores = extract_all(
            data,
            root,
            recipe.extract,
            asked=asked,
            skip_unreadable=skip_unreadable,
            deadline=deadline,
            turn=world.rank / world.size,
        )
    of_all = distributed.gather(stores)
    for rank, found in enumerate(of_all):
        if found and [store.name for store in found] != [store.name for store in of_all[0]]:
            raise InputError(
                f"the machine of process {rank} has other videos than that of process 0: {len(found)} against "
                f"{len(of_all[0])}, or others under the same names; give all machines the same"
            )
    return of_all[world.rank - world.local_rank]


def train(
    out: Path,
    recipe: Recipe,
    world: World,
    stores: Sequence[FrameStore],
    start: Beginning,
    deadline: float | None,
    shard_mib: float,
) -> bool:
    """Train on frame stores and write the run directory; tell whether the last step was reached."""
    method, saved, before, _ = start
    index = clip_index(recipe, stores)
    if saved:
        check_data(out, index)
    if world.is_main:
        start_directory(out, recipe, index, world, before, method)
    distributed.wait_for_all()
    compute_flow(recipe, index, world)
    phases = find_phases(recipe, clip_views(recipe, index), method.to(world.device))
    frames = load_frames(recipe, stores, world)
    distributed.wait_for_all()  # one machine may decode much longer than another
    trainer = Trainer(
        recipe, method, clip_views(recipe, index, resident=frames is not None), out, world, phases, frames
    )
    if saved:
        trainer.resume(saved)
    else:
        trainer.prepare()
    budget = None if deadline is None else start_budget(deadline, phases, world)
    hours = hours_of(index)
    length = f"{trainer.plan.steps} steps"
    if budget:
        length = f"for {budget.left():.0f} s, whatever run.steps and run.epochs say, steps"
    elif trainer.plan.steps != (asked := recipe.run.total_steps(index.samples)):
        length += f", to which --max-time fitted the schedules, not {asked},"
    world.say(
        f"{len(stores)} videos, {hours:.2f} h, {len(index)} clips; {length} of {recipe.run.batch_size} clips on "
        f"{world.size} x {world.device.type} in {recipe.run.precision_on(world.device.type)}"
    )
    if recipe.run.device == "auto" and world.device.type == "cpu":
        world.say("no GPU found: training on the CPU, for which --recipe cpu is made")

    def leave() -> None:
        trainer.save()
        if world.is_main:
            facts = yaml.safe_load(recipe.to_yaml())
            runs = [*before, handover.facts_of(trainer.step, trainer.plan, facts, method.provenance())]
            card = run_card(recipe, trainer.step, index, runs)
            Encoder(method.encoder(), recipe.backbone.config, card).save_pretrained(out / "encoder")
            method.save_beside(out)
            handover.write(out / handover.FOLDER, method, recipe.backbone.config, runs, shard_mib)
            plot_curves(trainer.log.path, out / "curves.png")
        trainer.checkpoints.wait()

    try:
        finished = trainer.run(budget, leave, sum(run["clips"] for run in before))
    except InputError:
        if world.is_main:
            plot_curves(trainer.log.path, out / "curves.png")
        raise
    leave()
    if world.is_main:
        print(out / "encoder")
    if not finished:
        why = "the time was up" if budget and budget.left() < (budget.reserve or 0) else "stopped"
        world.say(f"{why} after step {trainer.step} of {trainer.plan.steps}; --resume goes on")
    return finished


def compute_flow(recipe: Recipe, index: ClipIndex, world: World) -> None:
    """Compute the optical flow that a method wants of a network now, on the GPUs; elsewhere loading does it."""
    flows = clip_views(recipe, index).flows
    if flows and flows.config.estimator == "raft" and world.device.type == "cuda":
        pairs = zip(index.videos.tolist(), index.frames[:, [0, -1]].tolist(), strict=True)
        of_all = [(index.stores[video], first, last) for video, (first, last) in pairs]
        flows.fill(of_all[world.local_rank :: world.local_size], world.device)
        distributed.wait_for_all()


def load_frames(recipe: Recipe, stores: Sequence[FrameStore], world: World) -> ResidentFrames | None:
    """Decode all frames now, if the recipe says so; return them if they are on the device."""
    if not recipe.clips.in_memory:
        return None
    on_device = recipe.clips.in_memory == "device"
    frames = ResidentFrames(stores, world.device if on_device else torch.device("cpu"))
    return frames if on_device else None


def start_budget(deadline: float, phases: Sequence[Phase], world: World) -> Budget:
    """Return the budget of what is left until the deadline.

    Raises:
        InputError: nothing is.
    """
    left = distributed.from_main(deadline - time.monotonic())
    if left <= 0:
        raise InputError(
            f"the time was over {-left:.1f} s before training could begin; give more --max-time, or extract the videos "
            "before, with python -m training.extract"
        )
    return Budget(left, phases, wait=lambda: distributed.synchronize(world.device))
