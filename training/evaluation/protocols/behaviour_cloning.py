"""Behaviour cloning: how often a small policy that imitates an expert from frozen features solves simulated tasks.

Meta-World's tasks (--tasks), a scripted expert's --demonstrations (recorded into --data by the first that asks), and
VC-1's policy (arXiv 2303.18240, CortexBench): features of the last --history moments as the newest and its differences
from those before, and where the robot's hand and gripper are; BatchNorm, three layers of 256, squared error, Adam 1e-3,
batches of 256, 100 epochs. It is tried from --rollouts starts and goals that no demonstration has, of at most --horizon
steps each; solved is solved at any step.

    success      share of rollouts solved by the policy at the end of training, percent, over all tasks. The figure to
                 compare, with its `interval`, by rollout (`units`), on every second one (`half_a`) and the others
    best         the mean of the tasks' best out of --evaluations policies during training, which papers report. It is
                 optimistic by as much as figures of few rollouts vary
    wilson       95 % interval of the share of `solved` rollouts (Wilson 1927)
    tasks        of each: success, solved, and its interval

Ours differs from CortexBench in the simulator's version (v3), the camera (corner2) and the horizon (the papers' is
500), and shadows are off: figures are comparable with one another only. What stands beside an encoder:

    --inputs thumbnail        28x28 means of the pixels, in place of features
    --inputs proprioception   nothing in their place
    --inputs state            all that the simulator knows, in place of everything: what the policy itself can reach

for which --model is not asked anything (give constant). Ten rollouts tell nothing apart: of 25 that all tasks share,
a difference of less than 15 points over three tasks is none.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import Tensor
from tqdm import tqdm

from training.common.tiles import write_tiles
from training.evaluation.features import compact, extract
from training.evaluation.probes.policy import BATCH, HIDDEN, RATE, Policy, imitate, past_of, with_past
from training.evaluation.simulation.demonstrations import SEED, Demonstrations, demonstrations, file_of
from training.evaluation.simulation.metaworld import GOALS, SIDE, MetaWorld
from training.evaluation.simulation.world import Observation, World
from training.evaluation.statistics.figures import by_unit, percent
from training.models.model import Model
from video_distilled_encoder import EncoderOutput
from video_distilled_encoder.errors import InputError

TASKS = ("button-press-topdown", "drawer-open", "hammer")
POOLS = ("cls", "mean", "4x4")
INPUTS = ("features", "thumbnail", "proprioception", "state")
THUMBNAIL = 28
PICTURES = 8
"""Of a rollout, on its sheet."""
BLIND = np.empty((0, 0, 3), np.uint8)
"""What is seen where nothing is looked at."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the protocol's options."""
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="of Meta-World (%(default)s)")
    parser.add_argument("--inputs", choices=INPUTS, default="features", help="of the policy (%(default)s)")
    parser.add_argument(
        "--pool", choices=POOLS, default="cls", help="the class token, or means of patches: (%(default)s)"
    )
    parser.add_argument("--history", type=int, default=3, help="moments that a policy looks at (%(default)s)")
    parser.add_argument("--demonstrations", type=int, default=25, help="of each task (%(default)s)")
    parser.add_argument("--epochs", type=int, default=100, help="passes over them (%(default)s)")
    parser.add_argument("--rollouts", type=int, default=25, help="of each task (%(default)s)")
    parser.add_argument("--horizon", type=int, default=200, help="steps of an episode at most (%(default)s)")
    parser.add_argument("--hold", type=int, default=1, help="steps for which an action is held (%(default)s)")
    parser.add_argument("--side", type=int, default=SIDE, help="of the pictures, in pixels (%(default)s)")
    parser.add_argument("--evaluations", type=int, default=1, help="policies tried during training (%(default)s)")
    parser.add_argument("--pictures", type=Path, help="a PNG for pictures of one rollout of each task, a row a task")


def open_world(task: str, args: argparse.Namespace) -> World:
    """Return the task of this name."""
    return MetaWorld(task, args.side, args.hold)


