"""The training loop: batches in, a teacher and a log out."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training import checkpoint, photometric
from training.checkpoint import Checkpoint
from training.clips import ClipIndex
from training.dataset import Sample, load_batches
from training.methods.base import Method
from training.recipe import Recipe
from training.schedules import cosine, warmup_cosine
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.model_config import ModelConfig


class Trainer:
    """Trains a method on the clips of an index.

    Each step: views to the device, photometrics, losses, gradients clipped per tensor, AdamW, teacher's moving average.

    Args:
        recipe: all settings.
        method: student, teacher and loss.
        index: the clips.
        model_config: mean and standard deviation of the pixels.
        out: the run directory; receives `log.jsonl` and `checkpoints/`.
        device: where to train.
    """

    def __init__(
        self,
        recipe: Recipe,
        method: Method,
        index: ClipIndex,
        model_config: ModelConfig,
        out: Path,
        device: torch.device,
    ) -> None:
        self.recipe = recipe
        self.method = method.to(device).train()
        self.index = index
        self.model_config = model_config
        self.device = device
        self.log = Log(out / "log.jsonl", every=recipe.run.log_every)
        self.checkpoints = out / "checkpoints"
        self.steps = recipe.run.steps or max(1, round(recipe.run.epochs * len(index) / recipe.run.batch_size))
        self.step = 0
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(method.student), lr=0.0, betas=recipe.optimizer.betas, fused=True
        )
        batch = recipe.run.batch_size
        if recipe.optimizer.learning_rate_batch == "frames":
            batch *= recipe.clips.frames
        self.peak_learning_rate = recipe.optimizer.learning_rate * batch / 256
        precision = recipe.run.precision
        self.bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
        if recipe.run.compile:
            method.student.backbone.compile()
            method.teacher.backbone.compile()

    def run(self, max_seconds: float | None = None) -> bool:
        """Train to the last step, or until the time is up or the process is asked to stop.

        A checkpoint is written in either case, but for a loss that is not finite.

        Returns:
            Whether the last step was reached.

        Raises:
            InputError: the loss became infinite or NaN; the last checkpoint stays.
        """
        start = time.monotonic()
        self.log.cut(self.step)
        batches = load_batches(self.index, self.recipe, start=self.step, steps=self.steps, device=self.device)
        bar = tqdm(total=self.steps, initial=self.step, desc="train", unit="step", dynamic_ncols=True)
        with _Stop() as stop, bar:
            while self.step < self.steps and not stop.asked:
                if max_seconds is not None and time.monotonic() - start > max_seconds:
                    break
                self._train_step(batches, bar)
                if self.step % self.recipe.run.checkpoint_every == 0:
                    self.save()
        self.save()
        return self.step == self.steps

    def _train_step(self, batches: Iterator[Sample], bar: tqdm) -> None:
        begin = time.perf_counter()
        sample = next(batches)
        waited = time.perf_counter() - begin
        values = self.set_schedules()
        torch.manual_seed(step_seed(self.recipe.run.seed, self.step))
        metrics = self.optimize(sample, self.step / self.steps, values["teacher_momentum"])
        self.step += 1
        seconds = time.perf_counter() - begin
        times = {"seconds": seconds, "data_wait": waited, "clips_per_second": self.recipe.run.batch_size / seconds}
        if rows := self.log.add({"step": self.step, **values, **times}, metrics):
            last = rows[-1]
            share = sum(row["data_wait"] for row in rows) / sum(row["seconds"] for row in rows)
            bar.set_postfix(loss=f"{last['loss']:.3f}", data_wait=f"{share:.0%}", refresh=False)
        bar.update()

    def set_schedules(self) -> dict[str, float]:
        """Set learning rate and weight decay for the coming step; return all scheduled values."""
        config, progress = self.recipe.optimizer, self.step / self.steps
        rate = warmup_cosine(self.peak_learning_rate, config.learning_rate_end, config.warmup, progress)
        decay = cosine(*config.weight_decay, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
            group["weight_decay"] = decay if group["decayed"] else 0.0
        return {
            "learning_rate": rate,
            "weight_decay": decay,
            "teacher_momentum": cosine(*config.teacher_momentum, progress),
        }

    def optimize(self, sample: Sample, progress: float, teacher_momentum: float) -> dict[str, Tensor]:
        """Do one step on a batch; return the metrics, still on the device."""
        views = self.augment(sample)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            losses = self.method(views, progress)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        norm = clip_each(self.method.student.parameters(), self.recipe.optimizer.clip_grad)
        if progress < self.recipe.optimizer.freeze_last_layer:
            for parameter in self.method.last_layer():
                parameter.grad = None
        self.optimizer.step()
        self.method.update_teacher(teacher_momentum)
        return {**losses.metrics, "grad_norm": norm}

    def augment(self, sample: Sample) -> dict[str, Tensor]:
        """Turn uint8 views into augmented, normalised pixels on the device: per group (B, n, 3, H, W) float32."""
        return {
            group: photometric.apply(
                views, sample["photometric"][group], self.model_config.mean, self.model_config.std, self.device
            )
            for group, views in sample["views"].items()
        }

    def save(self) -> None:
        """Flush the log and write a checkpoint, unless the newest losses are not finite."""
        self.log.flush()
        checkpoint.save(
            self.checkpoints,
            Checkpoint(self.step, dict(self.method.state_dict()), self._optimizer_state()),
            self.recipe.run.keep_checkpoints,
        )

    def resume(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint."""
        self.step = saved.step
        self.method.load_state_dict(saved.model)
        parameters = dict(self.method.student.named_parameters())
        for key, tensor in saved.optimizer.items():
            name, _, entry = key.rpartition("/")
            self.optimizer.state[parameters[name]][entry] = tensor.to(self.device)

    def _optimizer_state(self) -> dict[str, Tensor]:
        state = {}
        for name, parameter in self.method.student.named_parameters():
            for entry, value in self.optimizer.state.get(parameter, {}).items():
                state[f"{name}/{entry}"] = value
        return state


