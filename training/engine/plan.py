"""How far a run is at each step, and how its length follows from a time.

A plan is a piecewise linear function from steps to progress, the share of the run that is over, by which every schedule
goes. A run of known length has a plan of one piece. A run that is given a time measures its steps and revises the plan:
past steps keep their progress, the others are spread anew so that progress is 1 when the time is up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

_SKIPPED = 2
"""Steps at the start of a phase that are not measured: what is compiled or allocated then comes once."""
_FIRST = 4
"""Steps into a phase after which it is first measured."""
_EXIT = 1.0
"""Seconds in which workers end and a process gives its memory back, after all that can be measured."""
_UNKNOWN_LENGTH = 1000
"""Steps that a run is taken to have before any is measured."""


@dataclass(frozen=True)
class Plan:
    """Progress as a function of the step."""

    knots: tuple[tuple[int, float], ...]
    """(step, progress) from (0, 0) to (steps, 1), ascending; between them progress is linear."""

    @classmethod
    def of(cls, steps: int) -> Plan:
        """Plan a run of so many steps."""
        return cls(((0, 0.0), (steps, 1.0)))

    @property
    def steps(self) -> int:
        """Length of the run."""
        return self.knots[-1][0]

    def progress(self, step: int) -> float:
        """Return the share of the run that is over before `step`, in [0, 1]."""
        if step >= self.steps:
            return 1.0
        number = next(n for n in reversed(range(len(self.knots))) if self.knots[n][0] <= step)
        (first, low), (last, high) = self.knots[number], self.knots[number + 1]
        return low + (high - low) * (step - first) / (last - first)

    def revised(self, step: int, steps: int) -> Plan:
        """Return the plan that is this one up to `step`, and from there goes straight to its end at `steps`."""
        past = tuple(knot for knot in self.knots if knot[0] < step)
        return Plan((*past, (step, self.progress(step)), (max(steps, step), 1.0)))


@dataclass(frozen=True)
class Phase:
    """A stretch of a run in which all steps cost the same."""

    end: float
    """Progress at which it is over."""
    cost: float
    """Of a step, in any unit that all phases share; measured seconds take its place when it has begun."""


def phase_at(phases: Sequence[Phase], progress: float) -> Phase:
    """Return the phase that a step belongs to."""
    return next((phase for phase in phases if progress < phase.end), phases[-1])


def mean_cost(phases: Sequence[Phase], progress: float = 0.0) -> float:
    """Return the mean cost of what a run does after `progress`, which is less than 1."""
    begins = [0.0, *(phase.end for phase in phases)]
    shares = [max(end - max(begin, progress), 0.0) for begin, end in pairwise(begins)]
    return sum(share * phase.cost for share, phase in zip(shares, phases, strict=True)) / (1 - progress)


class Budget:
    """Revises a plan so that a run ends when its time does.

    The steps of a phase are measured 4, 8, 16, … steps after it began, and whenever the steps that remain have halved,
    so that the last revisions concern a step or two. What a step of a phase costs that has not begun follows from the
    present one by `cost`. A run that is late, for the machine stood still or something was compiled, loses that time,
    and its steps are measured anew: they may have become slow, or not.

    Args:
        seconds: what is left, now.
        phases: of the run, in order; the last ends at 1.
        clock: returns seconds.
        wait: returns when the device has done what it was given, without which its time cannot be told.
    """

    def __init__(
        self,
        seconds: float,
        phases: Sequence[Phase],
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._wait = wait
        self._phases = phases
        self._seconds = seconds
        self._deadline = clock() + seconds
        self.reserve: float | None = None
        """Seconds that the end of the run takes; None before that is known."""
        self._phase: Phase | None = None
        self._begun = 0
        self._measured = 0
        self._mark = (0, clock())
        self._last = clock()
        self._late = False
        self._pace = float("inf")

    def left(self) -> float:
        """Return the seconds that are left, those for the end of the run included."""
        return self._deadline - self._clock()

    def start(self, step: int, plan: Plan) -> Plan:
        """Return the plan until steps have been measured: of what is not over after `step` nothing is known yet."""
        return plan.revised(step, step + _UNKNOWN_LENGTH)

    def keep_for_the_end(self, leave: Callable[[], None]) -> None:
        """Do once what will be done when training is over, and keep as much time for it."""
        begin = self._clock()
        leave()
        now = self._clock()
        self.reserve = now - begin + _EXIT
        self._mark = (self._mark[0], self._mark[1] + now - begin)
        self._last = now

    def measure(self, step: int, plan: Plan) -> bool:
        """Follow the run, after `step` of its steps, but not the last; all processes come to the same answer.

        Returns:
            Whether it is known anew how long a step takes, so that the plan is to be revised.
        """
        phase = phase_at(self._phases, plan.progress(max(step - 1, 0)))
        if phase is not self._phase:
            if self._phase is not None:
                self._pace *= phase.cost / self._phase.cost
            self._phase, self._begun, self._measured = phase, step - 1, step - 1
        if step == self._begun + _SKIPPED:
            self._set_mark(step)
        into, before = step - self._begun, self._measured - self._begun
        halved = 2 * (plan.steps - step) <= plan.steps - self._measured
        if into < _FIRST or not (into >= 2 * before or halved):
            return False
        self._pace, self._measured = self._set_mark(step), step
        return True

    def is_late(self, step: int) -> bool:
        """Tell, after every step, whether one since the last mark, or all, took much longer; processes may differ."""
        now, (before, then) = self._clock(), self._mark
        lost = max(now - self._last - self._pace, now - then - 2 * self._pace * (step - before))
        self._last = now
        self._late = self._late or lost > 0.01 * self._seconds
        return self._late or self.left() < (self.reserve or 0.0)

    def measure_anew(self, step: int) -> None:
        """Begin to measure at `step`, unless that was just done."""
        self._set_mark(step)
        if step >= self._begun + _FIRST:
            self._begun = self._measured = step

    def revised(self, step: int, plan: Plan) -> Plan:
        """Return the plan whose end is nearest to that of the time, by what is known of the steps."""
        assert self._phase is not None
        progress = plan.progress(step)
        seconds = self._pace * mean_cost(self._phases, progress) / self._phase.cost
        remaining = (self.left() - (self.reserve or 0.0)) / seconds
        return plan.revised(step, step + max(round(remaining), 0))

    def _set_mark(self, step: int) -> float:
        """Begin to measure at `step`; return the seconds of a step since that was last done."""
        self._wait()
        now = self._clock()
        before, then = self._mark
        self._mark, self._last, self._late = (step, now), now, False
        return (now - then) / max(step - before, 1)


def age_of_process() -> float:
    """Return the seconds since this process was started; 0 where the system does not tell."""
    try:
        # The 22nd field, counted after the name in brackets, which may hold spaces: ticks since the machine started.
        ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
