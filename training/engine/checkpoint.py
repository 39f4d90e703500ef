"""Checkpoints: tensors as safetensors, the rest as JSON, written whole or not at all.

    checkpoints/step-00000500/
        model.safetensors      student, teacher and centres
        optimizer.safetensors  AdamW's running averages
        state.json             step, plan, and the SHA-256 of the two files

There is no state of random-number generators: whatever is random is drawn from the seed and the step.
"""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from training.engine.plan import Plan
from video_distilled_encoder.errors import InputError, first_line, warn
from video_distilled_encoder.files import atomic_directory, read_tensors, sha256

_TENSORS = ("model", "optimizer")
_NAME = re.compile(r"step-\d{8,}")


@dataclass
class Checkpoint:
    """The state of a run after `step` steps."""

    step: int
    plan: Plan
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]


class CheckpointWriter:
    """Writes checkpoints one after another while training goes on; as a context, it ends with all written.

    Args:
        root: where they go.
        keep: the newest so many are kept.
    """

    def __init__(self, root: Path, keep: int) -> None:
        self.root = root
        self.keep = keep
        self._thread = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Take a copy of a checkpoint, and see that it is written.

        Raises:
            InputError: the one before could not be written; earlier ones are as they were.
        """
        self.wait()
        copy = replace(checkpoint, model=_copy(checkpoint.model), optimizer=_copy(checkpoint.optimizer))
        self._last = self._thread.submit(_write, self.root, copy, self.keep)

    def wait(self) -> None:
        """Return when all is written.

        Raises:
            InputError: something cannot be written; earlier checkpoints are as they were.
        """
        if self._last:
            last, self._last = self._last, None
            last.result()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}


def _write(root: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Write a checkpoint into `root`, then delete those before it but the newest, so that `keep` are left."""
    path = root / f"step-{checkpoint.step:08d}"
    with atomic_directory(path) as staging:
        sums = {}
        for name in _TENSORS:
            file = staging / f"{name}.safetensors"
            save_file({key: value.contiguous() for key, value in getattr(checkpoint, name).items()}, file)
            sums[file.name] = sha256(file)
        state = {"step": checkpoint.step, "plan": checkpoint.plan.knots, "sha256": sums}
        (staging / "state.json").write_text(json.dumps(state), encoding="utf-8")
    paths = find(root)
    for old in paths[paths.index(path) + keep :]:
        shutil.rmtree(old)


def load_newest(root: Path) -> Checkpoint | None:
    """Load the newest checkpoint whose files are whole; damaged ones are passed over with a warning.

    Raises:
        InputError: there are checkpoints, and all are damaged.
    """
    paths = find(root)
    for path in paths:
        try:
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            for name, digest in state["sha256"].items():
                if sha256(path / name) != digest:
                    raise OSError(f"{name} does not match its checksum")
            plan = Plan(tuple((step, progress) for step, progress in state["plan"]))
            return Checkpoint(state["step"], plan, *(read_tensors(path / f"{name}.safetensors") for name in _TENSORS))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            warn(f"the checkpoint {path} is damaged ({first_line(error)}) and passed over")
    if paths:
        raise InputError(
            f"no checkpoint in {root} is whole: {', '.join(path.name for path in paths)}; put a whole one there, or "
            "begin a run anew in another --out"
        )
    return None


def find(root: Path) -> list[Path]:
    """Return the checkpoints in `root`, newest first; what the user keeps beside them has other names."""
    paths = (path for path in root.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir())
    return sorted(paths, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)
