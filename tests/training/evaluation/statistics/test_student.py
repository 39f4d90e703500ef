import numpy as np
import pytest
from scipy import stats

from training.evaluation.statistics.student import difference, quantile, student_interval
from video_distilled_encoder import InputError


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 10, 29, 100])
def test_the_quantile_is_students(freedom):
    for level in (0.6, 0.9, 0.975, 0.9995):
        assert quantile(level, freedom) == pytest.approx(stats.t.ppf(level, freedom), rel=1e-9)


def test_the_interval_is_students():
    values = np.array([10.0, 11.0, 15.0])
    expected = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    assert student_interval(values) == pytest.approx(expected)
    repeated = student_interval(np.repeat(values, 7), np.repeat(["a", "b", "c"], 7))
    assert repeated == pytest.approx(expected)
    assert np.isnan(student_interval([1.0, 2.0], ["one", "one"])).all()


@pytest.mark.parametrize("groups", [2, 3, 5, 12])
def test_of_data_without_any_difference_one_in_twenty_verdicts_is_false(groups):
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(2000, groups))
    false = np.mean([difference(draw, np.zeros(groups)).verdict != "cannot tell" for draw in draws])
    assert 0.03 < false < 0.07


def test_paired_differences():
    rng = np.random.default_rng(0)
    level = rng.normal(0, 10, 50)
    better = difference(level + 1 + rng.normal(0, 0.5, 50), level)
    assert better.low < 1 < better.high
    assert better.verdict == "larger"
    assert difference(level, level + 1).verdict == "smaller"
    assert difference(level, level + rng.normal(0, 1, 50)).verdict == "cannot tell"
    assert difference([1.0, 2.0], [0.0, 0.0], groups=["one", "one"]).verdict == "cannot tell"


def test_groups_are_counted_and_sides_must_be_alike():
    assert difference([3.0, 1.0, 2.0], [0.0, 0.0, 0.0], ["a", "a", "b"]).groups == 2
    with pytest.raises(InputError, match="as many on both sides"):
        difference([1.0], [1.0, 2.0])
