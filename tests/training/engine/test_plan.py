import random
from itertools import pairwise

import numpy as np
import pytest

from training.engine.plan import Budget, Phase, Plan, age_of_process


def test_a_plan_of_known_length_is_step_over_steps():
    plan = Plan.of(7)
    assert [plan.progress(step) for step in range(8)] == [step / 7 for step in range(8)]
    assert plan.steps == 7


def test_progress_is_the_piecewise_linear_function_of_its_knots():
    plan = Plan.of(100).revised(10, 60).revised(40, 50).revised(45, 91)
    steps, progress = zip(*plan.knots, strict=True)
    found = [plan.progress(step) for step in range(92)]
    assert np.allclose(found, np.interp(range(92), steps, progress), atol=1e-12)
    assert all(a < b for a, b in pairwise(found))
    assert (found[0], found[91]) == (0.0, 1.0)


def test_a_revision_leaves_the_past_as_it_was():
    plan = Plan.of(100)
    revised = plan.revised(30, 50)
    assert all(revised.progress(step) == pytest.approx(plan.progress(step)) for step in range(31))
    assert revised.progress(40) == pytest.approx(0.3 + 0.7 / 2)
    assert plan.revised(30, 30).progress(29) == pytest.approx(0.29)
    assert plan.revised(30, 30).steps == 30


def simulate(seconds, step_seconds, phases, end=0.0):
    """Run against a clock of its own; return when it ended, the progress of the steps and the number of revisions."""
    now = 0.0
    budget = Budget(seconds, phases, clock=lambda: now)
    plan, step, revisions = budget.start(0, Plan.of(8)), 0, 0
    progress = []

    def leave():
        nonlocal now
        now += end

    while step < plan.steps:
        progress.append(plan.progress(step))
        now += step_seconds(step, progress[-1])
        step += 1
        if step == plan.steps:
            break
        due = budget.measure(step, plan)
        if not due and budget.is_late(step):
            budget.measure_anew(step)
            due = True
        if due:
            plan, revisions = budget.revised(step, plan), revisions + 1
            if budget.reserve is None:
                budget.keep_for_the_end(leave)
                plan = budget.revised(step, plan)
    leave()
    now += 0.8  # as a process takes to end
    return now, progress, revisions


def noisy(step, progress):
    return random.Random(step).uniform(0.8, 1.2)


@pytest.mark.parametrize("seconds", [60, 180, 600])
@pytest.mark.parametrize(
    "step_seconds",
    [
        lambda step, progress: 0.1,
        noisy,
        lambda step, progress: 20.0 if step == 0 else 0.3,  # compiling
        lambda step, progress: 0.2 * (1 + 2 * progress),  # growing slower
        lambda step, progress: 0.05 if step % 50 else 1.0,  # checkpoints
        lambda step, progress: 0.05 if progress < 0.5 else 1.0,  # the machine is shared from here on
        lambda step, progress: 0.05 if progress < 0.97 else 0.5,
    ],
)
def test_a_run_ends_when_its_time_does(seconds, step_seconds):
    ended, progress, revisions = simulate(seconds, step_seconds, [Phase(1.0, 1.0)], end=3.0)
    assert ended == pytest.approx(seconds, rel=0.02)
    assert progress[-1] > 0.95
    assert revisions < 100


@pytest.mark.parametrize("really", [2.0, 4.0, 7.0])
def test_a_change_of_cost_that_arithmetic_foresees_only_roughly(really):
    switch = 20.0

    def step_seconds(step, progress):
        nonlocal switch
        if progress < 0.75:
            return 0.1
        extra, switch = switch, 0.0
        return 0.1 * really + extra  # once more compiling

    ended, progress, _ = simulate(600, step_seconds, [Phase(0.75, 1.0), Phase(1.0, 4.0)], end=2.0)
    assert ended == pytest.approx(600, rel=0.02)
    assert progress[-1] > 0.99
    assert np.diff(progress).min() > 0


def test_what_arithmetic_foresees_is_planned_from_the_start():
    phases = [Phase(0.5, 1.0), Phase(1.0, 3.0)]
    _, progress, _ = simulate(600, lambda step, progress: 0.1 if progress < 0.5 else 0.3, phases)
    steps = len(progress)
    assert steps == pytest.approx(600 / 0.2, rel=0.01)
    assert np.abs(np.array(progress[100:]) - np.arange(100, steps) / steps).max() < 0.01


@pytest.mark.parametrize("switch", np.arange(0.05, 0.5, 0.05))
def test_compiling_is_not_taken_for_a_steps_time(switch):
    """Where a plan was made just before, progress would run away in the steps that follow."""
    compiled = []

    def step_seconds(step, progress):
        if progress < switch or compiled:
            return 0.2
        compiled.append(step)
        return 60.0

    ended, progress, _ = simulate(600, step_seconds, [Phase(switch, 1.0), Phase(1.0, 1.0)])
    assert ended == pytest.approx(600, rel=0.02)
    assert np.diff(progress[5:]).max() < 2 * np.median(np.diff(progress))


@pytest.mark.parametrize("step_of_pause", range(40, 900, 37))
def test_a_machine_that_stood_still_is_not_taken_for_a_slow_one(step_of_pause):
    ended, progress, _ = simulate(
        120, lambda step, progress: 10.0 if step == step_of_pause else 0.1, [Phase(1.0, 1.0)], end=1.0
    )
    assert ended == pytest.approx(120, rel=0.02)
    last = np.diff(progress[5:])
    assert (last < 1.2 * np.median(last) * 120 / (119.5 - step_of_pause / 10)).all()


def test_a_run_that_goes_on_has_the_whole_of_its_new_time():
    plan = Plan.of(100).revised(90, 91)
    found = Budget(60.0, [Phase(1.0, 1.0)]).start(90, plan)
    assert [found.progress(step) for step in range(91)] == [plan.progress(step) for step in range(91)]
    assert found.progress(100) < found.progress(90) + 0.01


def test_the_age_of_a_process():
    assert 0 < age_of_process() < 86_400
