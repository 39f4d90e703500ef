"""The directory of a run: what it holds before training begins, and whether one may begin or go on in it."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import torch
import yaml

from training.common import distributed
from training.common.distributed import World
from training.data.clips import ClipIndex
from training.data.sheet import draw_sheet
from training.engine import handover
from training.engine.assembly import clip_views
from training.methods.method import Method
from training.recipes.recipe import Recipe, read_recipe
from video_distilled_encoder.errors import InputError, warn
from video_distilled_encoder.files import write_json

_LOCK = ".lock"


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Keep a run directory, which is made if it is missing, from other runs; one in which nothing was written goes.

    Raises:
        InputError: another process has it, or it cannot be made.
    """
    lock = out / _LOCK
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = lock.open("a")
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}; choose another --out") from error
    with file:
        if not _lock(lock, file):
            raise InputError(f"another run is at work in {out}; wait for its end, or choose another --out")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            with suppress(OSError):  # it is not empty
                out.rmdir()


def _lock(path: Path, file: TextIO) -> bool:
    """Lock a file for this process, but not for those that it forks; tell whether it has it, under its name, alone."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except (BlockingIOError, PermissionError, FileNotFoundError):  # the last if a run has ended just now
        return False
    except OSError as error:
        warn(f"{path.parent} cannot be locked ({error.strerror}); see that no other run works in it")
        return True


def start_directory(
    out: Path,
    recipe: Recipe,
    index: ClipIndex,
    world: World,
    before: Sequence[dict[str, Any]],
    method: Method,
) -> None:
    """Make the run directory, with the recipe, facts of data and machine, and a sheet of the first clips' views."""
    (out / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    device = distributed.device_name(world.device.type)
    facts = {
        "videos": len(index.stores),
        "data": digest_of(index),
        "hours": round(hours_of(index), 2),
        "different_clips": len(index),
        "clip_seconds": [round(seconds, 4) for seconds in index.offsets()],
        "device": f"{world.size} x {device}" if world.size > 1 else device,
        "torch": torch.__version__,
        "runs_before": before,
    }
    if method.outside():
        facts |= {"outside": method.outside(), "provenance": method.provenance()}
    write_json(out / "run.json", facts)
    draw_sheet(clip_views(recipe, index), range(min(8, len(index))), out / "views.png")


def hours_of(index: ClipIndex) -> float:
    """Return the length of all videos."""
    return sum(store.times[-1] for store in index.stores if len(store)) / 3600


def digest_of(index: ClipIndex) -> str:
    """Return the SHA-256 of what decides the clips of a run: videos, their order, times, cuts and folders."""
    folders = list(dict.fromkeys(store.folder for store in index.stores))
    digest = hashlib.sha256()
    for store in index.stores:
        digest.update(f"{store.path.name} {len(store)} {folders.index(store.folder)}".encode())
        digest.update(store.times.tobytes() + store.shots.tobytes())
    return digest.hexdigest()


def check_data(out: Path, index: ClipIndex) -> None:
    """Refuse to go on with a run whose videos have changed; runs of older versions do not tell.

    Raises:
        InputError: they have.
    """
    facts, here = handover.read_facts(out), digest_of(index)
    if facts.get("data", here) != here:
        raise InputError(
            f"{out} was started with other videos, or in another order ({facts['videos']}, {facts['hours']} h, and now "
            f"{len(index.stores)}, {round(hours_of(index), 2)} h); give those, or train on these in another --out with "
            f"--init-from {out}"
        )


def is_run(out: Path) -> bool:
    """Tell whether a run was started in `out`, which --resume would go on with."""
    return (out / "recipe.yaml").is_file()


def check_out(out: Path, recipe: Recipe, resume: bool) -> None:
    """Refuse a run directory that is taken, or that does not fit what is to be resumed."""
    if not resume:
        if out.exists() and (not out.is_dir() or any(path.name != _LOCK for path in out.iterdir())):
            raise InputError(f"{out} is not empty; add --resume to go on with the run in it, or choose another --out")
        return
    old = out / "recipe.yaml"
    if not is_run(out):
        raise InputError(f"{out} holds no run to resume: it has no recipe.yaml")
    if not recipe.trains_like(read_recipe(str(old))):
        changed = _first_difference(yaml.safe_load(old.read_text(encoding="utf-8")), recipe)
        raise InputError(f"{out} was started with other settings: {changed}; take those, or choose another --out")


def _first_difference(old: dict, recipe: Recipe) -> str:
    if old.get("method") != recipe.method:
        return f"method was {old.get('method')}, now {recipe.method}"
    for section, values in old.items():
        for name, value in values.items() if isinstance(values, dict) else ():
            now = getattr(getattr(recipe, section, None), name, None)
            if value != (list(now) if isinstance(now, tuple) else now) and not hasattr(now, "__dataclass_fields__"):
                return f"{section}.{name} was {value}, now {now}"
    return "see its recipe.yaml"


def check_outside(out: Path, outside: Mapping[str, str]) -> None:
    """Refuse to go on with a run whose frozen models have changed.

    Raises:
        InputError: they have.
    """
    for name, digest in handover.read_facts(out).get("outside", {}).items():
        if outside.get(name) != digest:
            now = outside.get(name)
            raise InputError(f"{out / 'run.json'} names {name} of SHA-256 {digest}, and now it is {now}; give that")


def run_card(recipe: Recipe, steps: int, index: ClipIndex, runs: Sequence[Mapping[str, Any]]) -> str:
    """Return a model card that states how the encoder was trained, by this run and those before it."""
    provenance = "".join(dict.fromkeys(run.get("provenance", "") for run in runs))
    return f"""---
library_name: timm
pipeline_tag: image-feature-extraction
tags: [vision-transformer, self-supervised, video_distilled_encoder]
---
# An encoder distilled from video

The backbone ({recipe.backbone.architecture}) of a run of `python -m training.pretrain` with the method
`{recipe.method}`: {steps} steps of {recipe.run.batch_size} clips ({index.spec})
from {len(index.stores)} videos, {hours_of(index):.2f} hours in all. It has not been evaluated.
{provenance}

```python
from video_distilled_encoder import Encoder
encoder = Encoder.from_pretrained("DIRECTORY_OR_HUB_NAME")
out = encoder.encode("photograph.jpg")   # out.cls, out.patches, out.grid
```
"""
