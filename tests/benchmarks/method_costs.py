"""Time of a training step of several methods, in turns in one process, beside the first of them.

    OMP_NUM_THREADS=1 python tests/benchmarks/method_costs.py "cpu tiny" "cpu tiny dora" "cpu tiny poodle-cpu"

Each is given by its recipes, and gets real views of a video, loaded before; what is timed is a step from the views on:
colours, passes of all networks, losses, backward pass, AdamW, moving average. Loading is timed apart, in this process,
the second time, when optical flow has been computed. Settings after the recipes hold for all (`--set`).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from training.common import distributed
from training.data.batch import collate
from training.data.extraction import extract_all
from training.data.frame_store import open_stores
from training.data.loading import Place
from training.engine.assembly import build_method, clip_index, clip_views
from training.engine.estimate import flops_per_clip
from training.engine.plan import Phase
from training.engine.trainer import Trainer
from training.recipes.recipe import read_recipe


class Timed:
    """A method that makes steps with one batch."""

    def __init__(self, names: list[str], settings: list[str], data: Path, folder: Path) -> None:
        recipe = read_recipe(names, settings)
        index = clip_index(recipe, open_stores(extract_all([data], folder / "frames", recipe.extract, workers=1)))
        clips = clip_views(recipe, index)
        torch.manual_seed(0)
        method = build_method(recipe)
        self.flops = flops_per_clip(clips, method, recipe.backbone.config)
        world = distributed.start(recipe.run.device)
        self.trainer = Trainer(recipe, method, clips, folder / "-".join(names), world, [Phase(1.0, 1.0)])
        self.trainer.set_schedules()
        for _ in range(2):
            begin = time.perf_counter()
            samples = [clips[Place(position, 0.5)] for position in range(recipe.run.batch_size)]
            self.loading = time.perf_counter() - begin
        self.batch = collate(samples)
        self.seconds: list[float] = []

    def step(self) -> None:
        """Make a step and time it."""
        begin = time.perf_counter()
        self.trainer.optimize(self.batch)
        distributed.synchronize(self.trainer.world.device)
        self.seconds.append(time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", help='of one method each, as "cpu tiny dora"')
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "examples" / "dog.mp4")
    parser.add_argument("--set", nargs="*", default=[], help="settings of all, as run.batch_size=4")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    settings = [f"--{setting}" for setting in args.set]
    with tempfile.TemporaryDirectory() as folder:
        found = {names: Timed(names.split(), settings, args.data, Path(folder)) for names in args.recipes}
        for _ in range(args.repeats + 1):
            for timed in found.values():
                timed.step()
    first = next(iter(found.values()))
    print(f"{'':32} {'s a step':>9} {'beside':>7} {'GFLOP a clip':>13} {'beside':>7} {'s to load':>10}")
    for names, timed in found.items():
        ratios = [a / b for a, b in zip(timed.seconds[1:], first.seconds[1:], strict=True)]
        print(
            f"{names:32} {median(timed.seconds[1:]):9.3f} {median(ratios):7.2f} {timed.flops / 1e9:13.2f} "
            f"{timed.flops / first.flops:7.2f} {timed.loading:10.3f}"
        )


if __name__ == "__main__":
    main()
