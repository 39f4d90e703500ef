"""What a scripted expert does, recorded once for all encoders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
from tqdm import tqdm

from training.evaluation.simulation.world import Observation, World
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.files import atomic_path

SEED = 0
"""Of the expert's episodes; policies are tried on others."""
AFTER = 5
"""Steps that are recorded after the task is solved."""


Moment = tuple[np.ndarray, Observation, np.ndarray]
"""A picture, what else is known, and what the expert does."""


class Demonstrations(NamedTuple):
    """Episodes of an expert, one after the other, n moments in all."""

    pictures: np.ndarray
    """(n, H, W, 3) uint8."""
    proprioception: np.ndarray
    """(n, P) float32."""
    state: np.ndarray
    """(n, S) float32."""
    actions: np.ndarray
    """(n, A) float32."""
    episode: np.ndarray
    """(n,) the number of each moment's."""


def demonstrations(folder: Path, world: World, count: int, horizon: int) -> Demonstrations:
    """Return an expert's solved episodes from `folder/TASK-COUNT.npz`, which is recorded first if it is not there.

    Args:
        folder: of the files.
        world: the task.
        count: of episodes.
        horizon: actions of an episode at most.

    Raises:
        InputError: the expert does not solve the task, or the file is of other versions or another camera.
    """
    path = file_of(folder, world.name, count)
    about = json.dumps({**world.description, "seed": SEED, "horizon": horizon})
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        arrays = record(world, count, horizon)._asdict()
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, about=np.array(about), **arrays)
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in ("about", *Demonstrations._fields)}
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise InputError(f"{path} does not hold demonstrations; delete it, and it is recorded again") from error
    if (recorded := str(arrays.pop("about"))) != about:
        raise InputError(f"{path} was recorded as {recorded}, not as {about}; name another --data")
    return Demonstrations(**arrays)


def file_of(folder: Path, task: str, count: int) -> Path:
    """Return where demonstrations are kept."""
    return folder / f"{task}-{count}.npz"


def record(world: World, count: int, horizon: int) -> Demonstrations:
    """Let the expert solve the task so many times; episodes that it does not solve are left out.

    Raises:
        InputError: it solves less than half of them.
    """
    episodes: list[list[Moment]] = []
    bar = tqdm(total=count, desc=f"demonstrations of {world.name}", unit="episode", dynamic_ncols=True)
    for number in range(2 * count):
        solved, moments = _solve(world, number, horizon)
        if solved:
            episodes.append(moments)
            bar.update()
        if len(episodes) == count:
            break
    bar.close()
    if len(episodes) < count:
        raise InputError(
            f"the expert solved {world.name} in {len(episodes)} of {2 * count} episodes of {horizon} steps"
        )
    numbers = np.repeat(np.arange(count), [len(moments) for moments in episodes])
    pictures, observations, actions = zip(*(moment for moments in episodes for moment in moments), strict=True)
    proprioception, state = map(np.stack, zip(*observations, strict=True))
    return Demonstrations(np.stack(pictures), proprioception, state, np.stack(actions), numbers)


def _solve(world: World, number: int, horizon: int) -> tuple[bool, list[Moment]]:
    episode, since = world.episode(SEED, number), 0
    moments: list[Moment] = []
    while len(moments) < horizon and since <= AFTER:
        action = episode.expert()
        moments.append((episode.picture(), episode.observe(), action))
        solved = episode.act(action)
        since += solved or since > 0
    return since > 0, moments
