"""Time and memory of one whole training step, against the same method written the textbook way, or lightly-train's.

    python tests/benchmarks/training_step.py --recipe vfd-vits16 --batch 4
    python tests/benchmarks/training_step.py --recipe dino-frames --batch 8 --against lightly-train

A step is: forward passes of student and teacher, loss, backward pass, clipping, AdamW, the teacher's moving average.
All get the same views, already augmented, and a ViT-S/16 without drop path. Each is run in a process of
its own, for its own peak of memory. lightly-train must be installed for the second.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from training.common import distributed
from training.engine.assembly import build_method
from training.engine.plan import Phase
from training.engine.trainer import Trainer
from training.recipes.recipe import Recipe, read_recipe
from video_distilled_encoder.model_config import ModelConfig

Step = Callable[[dict[str, Tensor]], None]


def make_views(recipe: Recipe, device: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    views, frames = recipe.views, recipe.clips.frames
    counts = {"vfd": (frames, (frames - 1) * views.local_views), "dino": (2, views.local_views)}[recipe.method]
    sizes = views.global_size, views.local_size
    return {
        group: torch.randn(recipe.run.batch_size, count, 3, size, size, generator=generator).to(device)
        for group, count, size in zip(("global", "local"), counts, sizes, strict=True)
    }


def ours(recipe: Recipe, device: str) -> Step:
    world = distributed.start(device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            recipe,
            build_method(recipe),
            SimpleNamespace(index=SimpleNamespace(samples=1000)),
            Path(folder),
            world,
            [Phase(1.0, 1.0)],
        )
    trainer.set_schedules()
    trainer.augment = lambda batch: batch  # it is left out

    def step(views: dict[str, Tensor]) -> None:
        trainer.optimize({group: {"pixels": pixels} for group, pixels in views.items()})

    return step


def textbook_vfd(recipe: Recipe, device: str) -> Step:
    """Equations 1 and 2 as they are read: frame by frame, all logits, and DINO's loops over parameters."""
    method = build_method(recipe).to(device).train()
    student, teacher, objective = method.student, method.teacher, recipe.objective
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-6, weight_decay=0.04)
    centers = torch.zeros(2, objective.head.prototypes, device=device)

    def cross_entropy(kind: int, predicted: Tensor, target: Tensor) -> Tensor:
        probabilities = torch.softmax((target - centers[kind]) / 0.04, dim=-1)
        log_predicted = torch.log_softmax(predicted / objective.student_temperature, dim=-1)
        return -(probabilities * log_predicted).sum(-1).mean()

    def step(views: dict[str, Tensor]) -> None:
        frames = views["global"].unbind(1)
        local = views["local"].unflatten(1, (len(frames) - 1, -1))
        losses, means = [], []
        for number in range(1, len(frames)):
            with torch.no_grad():
                tokens = teacher.backbone.forward_features(frames[number])
                cls, patches = teacher.head(tokens[:, 0]), teacher.patch_head(tokens[:, 1:])
            predicted = student.predictor(student.backbone.forward_features(frames[number - 1]))[:, 1:]
            dense = cross_entropy(1, student.patch_head(predicted), patches)
            of_frame = [
                cross_entropy(0, student.head(student.predictor(student.backbone.forward_features(view))[:, 0]), cls)
                for view in local[:, number - 1].unbind(1)
            ]
            losses.append(objective.dense_weight * dense + objective.global_weight * sum(of_frame) / len(of_frame))
            means.append(torch.stack([cls.mean(0), patches.mean((0, 1))]))
        optimizer.zero_grad()
        (sum(losses) / len(losses)).backward()
        centers.mul_(0.9).add_(sum(means) / len(means), alpha=0.1)
        _finish(optimizer, student, teacher)

    return step


def textbook_dino(recipe: Recipe, device: str) -> Step:
    """DINO as its paper's pseudocode has it, with multi-crop."""
    method = build_method(recipe).to(device).train()
    student, teacher, objective = method.student, method.teacher, recipe.objective
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-6, weight_decay=0.04)
    center = torch.zeros(objective.head.prototypes, device=device)

    def step(views: dict[str, Tensor]) -> None:
        crops = [*views["global"].unbind(1), *views["local"].unbind(1)]
        with torch.no_grad():
            targets = [teacher.head(teacher.backbone.forward_features(view)[:, 0]) for view in crops[:2]]
        outputs = [student.head(student.backbone.forward_features(view)[:, 0]) for view in crops]
        losses = [
            -(F.softmax((target - center) / 0.04, -1) * F.log_softmax(output / 0.1, -1)).sum(-1).mean()
            for i, target in enumerate(targets)
            for j, output in enumerate(outputs)
            if i != j
        ]
        optimizer.zero_grad()
        (sum(losses) / len(losses)).backward()
        center.mul_(0.9).add_(torch.cat(targets).mean(0), alpha=0.1)
        _finish(optimizer, student, teacher)

    return step


