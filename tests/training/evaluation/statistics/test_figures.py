import numpy as np
import pytest

from training.evaluation.statistics.bootstrap import interval
from training.evaluation.statistics.figures import by_unit, percent


def test_percent():
    assert percent(0.12345) == 12.35
    assert percent([0.5, 0.25]) == 37.5
    assert str(percent(-0.000001)) == "0.0"
    assert percent(np.nan) is None
    assert percent([]) is None


def test_by_unit():
    shares, units = np.array([0.1, 0.3, 0.5, 0.9]), ["b", "b", "a", "c"]
    found = by_unit(shares, units)
    assert found["units"] == {"b": 20, "a": 50, "c": 90}
    assert (found["half_a"], found["half_b"]) == (55, 50)
    assert found["interval"] == pytest.approx(100 * np.array(interval(shares, units)), abs=0.01)


def test_one_unit_has_no_interval():
    found = by_unit([0.1, 0.3], ["a", "a"])
    assert (found["interval"], found["half_a"], found["half_b"]) == ([None, None], 20, None)
