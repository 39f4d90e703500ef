"""The run's log: one JSON line per step, TensorBoard, wandb if asked for, and a watch over what may go wrong."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from training.common import distributed
from training.common.distributed import World
from video_distilled_encoder.errors import InputError, import_extra, warn
from video_distilled_encoder.files import atomic_path


class Step(NamedTuple):
    """What is logged of a step."""

    values: Mapping[str, float]
    """Known when it is handed over; among them the `step`."""
    begin: float
    """When it began, by `time.perf_counter`."""
    metrics: Mapping[str, Tensor]
    """Scalars that stay on the device."""
    rates: Mapping[str, float]
    """How much of something was done in the step, which is logged by the second, of its block."""
    times: Callable[[], Mapping[str, float]]
    """Returns the seconds of its parts, once the device has done them."""


class Log:
    """Collects every step's numbers; metrics stay on the device until a block of steps is written.

    A device works behind the processor that gives it its work. So the seconds of a step, and what is done a second, are
    those of its block, at whose end the two come together.

    Args:
        out: the run directory; the main process writes `log.jsonl` and `tensorboard/` in it.
        every: steps per block.
        world: the processes whose metrics are averaged.
        wandb: name of a wandb project to report to as well.
        watch: returns why the run should stop, given a row, if it should.
    """

    def __init__(
        self,
        out: Path,
        every: int,
        world: World,
        wandb: str | None = None,
        watch: Callable[[Mapping[str, float]], str | None] = lambda row: None,
    ) -> None:
        self.path = out / "log.jsonl"
        self.every = every
        self.world = world
        self.watch = watch
        self._held: list[Step] = []
        self._sinks: list[Any] = []
        if world.is_main:
            self._sinks = [sink for sink in (_tensorboard(out), _wandb(out, wandb)) if sink is not None]

    def add(self, step: Step) -> list[dict[str, float]]:
        """Add a step; return the rows of the block if this completes one.

        Raises:
            InputError: a loss is not finite, or the run should stop for another reason.
        """
        self._held.append(step)
        return self.flush() if len(self._held) >= self.every else []

    def flush(self) -> list[dict[str, float]]:
        """Write the steps held back and return their rows."""
        if not self._held:
            return []
        names = list(self._held[0].metrics)
        device = self.world.device
        table = torch.stack(
            [torch.stack([step.metrics[name].detach().float().to(device) for name in names]) for step in self._held]
        )
        numbers = distributed.average(table).tolist()
        # The device has done all of the block: its numbers are here.
        seconds = time.perf_counter() - self._held[0].begin
        rates = {name: sum(step.rates[name] for step in self._held) / seconds for name in self._held[0].rates}
        rows = [
            {
                **step.values,
                **step.times(),
                "seconds": seconds / len(self._held),
                **rates,
                **dict(zip(names, row, strict=True)),
            }
            for step, row in zip(self._held, numbers, strict=True)
        ]
        self._held.clear()
        if self.world.is_main:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_lines(rows))
            for sink in self._sinks:
                sink(rows)
        self._watch(rows)
        return rows

    def cut(self, step: int) -> None:
        """Drop what was logged after `step`, as when a run goes on from an earlier checkpoint."""
        if not self.world.is_main:
            return
        rows = read_log(self.path) if self.path.exists() else []
        with atomic_path(self.path) as temporary:
            temporary.write_text(_lines(row for row in rows if row["step"] <= step), encoding="utf-8")

    def _watch(self, rows: Sequence[Mapping[str, float]]) -> None:
        for row in rows:
            if not abs(row["loss"]) < float("inf"):
                raise InputError(
                    f"the loss became {row['loss']} at step {row['step']:.0f}; lower optimizer.learning_rate, raise "
                    "optimizer.warmup, or set run.precision to fp32, in another --out, which may go on from this run's "
                    f"last checkpoint with --init-from {self.path.parent}"
                )
            if reason := self.watch(row):
                raise InputError(reason)


def read_log(path: Path) -> list[dict[str, float]]:
    """Return the rows of a run's `log.jsonl`; lines that were not written whole are left out with a warning."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [row for line in lines if (row := _row_of(line))]
    if len(rows) < len(lines):
        warn(f"{path} has lines that were not written whole: {len(lines) - len(rows)} of {len(lines)}, left out")
    return rows


def _row_of(line: str) -> dict[str, float] | None:
    try:
        row = json.loads(line)
        return row if row["step"] >= 0 else None
    except (ValueError, TypeError, KeyError):
        return None


def _lines(rows: Iterable[Mapping[str, float]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _tensorboard(out: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    writer = SummaryWriter(str(out / "tensorboard"))

    def write(rows: Sequence[Mapping[str, float]]) -> None:
        for name in rows[-1].keys() - {"step"}:
            mean = sum(row[name] for row in rows) / len(rows)
            writer.add_scalar(name, mean, int(rows[-1]["step"]))
        writer.flush()

    return write


def _wandb(out: Path, project: str | None) -> Any:
    if project is None:
        return None
    run = import_extra("wandb", "wandb").init(project=project, name=out.name, dir=str(out), resume="allow", id=out.name)

    def write(rows: Sequence[Mapping[str, float]]) -> None:
        for row in rows:
            run.log(dict(row), step=int(row["step"]))

    return write
