import numpy as np
import pytest

from training.evaluation.statistics.bootstrap import interval
from video_distilled_encoder import InputError


def test_the_interval_is_that_of_the_normal_approximation():
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = interval(values, resamples=4000)
    reach = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - reach, abs=0.02)
    assert high == pytest.approx(values.mean() + reach, abs=0.02)
    narrow = interval(values, resamples=4000, level=0.5)
    assert narrow[1] - narrow[0] == pytest.approx(2 * 0.6745 * values.std() / 20, rel=0.1)


def test_repeating_the_frames_of_a_video_does_not_make_the_mean_surer():
    values = np.random.default_rng(1).normal(0, 1, 30)
    repeated = interval(np.repeat(values, 10), groups=np.repeat(np.arange(30), 10))
    assert repeated == pytest.approx(interval(values))
    naive = interval(np.repeat(values, 10))
    assert repeated[1] - repeated[0] > 2.5 * (naive[1] - naive[0])


def test_groups_of_several_sizes_equal_a_loop():
    values, groups = [1.0, 2.0, 3.0, 10.0], ["a", "a", "a", "b"]
    means = []
    for drawn in np.random.default_rng(0).integers(0, 2, (1000, 2)):
        pool = [v for number in drawn for v, group in zip(values, groups, strict=True) if group == "ab"[number]]
        means.append(np.mean(pool))
    assert interval(values, groups) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


def test_wrong_values_are_one_sentence():
    assert np.isnan(interval([1.0, 2.0], ["one", "one"])).all()
    for values, groups, message in (
        ([], None, "at least one value"),
        ([np.nan], None, "finite"),
        ([1.0], ["a", "b"], "each value needs its group"),
    ):
        with pytest.raises(InputError, match=message):
            interval(values, groups)
