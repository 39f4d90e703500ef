"""A training method of its own for test_new_method.py: the mean colour of the next frame's patches, by regression.

It has no teacher, no head with prototypes, and uses all that a method may ask for.
"""

from dataclasses import dataclass

import torch
from torch import nn

from training.common import distributed, keyed
from training.data.clips import ClipSpec
from training.data.views import View, pre_crop, random_box
from training.methods.method import Losses
from training.methods.method import Method as BaseMethod
from training.methods.method import Objective as BaseObjective


@dataclass(frozen=True)
class Objective(BaseObjective):
    noise: float = 0.1
    friend: str = "0123"
    limit: float = 1e9


def clip_spec(spec):
    return ClipSpec((0.0,), gap=(0.2, 1.0), draws=2)


def plan_views(rng, size, spec):
    box = random_box(rng, pre_crop(rng, size, spec.views)[1], spec.views.global_area)
    shape = spec.views.global_size, spec.views.global_size // 2
    return [View("now", 0, box, False, shape, "view1"), View("next", 1, box, False, shape, None)]


class Method(BaseMethod):
    def __init__(self, spec, build):
        super().__init__()
        self.patch, self.objective = spec.patch, spec.objective
        self.student = nn.ModuleDict({"backbone": build(True)})
        self.student["colour"] = nn.Linear(self.student["backbone"].embed_dim, 3)
        self.register_buffer("mean", torch.zeros(3))

    @property
    def trained(self):
        return self.student

    def encoder(self):
        return self.student["backbone"]

    def prepare(self, batches):
        for number, batch in enumerate(batches):
            self.mean += distributed.average(batch["next"]["pixels"].mean((0, 1, 3, 4))) / 3
            if number == 2:
                break

    def held(self, at):
        return [self.student["colour"].bias] if at.progress < 0.5 else []

    def after_step(self, at):
        return {"noise": self.objective.noise * (1 - at.progress)}

    def watch(self, row):
        return "too much noise" if row["noise"] > self.objective.limit else None

    def outside(self):
        return {"a frozen friend": self.objective.friend}

    def provenance(self):
        return "Learnt from a frozen friend."

    def forward(self, batch, at):
        now, then = (batch[group]["pixels"][:, 0] for group in ("now", "next"))
        rows = at.first_row + torch.arange(len(now))
        noise = keyed.uniform(keyed.key_of(at.key, 1), rows, 1)[..., None]
        tokens = self.encoder().forward_features(now)[:, 1:] + self.objective.noise * noise
        wanted = nn.functional.avg_pool2d(then, self.patch).flatten(2).mT - self.mean
        loss = nn.functional.mse_loss(self.student["colour"](tokens), wanted)
        return Losses(loss, {"colour_loss": loss.detach()})
