"""The training loop: batches in, an encoder and a log out."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from training.common import distributed, keyed, stop
from training.common.distributed import World
from training.common.monitors import bf16_peak, peak_memory
from training.data.batch import Batch, augment, split
from training.data.loading import ClipViews, load_batches
from training.data.resident import ResidentFrames
from training.engine.checkpoint import Checkpoint, CheckpointWriter
from training.engine.log import Log, Step
from training.engine.plan import Budget, Phase, Plan, phase_at
from training.engine.schedule import Schedule, share_of_batch
from training.methods.method import At, Method
from training.nn.attention import write_out
from training.nn.compiling import compile_parts
from training.nn.drop_path import DropPaths
from training.nn.optimizer import clip, parameter_groups
from training.recipes.recipe import Recipe
from video_distilled_encoder.errors import InputError

_NEARLY_OVER = 0.9
"""Progress from which a run whose time is up may end its schedules at once."""


class Trainer:
    """Trains a method on clips.

    Each step: views to the device, photometrics, losses, gradients averaged over processes and clipped, AdamW, what the
    method does after it. Nothing in it waits for the device but the log, every `run.log_every` steps.

    Args:
        recipe: all settings.
        method: what is trained, and its losses.
        clips: the samples, of all its places.
        out: the run directory; receives the log and `checkpoints/`.
        world: this process among its peers.
        phases: of the run, by the floating-point operations of a clip.
        frames: on the device, if that cuts the views (`clips.in_memory: device`).
    """

    def __init__(
        self,
        recipe: Recipe,
        method: Method,
        clips: ClipViews,
        out: Path,
        world: World,
        phases: Sequence[Phase],
        frames: ResidentFrames | None = None,
    ) -> None:
        self.recipe = recipe
        self.method = method.to(world.device).train()
        if world.device.type == "cpu":
            write_out(method.trained)
        self.replica = distributed.replicate(self.method)
        self.clips = clips
        self.phases = phases
        self.frames = frames
        self.mean = torch.tensor(recipe.backbone.config.mean, device=world.device)
        self.std = torch.tensor(recipe.backbone.config.std, device=world.device)
        self.world = world
        self.log = Log(out, recipe.run.log_every, world, recipe.run.wandb, method.watch)
        self.checkpoints = CheckpointWriter(out / "checkpoints", recipe.run.keep_checkpoints)
        self.plan = Plan.of(recipe.run.total_steps(clips.index.samples))
        self.step = 0
        self.drop_paths = DropPaths(method.trained, world.rank)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(method.trained, recipe.optimizer.backbone_scale),
            lr=0.0,
            betas=recipe.optimizer.betas,
            fused=True,
        )
        self.peak_learning_rate = recipe.optimizer.peak(recipe.run.batch_size, recipe.clips.frames)
        self.bf16 = recipe.run.uses_bf16(world.device.type)
        self.peak = None
        if world.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(world.device)  # of an earlier run in this process
        if world.device.type == "cuda" and self.bf16:
            one = bf16_peak(torch.cuda.get_device_name(world.device))
            self.peak = one and one * world.size
        if recipe.run.compile:
            compile_parts(self.method)

    def run(
        self, budget: Budget | None = None, leave: Callable[[], None] = lambda: None, clips_before: int = 0
    ) -> bool:
        """Train to the last step, or until a process is asked to stop (`training.common.stop`).

        Args:
            budget: what sets the last step; that of the plan if it is not given.
            leave: writes what a run leaves. Called early in a run with a budget, which keeps as much time for its end.
            clips_before: clips that earlier runs of a chain have had, whose order this one goes on with.

        Returns:
            Whether the last step was reached, and with it the end of all schedules.

        Raises:
            InputError: the loss is not finite or the features have collapsed, and earlier checkpoints stay; or the time
                holds next to no steps.
        """
        self.log.cut(self.step)
        if budget and self.step < self.plan.steps:
            self.plan = budget.start(self.step, self.plan)
        schedule = Schedule(self.recipe, self.plan, self.step, self.world, clips_before, endless=budget is not None)
        bar = tqdm(
            total=self.plan.steps,
            initial=self.step,
            desc="train",
            unit="step",
            dynamic_ncols=True,
            disable=not self.world.is_main,
        )
        with bar, self.checkpoints, self._load(schedule) as batches:
            while self.step < self.plan.steps and not self._any_process(stop.asked()):
                self._train_step(batches, bar)
                if self.step % self.recipe.run.checkpoint_every == 0:
                    self.save()
                if budget:
                    if self.step < self.plan.steps and not self._is_in_time(budget, schedule, leave):
                        break
                    bar.total = self.plan.steps
                    bar.set_description(f"{tqdm.format_interval(max(budget.left(), 0))} left", refresh=False)
        return self.step == self.plan.steps

    def _is_in_time(self, budget: Budget, schedule: Schedule, leave: Callable[[], None]) -> bool:
        """Revise the plan if it is time to; tell whether there is time to go on."""
        if not budget.measure(self.step, self.plan):
            if not self._any_process(budget.is_late(self.step)):
                return True
            budget.measure_anew(self.step)
        if budget.reserve is None and self._revise(budget, schedule):
            budget.keep_for_the_end(leave)  # its checkpoint holds the plan, as far as it is known
        return self._revise(budget, schedule)

    def _revise(self, budget: Budget, schedule: Schedule) -> bool:
        """Fit the plan to the time that is left; what has been drawn keeps its resolution.

        Returns:
            Whether there is time; if there is none while the schedules are far from their end, the plan stays.
        """
        plan = distributed.from_main(budget.revised(self.step, self.plan))
        if plan.steps == self.step and self.plan.progress(self.step) < _NEARLY_OVER:
            if budget.reserve is None:
                raise InputError(
                    f"the time was over after {self.step} steps, before one knew how long they take; give more"
                )
            return False
        views = self.recipe.views
        drawn = range(self.step, schedule.drawn)
        if any(views.at(plan.progress(step), step) != views.at(self.plan.progress(step), step) for step in drawn):
            plan = self.plan.revised(schedule.drawn, max(plan.steps, schedule.drawn + 1))
        self.plan = schedule.plan = plan
        return True

    def _any_process(self, flag: bool) -> bool:
        """Tell whether the flag is set in any process; several ask one another only between blocks of the log."""
        if self.world.size > 1 and self.step % self.recipe.run.log_every:
            return False
        return distributed.any_process(flag, self.world.device)

    def prepare(self) -> None:
        """Let the method see batches before the first step, if it wants any."""
        schedule = Schedule(self.recipe, self.plan, 0, self.world)
        with self._load(schedule) as batches:
            seen = tqdm(
                batches, "prepare", unit="batch", leave=False, dynamic_ncols=True, disable=not self.world.is_main
            )
            self.method.prepare(self.augment(batch) for batch in seen)

    def _load(self, schedule: Schedule) -> closing[Generator[Batch, None, None]]:
        return closing(load_batches(self.clips, schedule, self.world, self.recipe.run.workers))

    def _train_step(self, batches: Iterator[Batch], bar: tqdm) -> None:
        begin = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - begin
        values = self.set_schedules()
        metrics, followed = self.optimize(batch)
        self.step += 1
        values = {"step": self.step, **values, **followed}
        values |= {"data_wait": waited, "memory_gib": peak_memory(self.world.device)}
        if rows := self.log.add(Step(values, begin, metrics, self._rates(), self.method.stopwatch.take())):
            bar.set_postfix(_postfix(rows), refresh=False)
        bar.update()

    def _rates(self) -> dict[str, float]:
        """Return what the last step did, for all processes together."""
        clips = self.recipe.run.batch_size
        tflop = clips * phase_at(self.phases, self.plan.progress(self.step - 1)).cost / 1e12
        rates = {"clips_per_second": float(clips), "tflop_per_second": tflop}
        return rates | ({"utilization": tflop / self.peak} if self.peak else {})

    def set_schedules(self) -> dict[str, float]:
        """Set learning rate and weight decay for the coming step; return them."""
        values = self.recipe.optimizer.at(self.plan.progress(self.step), self.peak_learning_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * values["learning_rate"]
            group["weight_decay"] = values["weight_decay"] if group["decayed"] else 0.0
        return values

    def optimize(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Do one step on this process's share of a batch.

        Returns:
            The metrics, still on the device, and what the method tells of the step.
        """
        parts = self.recipe.run.accumulate
        self.optimizer.zero_grad(set_to_none=True)
        collected: list[dict[str, Tensor]] = []
        for number, part in enumerate(split(batch, parts)):
            at = self.at(number)
            self.drop_paths.begin(at.key)
            augmented = self.augment(part)
            with distributed.averaging(self.replica, number == parts - 1):
                with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.bf16):
                    losses = self.replica(augmented, at)
                (losses.total / parts).backward()
            collected.append({"loss": losses.total.detach(), **losses.metrics})
        config = self.recipe.optimizer
        norm = clip(list(self.method.trained.parameters()), config.clip_grad, config.clip_norm == "global")
        for parameter in self.method.held(at):
            parameter.grad = None
        self.optimizer.step()
        metrics = {name: torch.stack([part[name] for part in collected]).mean() for name in collected[0]}
        return {**metrics, "grad_norm": norm}, self.method.after_step(at)

    def at(self, part: int = 0) -> At:
        """Tell where in the run the coming step is, or a part of it."""
        parts = self.recipe.run.accumulate
        share = share_of_batch(self.recipe, self.world)
        key = keyed.key_of(self.recipe.run.seed, self.step * parts + part)
        return At(self.plan.progress(self.step), key, self.world.rank * share + part * share // parts)

    def augment(self, batch: Batch) -> Batch:
        """Return what the method takes."""
        return augment(batch, self.mean, self.std, self.frames.cut if self.frames else None)

    def save(self) -> None:
        """Write what the log holds back, and a checkpoint, the latter while training goes on."""
        self.log.flush()
        if self.world.is_main:
            self.checkpoints.save(
                Checkpoint(self.step, self.plan, dict(self.method.state_dict()), self._optimizer_state())
            )

    def resume(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint."""
        self.step, self.plan = saved.step, saved.plan
        self.method.load_state_dict(saved.model)
        parameters = dict(self.method.trained.named_parameters())
        for key, tensor in saved.optimizer.items():
            name, _, entry = key.rpartition("/")
            self.optimizer.state[parameters[name]][entry] = tensor.to(self.world.device)

    def _optimizer_state(self) -> dict[str, Tensor]:
        state = {}
        for name, parameter in self.method.trained.named_parameters():
            for entry, value in self.optimizer.state.get(parameter, {}).items():
                state[f"{name}/{entry}"] = value
        return state


def _postfix(rows: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Return what the bar tells of a block of steps."""
    last = rows[-1]
    seconds = sum(row["seconds"] for row in rows)
    parts = ["data_wait", *(name for name in last if name.endswith("_time"))]
    shares = {name.replace("_", " "): f"{sum(row[name] for row in rows) / seconds:.0%}" for name in parts}
    speed = {"clips/s": f"{last['clips_per_second']:.0f}", "TFLOP/s": f"{last['tflop_per_second']:.3g}"}
    if "utilization" in last:
        speed["of peak"] = f"{last['utilization']:.0%}"
    return {"loss": f"{last['loss']:.3f}", **shares, **speed, "GiB": f"{last['memory_gib']:.1f}"}
