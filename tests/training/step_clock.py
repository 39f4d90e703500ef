"""A clock by which every step of training takes a second, and nothing else takes time.

How a run keeps to its time is then the same on every machine, however slow or busy.
"""

import time
from functools import partial
from types import SimpleNamespace

from training.engine import run
from training.engine.plan import Budget
from training.engine.trainer import Trainer


def install(patch=setattr):
    """Have runs of this process go by it; `patch` sets an attribute."""
    clock = SimpleNamespace(seconds=time.monotonic())
    train_step = Trainer._train_step

    def step(*of):
        train_step(*of)
        clock.seconds += 1

    patch(Trainer, "_train_step", step)
    patch(run, "time", SimpleNamespace(monotonic=lambda: clock.seconds))
    patch(run, "Budget", partial(Budget, clock=lambda: clock.seconds))


PROGRAM = """
from tests.training import step_clock
from training.pretrain import main
step_clock.install()
main()
"""
"""`training.pretrain` that goes by it, for `python -c`."""
