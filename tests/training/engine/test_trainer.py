import math
import random
from collections import deque
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from training.common import distributed
from training.common.distributed import World
from training.data.clips import ClipIndex
from training.data.frame_store import extract_source, open_stores
from training.data.loading import load_batches
from training.engine.assembly import build_method, clip_views
from training.engine.log import Log, Step
from training.engine.plan import Budget, Phase, Plan
from training.engine.schedule import Schedule
from training.engine.trainer import Trainer
from training.nn.optimizer import OptimizerConfig, clip
from training.nn.schedules import cosine, linear_warmup, warmup_cosine
from training.recipes.recipe import read_recipe
from video_distilled_encoder import InputError
from video_distilled_encoder.sources.video_files import VideoFile


def test_cosine_follows_dinos_scheduler():
    steps = np.arange(100)
    dino = 0.4 + 0.5 * (0.04 - 0.4) * (1 + np.cos(np.pi * steps / 100))
    assert np.allclose([cosine(0.04, 0.4, s / 100) for s in steps], dino)


def test_warmup_cosine_rises_to_its_peak_and_falls_to_its_end():
    values = [warmup_cosine(5e-4, 1e-6, 0.1, s / 1000) for s in range(1000)]
    assert values[0] == 0
    assert values[50] == pytest.approx(2.5e-4)
    assert values[100] == max(values) == pytest.approx(5e-4)
    assert values[550] == pytest.approx((5e-4 + 1e-6) / 2)
    assert values[999] == pytest.approx(1e-6, rel=0.01)


def test_linear_warmup():
    assert linear_warmup(0.04, 0.07, 0.3, 0.15) == pytest.approx(0.055)
    assert linear_warmup(0.04, 0.07, 0.3, 0.8) == 0.07
    assert linear_warmup(0.04, 0.07, 0.0, 0.0) == 0.07


def with_gradients():
    parameters = [torch.nn.Parameter(torch.zeros(4)) for _ in range(3)]
    for parameter, scale in zip(parameters[:2], (10.0, 0.5), strict=True):
        parameter.grad = torch.full((4,), scale)
    return parameters


def test_gradients_are_clipped_together_as_torch_does():
    ours, theirs = with_gradients(), with_gradients()
    norm = torch.nn.utils.clip_grad_norm_(theirs, 3.0)
    assert clip(ours, 3.0, together=True).item() == pytest.approx(norm.item())
    for one, other in zip(ours[:2], theirs[:2], strict=True):
        assert torch.allclose(one.grad, other.grad)


@pytest.mark.parametrize(("rule", "peak"), [("linear", 8e-3), ("square_root", 4e-3), ("absolute", 2e-3)])
def test_the_learning_rate_follows_the_batch_by_its_rule(rule, peak):
    config = OptimizerConfig(learning_rate=2e-3, learning_rate_rule=rule)
    assert config.peak(clips=1024, frames=3) == pytest.approx(peak)
    if rule == "linear":
        assert replace(config, learning_rate_batch="frames").peak(1024, 3) == pytest.approx(3 * peak)


def test_each_tensor_is_clipped_by_its_own_norm():
    parameters = with_gradients()
    largest = clip(parameters, 3.0)
    assert largest.item() == pytest.approx(20.0)
    assert parameters[0].grad.norm().item() == pytest.approx(3.0, rel=1e-5)
    assert math.isclose(parameters[1].grad.norm().item(), 1.0)
    assert parameters[2].grad is None


class Waits(TorchDispatchMode):
    """Notes operations whose result the CPU must wait for, and tensors made of Python's numbers, which it must send."""

    WAITING = tuple(getattr(torch.ops.aten, name).default for name in ("_local_scalar_dense", "nonzero", "lift_fresh"))

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in self.WAITING:
            self.seen.append(function)
        return function(*args, **(kwargs or {}))


SMALL = [
    "--extract.short_side=128",
    "--backbone.architecture=vit_tiny_patch16_224",
    "--views.global_size=64",
    "--views.local_size=32",
    "--objective.head.prototypes=64",
    "--run.batch_size=4",
    "--run.workers=0",
]


def trainer_and_sample(clip, folder, device, *settings, recipe="smoke"):
    recipe = read_recipe(recipe, [f"--run.device={device}", *SMALL, *settings])
    index = ClipIndex(open_stores({extract_source(VideoFile(clip), folder, recipe.extract): "videos"}), recipe.clips, 0)
    clips = clip_views(recipe, index)
    world = distributed.start(device)
    trainer = Trainer(recipe, build_method(recipe), clips, folder, world, [Phase(1.0, 1e9)])
    return trainer, next(load_batches(clips, Schedule(recipe, Plan.of(2), 0, world), world, recipe.run.workers))


