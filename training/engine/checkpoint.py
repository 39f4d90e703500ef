"""Checkpoints: tensors as safetensors, the rest as JSON, written whole or not at all.

    checkpoints/step-00000500/
        model.safetensors      student, teacher and centres
        optimizer.safetensors  AdamW's running averages
        state.json             step, plan, and the SHA-256 of the two files

There is no state of random-number generators: whatever is random is drawn from the seed and the step.
"""

from __future__ import annotations

import json
import shutil
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from training.engine.plan import Plan
from video_distilled_encoder.files import atomic_directory, read_tensors, sha256

_TENSORS = ("model", "optimizer")


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
    """Write a checkpoint into `root`, then delete all but the newest `keep`."""
    with atomic_directory(root / f"step-{checkpoint.step:08d}") as staging:
        sums = {}
        for name in _TENSORS:
            file = staging / f"{name}.safetensors"
            save_file({key: value.contiguous() for key, value in getattr(checkpoint, name).items()}, file)
            sums[file.name] = sha256(file)
        state = {"step": checkpoint.step, "plan": checkpoint.plan.knots, "sha256": sums}
        (staging / "state.json").write_text(json.dumps(state), encoding="utf-8")
    for old in _paths(root)[keep:]:
        shutil.rmtree(old)


def load_newest(root: Path) -> Checkpoint | None:
    """Load the newest checkpoint whose files are whole; damaged ones are passed over with a warning."""
    for path in _paths(root):
        try:
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            for name, digest in state["sha256"].items():
                if sha256(path / name) != digest:
                    raise OSError(f"{name} does not match its checksum")
            plan = Plan(tuple((step, progress) for step, progress in state["plan"]))
            return Checkpoint(state["step"], plan, *(read_tensors(path / f"{name}.safetensors") for name in _TENSORS))
        except (OSError, ValueError, KeyError) as error:
            warnings.warn(f"the checkpoint {path} is damaged ({error}) and passed over", stacklevel=2)
    return None


def _paths(root: Path) -> list[Path]:
    """Return the checkpoints in `root`, newest first."""
    return sorted(root.glob("step-*"), reverse=True)