def actions_of(args: argparse.Namespace) -> int:
    """Return how many actions an episode has at most."""
    return int(args.horizon // args.hold)


def prepare(args: argparse.Namespace) -> dict[str, Path]:
    """Record the demonstrations that are not there, and return the files of all.

    Raises:
        InputError: more are asked for than the simulator has starts, or as `demonstrations`.
    """
    if max(2 * args.demonstrations, args.rollouts) > GOALS or min(args.demonstrations, args.rollouts) < 1:
        raise InputError(f"--demonstrations must be 1 to {GOALS // 2} and --rollouts 1 to {GOALS}")
    if not 1 <= args.evaluations <= args.epochs or args.history < 1:
        raise InputError("--evaluations must be 1 to --epochs, and --history at least 1")
    if not 1 <= args.hold <= args.horizon or args.side < THUMBNAIL:
        raise InputError(f"--hold must be 1 to --horizon, and --side at least {THUMBNAIL}")
    files = {}
    for task in args.tasks:
        demonstrations(args.data, open_world(task, args), args.demonstrations, actions_of(args))
        files[f"demonstrations of {task}"] = file_of(args.data, task, args.demonstrations)
    return files


def evaluate(model: Model, args: argparse.Namespace) -> dict[str, object]:
    """Imitate the expert of each task and try the policies."""
    solved, best, sheet, moments = {}, {}, [], 0
    for task in args.tasks:
        world = open_world(task, args)
        shown = demonstrations(args.data, world, args.demonstrations, actions_of(args))
        moments += len(shown.actions)
        tried, pictures = try_task(model, world, shown, args)
        solved[task], best[task] = tried[-1], max(one.mean() for one in tried)
        sheet.append(pictures)
    if args.pictures:
        args.pictures.parent.mkdir(parents=True, exist_ok=True)
        write_tiles(args.pictures, sheet, gap=4)
    shares = np.concatenate(list(solved.values()))
    units = [f"{task}/{number}" for task, found in solved.items() for number in range(len(found))]
    return {
        "figures": {
            "success": percent(shares),
            "best": percent(list(best.values())),
            **_counted(shares),
            **by_unit(shares, units),
            "tasks": {task: {"success": percent(found), **_counted(found)} for task, found in solved.items()},
        },
        "variant": {"inputs": args.pool if args.inputs == "features" else args.inputs},
        "setting": {
            "history": f"{args.history} moments, the newest and differences",
            "policy": f"BatchNorm, {HIDDEN}, Adam {RATE:g}, batches of {BATCH}, {args.epochs} epochs",
            "rollouts": args.rollouts,
            "horizon": args.horizon,
            "hold": args.hold,
            "size": args.side,
        },
        "data": {"demonstrations": args.demonstrations, "moments": moments, "tasks": args.tasks},
    }


def _counted(solved: np.ndarray) -> dict[str, object]:
    interval = binomtest(int(solved.sum()), len(solved)).proportion_ci(method="wilson")
    return {
        "solved": f"{int(solved.sum())} of {len(solved)}",
        "wilson": [percent(interval.low), percent(interval.high)],
    }


def try_task(
    model: Model, world: World, shown: Demonstrations, args: argparse.Namespace
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return which rollouts each of the policies solves, and pictures of the last one's first if they are asked for."""
    senses = Senses(model, args)
    seen = senses.of_demonstrations(shown, args.cache)
    past = past_of(torch.from_numpy(shown.episode), args.history).to(model.device)
    inputs = senses.join(with_past(seen, past), _tensor(shown.proprioception, model), _tensor(shown.state, model))
    policies = imitate(
        inputs, _tensor(shown.actions, model), epochs=args.epochs, parts=args.evaluations, seed=args.seed
    )
    tried = []
    for policy in policies:
        solved, pictures = roll_out(world, policy, senses, args)
        tried.append(solved)
    return tried, pictures


class Senses:
    """What a policy is given of an observation."""

    def __init__(self, model: Model, args: argparse.Namespace) -> None:
        self.model, self.inputs, self.pool = model, args.inputs, args.pool
        self.size = model.nearest_size(args.side, args.side)
        self.looks = self.inputs in ("features", "thumbnail")

    def of_demonstrations(self, shown: Demonstrations, cache: Path) -> Tensor:
        """Return (n, C) features, from the cache if they are there."""
        if self.inputs != "features":
            return self.see(shown.pictures)
        cls, grid = extract(self.model, list(shown.pictures), self.size, cache=cache)
        return self._pooled(cls.float(), grid.float().movedim(-1, 1)).to(self.model.device)

    def see(self, pictures: Sequence[np.ndarray] | np.ndarray) -> Tensor:
        """(n, H, W, 3) pictures -> (n, C)."""
        if self.inputs == "features":
            found: EncoderOutput = self.model.encode(list(pictures), self.size)
            return self._pooled(*(compact(part).float() for part in (found.cls, found.grid))).to(self.model.device)
        if self.inputs == "thumbnail":
            pixels = torch.from_numpy(np.stack(list(pictures))).movedim(-1, 1).float() / 255
            return F.adaptive_avg_pool2d(pixels, THUMBNAIL).flatten(1).to(self.model.device)
        return torch.zeros(len(pictures), 0, device=self.model.device)

    def join(self, seen: Tensor, proprioception: Tensor, state: Tensor) -> Tensor:
        """Return the policy's inputs."""
        return state if self.inputs == "state" else torch.cat([seen, proprioception], dim=1)

    def _pooled(self, cls: Tensor, grid: Tensor) -> Tensor:
        if self.pool == "cls":
            return cls
        return F.adaptive_avg_pool2d(grid, 1 if self.pool == "mean" else 4).flatten(1)


@torch.no_grad()
def roll_out(
    world: World, policy: Policy, senses: Senses, args: argparse.Namespace
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Try a policy from starts of another seed than the demonstrations', all at once.

    Returns:
        Which are solved, (rollouts,) bool, and pictures of the first, to its end, if they are asked for.
    """
    episodes = [world.episode(SEED + 1, number) for number in range(args.rollouts)]
    solved = np.zeros(len(episodes), dtype=bool)
    remembered: list[deque[Tensor]] = [deque(maxlen=args.history) for _ in episodes]
    pictures: list[np.ndarray] = []
    for _ in tqdm(range(actions_of(args)), desc=world.name, unit="step", dynamic_ncols=True, leave=False):
        running = np.flatnonzero(~solved)
        if not len(running):
            break
        seen = [episodes[number].picture() for number in running] if senses.looks else [BLIND] * len(running)
        if args.pictures and running[0] == 0:
            pictures.append(seen[0] if senses.looks else episodes[0].picture())
        known = [episodes[number].observe() for number in running]
        actions = policy(_inputs(seen, known, [remembered[number] for number in running], senses)).cpu().numpy()
        for number, action in zip(running, actions, strict=True):
            solved[number] = episodes[number].act(action)
    if args.pictures:
        pictures.append(episodes[0].picture())
    chosen = np.linspace(0, len(pictures) - 1, min(PICTURES, len(pictures))).round().astype(int)
    return solved, [pictures[place] for place in chosen]


def _inputs(
    seen: Sequence[np.ndarray], known: Sequence[Observation], remembered: Sequence[deque[Tensor]], senses: Senses
) -> Tensor:
    """Return the policy's inputs of moments that go on from those remembered; remember them too."""
    features = senses.see(seen)
    rows = []
    for feature, memory in zip(features, remembered, strict=True):
        memory.extend([feature] * (1 if memory else memory.maxlen or 1))  # before the first moment was the first
        newest_first = torch.stack(list(memory)[::-1])
        rows.append(with_past(newest_first, torch.arange(len(memory), device=feature.device)[None])[0])
    proprioception, state = (np.stack([getattr(one, name) for one in known]) for name in ("proprioception", "state"))
    return senses.join(torch.stack(rows), _tensor(proprioception, senses.model), _tensor(state, senses.model))


def _tensor(values: np.ndarray, model: Model) -> Tensor:
    return torch.from_numpy(values).to(model.device)