class Log:
    """The run's log: one JSON line per step. Metrics stay on the device until a block of steps is written.

    Args:
        path: the file, appended to.
        every: steps per block.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path = path
        self.every = every
        self._rows: list[tuple[Mapping[str, float], dict[str, Tensor]]] = []

    def add(self, values: Mapping[str, float], metrics: dict[str, Tensor]) -> list[dict[str, float]]:
        """Add a step; return the rows of the block if this completes one.

        Raises:
            InputError: a loss is not finite.
        """
        self._rows.append((values, metrics))
        return self.flush() if len(self._rows) >= self.every else []

    def flush(self) -> list[dict[str, float]]:
        """Write the steps held back and return their rows."""
        if not self._rows:
            return []
        names = list(self._rows[0][1])
        table = torch.stack([torch.stack([m[name].detach().float().cpu() for name in names]) for _, m in self._rows])
        rows = [
            {**values, **dict(zip(names, numbers, strict=True))}
            for (values, _), numbers in zip(self._rows, table.tolist(), strict=True)
        ]
        self._rows.clear()
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        for row in rows:
            if not abs(row["loss"]) < float("inf"):
                raise InputError(
                    f"the loss became {row['loss']} at step {row['step']}; lower optimizer.learning_rate, raise "
                    "optimizer.warmup, or set run.precision to fp32, and --resume from the last checkpoint"
                )
        return rows

    def cut(self, step: int) -> None:
        """Drop what was logged after `step`, as when a run goes on from an earlier checkpoint."""
        self.path.touch()
        rows = [line for line in self.path.read_text(encoding="utf-8").splitlines() if json.loads(line)["step"] <= step]
        self.path.write_text("".join(f"{line}\n" for line in rows), encoding="utf-8")


def clip_each(parameters: Iterator[torch.nn.Parameter], limit: float | None) -> Tensor:
    """Scale the gradient of each tensor down to norm `limit` (DINO's clipping); return the largest norm there was."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch._foreach_norm(gradients)
    stacked = torch.stack(norms)
    if limit is not None:
        factors = (limit / (stacked + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, list(factors.unbind()))
    return stacked.max()


def step_seed(seed: int, step: int) -> int:
    """Return the seed of a step's own randomness (drop path): no generator has a state that must be kept."""
    return int(np.random.SeedSequence([seed, 2, step]).generate_state(1)[0])


def _parameter_groups(student: torch.nn.Module) -> list[dict[str, object]]:
    """Split the parameters into decayed ones, and biases and other vectors, which are not."""
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in parameters if parameter.ndim > 1]
    exempt = [parameter for parameter in parameters if parameter.ndim <= 1]
    return [{"params": decayed, "decayed": True}, {"params": exempt, "decayed": False}]


class _Stop:
    """While active, SIGTERM and Ctrl-C ask for an end after the current step; a second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.asked = False
        self._old: dict[int, Callable[..., object] | int | None] = {}

    def __enter__(self) -> _Stop:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._old[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