def _finish(optimizer: torch.optim.Optimizer, student: torch.nn.Module, teacher: torch.nn.Module) -> None:
    for parameter in student.parameters():
        if parameter.grad is not None:
            factor = 3.0 / (parameter.grad.norm().item() + 1e-6)
            if factor < 1:
                parameter.grad.mul_(factor)
    optimizer.step()
    with torch.no_grad():
        learnt = dict(student.named_parameters())
        for name, parameter in teacher.named_parameters():
            parameter.mul_(0.996).add_(learnt[name], alpha=0.004)


def lightly_train(recipe: Recipe, device: str) -> Step:
    from lightly_train._methods.dino.dino import DINO, DINOAdamWArgs, DINOArgs
    from lightly_train._models.embedding_model import EmbeddingModel
    from lightly_train._models.timm.timm import TIMMModelWrapper
    from lightly_train._optim.optimizer_type import OptimizerType

    arguments = DINOArgs(
        output_dim=recipe.objective.head.prototypes,
        teacher_temp=0.04,
        warmup_teacher_temp=0.04,
        warmup_teacher_temp_steps=10,
        norm_last_layer=recipe.objective.head.norm_last_layer,
    )
    model = EmbeddingModel(TIMMModelWrapper(ModelConfig().build_backbone()))
    batch = recipe.run.batch_size
    method = DINO(arguments, DINOAdamWArgs(lr=1e-6), model, global_batch_size=batch, num_input_channels=3)
    method = method.to(device).train()
    method.method_args.momentum_start = 0.996
    method._trainer = SimpleNamespace(global_step=5, estimated_stepping_batches=100, max_epochs=1, current_epoch=0)
    assert DINO.optimizer_args_cls(OptimizerType.ADAMW) is DINOAdamWArgs
    parameters = [p for module in method.trainable_modules().modules for p in module.parameters() if p.requires_grad]
    optimizer = method.optimizer_args.get_optimizer(parameters, lr_scale=1.0)

    def step(views: dict[str, Tensor]) -> None:
        crops = [*views["global"].unbind(1), *views["local"].unbind(1)]
        optimizer.zero_grad()
        method.training_step_impl({"views": crops}, 0).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 3.0)
        optimizer.step()

    return step


def measure(name: str, recipe: Recipe, device: str, repeats: int) -> dict[str, float]:
    torch.manual_seed(0)
    textbook = {"vfd": textbook_vfd, "dino": textbook_dino}[recipe.method]
    step = {"ours": ours, "textbook": textbook, "lightly-train": lightly_train}[name](recipe, device)
    views = make_views(recipe, device)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            step(views)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": sorted(times[1:])[repeats // 2], "mib": peak / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="vfd-vits16")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--against", default="textbook", choices=("textbook", "lightly-train"))
    parser.add_argument("--only")
    args = parser.parse_args()
    settings = [f"--run.batch_size={args.batch}", f"--run.device={args.device}", "--backbone.drop_path=0"]
    recipe = read_recipe(args.recipe, settings)
    if args.only:
        print(json.dumps(measure(args.only, recipe, args.device, args.repeats)))
        return
    results = {}
    for name in (args.against, "ours"):
        output = subprocess.run([sys.executable, *sys.argv, "--only", name], capture_output=True, text=True)
        if output.returncode:
            sys.exit(output.stderr)
        results[name] = json.loads(output.stdout.splitlines()[-1])
        seconds, mib = results[name].values()
        print(f"{name:13} {seconds:7.3f} s  {args.batch / seconds:8.2f} clips/s  {mib:9.0f} MiB")
    speed, memory = (results[args.against][key] / results["ours"][key] for key in ("seconds", "mib"))
    print(f"ours against {args.against}: {speed:.2f} times as fast, 1/{memory:.1f} of the memory")


if __name__ == "__main__":
    main()