@pytest.mark.parametrize("recipe", ["smoke", "release", "vfd-dense", "dino-time-aug", "ibot", "attmask"])
def test_a_step_does_not_wait_for_its_results(recipe, clip, tmp_path):
    trainer, sample = trainer_and_sample(clip, tmp_path, "cpu", "--clips.in_memory=false", recipe=recipe)
    batch = trainer.augment(sample)
    trainer.augment = lambda sample: batch  # it plans on the CPU, by numbers that are there
    trainer.set_schedules()
    with Waits() as waits:
        trainer.optimize(sample)
    assert waits.seen == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_does_not_wait_for_the_gpu(clip, tmp_path):
    trainer, sample = trainer_and_sample(clip, tmp_path, "cuda", "--objective.patch_share=0.5")
    trainer.set_schedules()
    trainer.optimize(sample)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.optimize(sample)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_compiled_parts_learn_the_same(clip, tmp_path, monkeypatch):
    shapes, torch_compile = set(), torch.compile

    def compile_eagerly(function, **options):
        compiled = torch_compile(function, backend="eager", **options)

        def call(tokens):
            shapes.add((function.__qualname__, tuple(tokens.shape)))
            return compiled(tokens)

        return call

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    values = []
    for option in ("false", "true"):
        torch.manual_seed(0)
        settings = [f"--run.compile={option}", "--backbone.drop_path=0.5", "--objective.token_dropout=1.0"]
        trainer, sample = trainer_and_sample(clip, tmp_path, "cpu", "--objective.patch_share=0.5", *settings)
        trainer.set_schedules()
        values.append(trainer.optimize(sample)[0]["loss"].item())
        assert bool(shapes) == (option == "true")
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    # teacher, the student's seen patches, local views; heads take (rows, C)
    assert {shape[1] for name, shape in shapes if name.startswith("Block")} == {1 + 16, 1 + 8, 1 + 4}


def test_the_time_of_a_step_holds_what_the_device_does_behind(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=10.0)

    def arrive(numbers):
        clock.now += 0.2  # the numbers of a block come when the device has done it
        return numbers

    monkeypatch.setattr("training.engine.log.distributed.average", arrive)
    monkeypatch.setattr("training.engine.log.time", SimpleNamespace(perf_counter=lambda: clock.now))
    log = Log(tmp_path, 2, World(0, 1, 0, torch.device("cpu")))
    for number in (1, 2):
        step = Step({"step": number}, clock.now, {"loss": torch.tensor(1.0)}, {"clips": 10.0}, dict)
        rows = log.add(step)
    assert [row["seconds"] for row in rows] == [pytest.approx(0.1)] * 2
    assert rows[0]["clips"] == pytest.approx(100)


class Clocked(Trainer):
    """A trainer whose steps take no time but on a clock of its own."""

    def __init__(self, recipe, step_seconds):
        self.recipe, self.clips, self.step_seconds = recipe, None, step_seconds
        self.world = World(0, 1, 0, torch.device("cpu"))
        self.plan, self.step, self.now = Plan.of(10), 0, 0.0
        self.log, self.checkpoints = SimpleNamespace(cut=lambda step: None), nullcontext()
        self.seen, self.saved = [], []

    def _train_step(self, batches, bar):
        places = next(batches)
        self.seen.append((self.step, places, self.plan.progress(self.step)))
        seconds = self.step_seconds(self.recipe.views.at(places[0].progress).global_size)
        self.now += seconds * random.Random(self.step).uniform(0.7, 1.3)
        self.step += 1

    def save(self):
        self.saved.append(self.plan)


def draw_ahead(clips, schedule, world, workers, ahead=24):
    """Yield batches as a loader does whose workers are some batches ahead."""
    batches = iter(schedule)
    drawn = deque(next(batches) for _ in range(ahead))
    while True:
        yield drawn.popleft()
        drawn.append(next(batches))


@pytest.mark.parametrize("low_resolution", [0.0, 0.6, 0.95, 1.0])
def test_batches_that_are_drawn_ahead_keep_their_resolution_and_the_run_its_time(monkeypatch, low_resolution):
    monkeypatch.setattr("training.engine.trainer.load_batches", draw_ahead)
    recipe = read_recipe("smoke", [f"--views.low_resolution={low_resolution}", "--run.checkpoint_every=1000000"])
    trainer = Clocked(recipe, {32: 0.25, 64: 0.6}.get)  # arithmetic tells that they differ 4 times
    phases = [Phase(end, cost) for end, cost in zip(recipe.phases(), (1.0, 4.0), strict=False)]
    budget = Budget(240.0, phases, clock=lambda: trainer.now)

    def leave():
        trainer.save()
        trainer.now += 2.0

    assert trainer.run(budget, leave, clips_before=1000)
    leave()
    assert trainer.now == pytest.approx(240.0, rel=0.02)
    assert [place.position for _, places, _ in trainer.seen for place in places] == list(
        range(1000, 1000 + 4 * trainer.step)
    )
    sizes = []
    for step, places, progress in trainer.seen:
        (size,) = {recipe.views.at(place.progress).global_size for place in places}
        # the plan when it was trained, and the last one, by which a run goes on, say the same
        assert size == recipe.views.at(progress).global_size == recipe.views.at(trainer.plan.progress(step)).global_size
        sizes.append(size)
    assert sizes == sorted(sizes)
    assert trainer.seen[-1][2] > 0.98
    assert trainer.saved[0].steps < 2000  # what is saved first is a plan already


def test_a_time_that_is_up_before_the_schedules_are_leaves_the_plan(monkeypatch):
    monkeypatch.setattr("training.engine.trainer.load_batches", draw_ahead)
    trainer = Clocked(read_recipe("smoke"), lambda size: 0.1 if trainer.step < 300 else 40.0)
    budget = Budget(100.0, [Phase(1.0, 1.0)], clock=lambda: trainer.now)
    assert not trainer.run(budget)
    assert 100.0 < trainer.now < 155.0
    assert trainer.plan.progress(trainer.step) == pytest.approx(0.3, abs=0.05)
    trainer = Clocked(read_recipe("smoke"), lambda size: 1.0)
    with pytest.raises(InputError, match="the time was over after 3 steps, before one knew how long they take"):
        trainer.run(Budget(2.0, [Phase(1.0, 1.0)], clock=lambda: trainer.now))
