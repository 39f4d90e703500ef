"""`python -m training.pretrain --data VIDEO_OR_DIR… --out DIR`: plain videos in, an encoder out.

The run directory holds recipe.yaml (every setting), run.json (data and machine), views.png (the first clips as the
network sees them), log.jsonl and tensorboard/ (every step), curves.png, checkpoints/ and, at the end, encoder/: the
teacher's backbone as a model directory for `Encoder.from_pretrained`, timm and transformers, with handover/, what the
next run needs to go on (`--init-from DIR`). Under torchrun or accelerate launch the same command uses every GPU of
every node.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from training import checkpoint, distributed, handover, stop
from training.clips import ClipIndex
from training.curves import plot_curves
from training.dataset import ClipViews, share_of_batch
from training.distributed import World
from training.dry_run import find_phases, report
from training.extract import default_root, extract_all
from training.frame_store import FrameStore, open_stores
from training.initial_weights import start_from
from training.methods import load_method
from training.methods.base import Method
from training.plan import Budget, Phase, age_of_process
from training.recipe import Recipe, parse_settings, read_recipe
from training.resident import ResidentFrames
from training.sheet import draw_sheet
from training.trainer import Trainer
from video_distilled_encoder import Encoder
from video_distilled_encoder.errors import InputError, command
from video_distilled_encoder.model_config import ModelConfig


@command
def main() -> None:
    """Run the command."""
    args, recipe = parse_arguments(sys.argv[1:])
    if args.dry_run:
        print(dry_run(args.data, args.out, recipe, args.frames, args.skip_unreadable))
        return
    with stop.listening():
        pretrain(
            args.data,
            args.out,
            recipe,
            frames=args.frames,
            resume=args.resume,
            max_seconds=None if args.max_time is None else args.max_time - age_of_process(),
            skip_unreadable=args.skip_unreadable,
            shard_mib=args.shard_size,
        )
    # Python would look through all that is alive once more before it ends, for a second that belongs to no one.
    gc.freeze()


def pretrain(
    data: Sequence[Path],
    out: Path,
    recipe: Recipe,
    *,
    frames: Path | None = None,
    resume: bool = False,
    max_seconds: float | None = None,
    skip_unreadable: bool = False,
    shard_mib: float = handover.SHARD_MIB,
) -> bool:
    """Extract the videos, train, and write the encoder as the model directory `out/encoder`.

    Args:
        data: video files, or folders of them.
        out: the run directory.
        recipe: all settings.
        frames: folder of the frame stores; the user's cache by default.
        resume: go on with the run in `out`.
        max_seconds: how long all this may take; the recipe's length does not count then, and all schedules end when
            the time does. Without it, a run that is resumed keeps the plan that it had.
        skip_unreadable: leave out videos that cannot be read, instead of stopping at the first.
        shard_mib: largest size of a file of `out/handover`.

    Returns:
        Whether the last step was reached: not if the process was asked to stop.

    Raises:
        InputError: the videos cannot be used, `out` is taken, there is nothing to resume, the time is too short to
            begin, or the loss diverged.
    """
    deadline = None if max_seconds is None else time.monotonic() + max_seconds
    check_out(out, recipe, resume)
    handover.check_size(shard_mib)
    world = distributed.start(recipe.run.device)
    try:
        stores = extract_once(world, data, frames or default_root(), recipe, skip_unreadable, deadline)
        return train(out, recipe, world, open_stores(stores), resume, deadline, shard_mib)
    finally:
        distributed.stop()


def pretrain_whole(
    data: Sequence[Path], out: Path, recipe: Recipe, frames: Path, max_seconds: float | None = None
) -> None:
    """Start the run in `out`, or go on with it, up to its last step, which a run that was started has.

    Raises:
        InputError: as `pretrain` does, or the process was asked to stop before.
    """
    started = any((out / "checkpoints").glob("step-*"))
    seconds = None if started else max_seconds
    with stop.listening():
        finished = pretrain(data, out, recipe, frames=frames, resume=is_run(out), max_seconds=seconds)
    if not finished:
        raise InputError("stopped; the same command goes on")


def dry_run(data: Sequence[Path], out: Path, recipe: Recipe, frames: Path | None, skip_unreadable: bool) -> str:
    """Describe the run and draw `OUT.views.png`; the videos are extracted, nothing is trained."""
    stores = extract_all(data, frames or default_root(), recipe.extract, skip_unreadable=skip_unreadable)
    index = ClipIndex(open_stores(stores), recipe.clips, recipe.run.seed)
    config = ModelConfig(architecture=recipe.backbone.architecture)
    bf16 = recipe.run.uses_bf16(distributed.choose_device(recipe.run.device))
    return report(recipe, index, build_method(recipe, config), config, out.with_name(f"{out.name}.views.png"), bf16)


def extract_once(
    world: World,
    data: Sequence[Path],
    root: Path,
    recipe: Recipe,
    skip_unreadable: bool = False,
    deadline: float | None = None,
) -> dict[Path, str]:
    """Extract the videos in one process of each machine while the others wait; return its stores in all of them.

    Raises:
        InputError: the machines have different videos.
    """
    stores: dict[Path, str] = {}
    if world.local_rank == 0:
        stores = extract_all(data, root, recipe.extract, skip_unreadable=skip_unreadable, deadline=deadline)
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
    resume: bool,
    deadline: float | None,
    shard_mib: float,
) -> bool:
    """Train on frame stores and write the run directory; tell whether the last step was reached."""
    share_of_batch(recipe, world)  # what cannot work is refused before anything is written
    index = ClipIndex(stores, recipe.clips, recipe.run.seed)
    config = ModelConfig(architecture=recipe.backbone.architecture)
    torch.manual_seed(recipe.run.seed)
    method = build_method(recipe, config)
    saved = checkpoint.load_newest(out / "checkpoints") if resume else None
    before = handover.runs_before(out) if saved else []
    if recipe.run.init_from and not saved:
        text, before = start_from(recipe.run.init_from, method)
        world.say(text)
    if world.is_main:
        start_directory(out, recipe, index, world, before)
    distributed.wait_for_all()
    phases = find_phases(ClipViews(index, recipe), method.to(world.device), config)
    frames = load_frames(recipe, stores, world)
    trainer = Trainer(recipe, method, index, config, out, world, phases, frames)
    if saved:
        trainer.resume(saved)
    budget = None if deadline is None else start_budget(deadline, phases, world)
    hours = hours_of(index)
    length = f"{trainer.plan.steps} steps"
    if budget:
        length = f"for {budget.left():.0f} s, whatever run.steps and run.epochs say, steps"
    world.say(
        f"{len(stores)} videos, {hours:.2f} h, {len(index)} clips; {length} of {recipe.run.batch_size} clips on "
        f"{world.size} x {world.device.type}"
    )
    if recipe.run.device == "auto" and world.device.type == "cpu":
        world.say("no GPU found: training on the CPU, for which --recipe cpu is made")

    def leave() -> None:
        trainer.save()
        if world.is_main:
            plot_curves(trainer.log.path, out / "curves.png")
            card = run_card(recipe, trainer.step, len(stores), hours)
            Encoder(method.teacher.backbone, config, card).save_pretrained(out / "encoder")
            run = handover.facts_of(trainer.step, trainer.plan, yaml.safe_load(recipe.to_yaml()))
            architecture = recipe.backbone.architecture
            handover.write(out / handover.FOLDER, method, architecture, [*before, run], shard_mib)
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


def start_directory(
    out: Path, recipe: Recipe, index: ClipIndex, world: World, before: Sequence[dict[str, Any]]
) -> None:
    """Make the run directory, with the recipe, facts of data and machine, and a sheet of the first clips' views."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    device = distributed.device_name(world.device.type)
    facts = {
        "videos": len(index.stores),
        "hours": round(hours_of(index), 2),
        "different_clips": len(index),
        "device": f"{world.size} x {device}" if world.size > 1 else device,
        "torch": torch.__version__,
        "runs_before": before,
    }
    (out / "run.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    draw_sheet(ClipViews(index, recipe), range(min(8, len(index))), out / "views.png")


def hours_of(index: ClipIndex) -> float:
    """Return the length of all videos."""
    return sum(store.times[-1] for store in index.stores if len(store)) / 3600


def parse_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, Recipe]:
    """Read the command line: a recipe, any of its settings, and what belongs to this run alone."""
    prog = "python -m training.pretrain"
    usage = f"{prog} --data VIDEO_OR_DIR… --out DIR [--recipe NAME] [--SECTION.SETTING VALUE …]"
    settings, recipe = parse_settings(argv, add_run_arguments, prog=prog, usage=usage, description=__doc__)
    if settings.init_from:
        recipe = replace(recipe, run=replace(recipe.run, init_from=settings.init_from))
    return settings, recipe


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is not a setting of the recipe."""
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="video files, or folders of them")
    parser.add_argument("--out", type=Path, required=True, help="the run directory")
    parser.add_argument("--init-from", help="the same as --run.init_from")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--max-time", type=parse_duration, help="length of the run, HH:MM:SS, in place of the recipe's")
    parser.add_argument(
        "--shard-size", type=float, default=handover.SHARD_MIB, metavar="MIB", help="largest file of OUT/handover"
    )
    parser.add_argument("--dry-run", action="store_true", help="describe the run and draw its views instead")
    parser.add_argument("--frames", type=Path, help=f"folder of the frame stores, if not {default_root()}")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out videos that cannot be read")


def parse_duration(text: str | float) -> float:
    """Turn HH:MM:SS into seconds; jsonargparse hands in its own result again."""
    if isinstance(text, (int, float)):
        return float(text)
    if not re.fullmatch(r"\d+:\d\d:\d\d", text):
        raise ValueError(f"a time is written HH:MM:SS, got {text!r}")
    hours, minutes, seconds = (int(part) for part in text.split(":"))
    return hours * 3600.0 + minutes * 60 + seconds


def is_run(out: Path) -> bool:
    """Tell whether a run was started in `out`, which --resume would go on with."""
    return (out / "recipe.yaml").is_file()


def check_out(out: Path, recipe: Recipe, resume: bool) -> None:
    """Refuse a run directory that is taken, or that does not fit what is to be resumed."""
    if not resume:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out} is not empty; add --resume to go on with the run in it, or choose another --out")
        return
    old = out / "recipe.yaml"
    if not is_run(out):
        raise InputError(f"{out} holds no run to resume: it has no recipe.yaml")
    if not recipe.trains_like(read_recipe(str(old))):
        changed = _first_difference(yaml.safe_load(old.read_text(encoding="utf-8")), recipe)
        raise InputError(f"{out} was started with other settings: {changed}; take those, or choose another --out")


def _first_difference(old: dict, recipe: Recipe) -> str:
    for section, values in old.items():
        for name, value in values.items() if isinstance(values, dict) else ():
            now = getattr(getattr(recipe, section), name)
            if value != (list(now) if isinstance(now, tuple) else now) and not hasattr(now, "__dataclass_fields__"):
                return f"{section}.{name} was {value}, now {now}"
    return "see its recipe.yaml"


def build_method(recipe: Recipe, config: ModelConfig) -> Method:
    """Build student and teacher with random weights; the teacher starts equal to the student."""
    student = config.build_backbone(drop_path_rate=recipe.backbone.drop_path)
    teacher = config.build_backbone()
    return load_method(recipe.method).Method(recipe, student, teacher)


def run_card(recipe: Recipe, steps: int, videos: int, hours: float) -> str:
    """Return a model card that states how the encoder was trained."""
    return f"""---
library_name: timm
pipeline_tag: image-feature-extraction
tags: [vision-transformer, self-supervised, video_distilled_encoder]
---
# An encoder distilled from video

The teacher's backbone ({recipe.backbone.architecture}) of a run of `python -m training.pretrain` with the method
`{recipe.method}`: {steps} steps of {recipe.run.batch_size} clips ({recipe.clips.frames} frames,
{recipe.clips.stride:g} s apart) from {videos} videos, {hours:.2f} hours in all. It has not been evaluated.

```python
from video_distilled_encoder import Encoder
encoder = Encoder.from_pretrained("DIRECTORY_OR_HUB_NAME")
out = encoder.encode("photograph.jpg")   # out.cls, out.patches, out.grid
```
"""


if __name__ == "__main__":
    main()
