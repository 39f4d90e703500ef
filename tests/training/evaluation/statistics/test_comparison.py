import json

import numpy as np
import pytest
from scipy import stats

from training import evaluate


@pytest.fixture
def write(tmp_path):
    """Write a result; returns its path."""

    def write(name, figures, seed=0, **changes):
        result = {"protocol": "p", "setting": {"size": 1}, "data": "d", "model": {"name": name}, "seed": seed}
        path = tmp_path / f"{name}-{seed}.json"
        path.write_text(json.dumps(result | {"figures": figures} | changes))
        return path

    return write


@pytest.fixture
def table(run_command, capsys):
    """Compare results; returns the lines."""

    def table(*files):
        assert run_command(evaluate.main, "compare", *files) is None
        return capsys.readouterr().out.splitlines()

    return table


def by_unit(values):
    return {"gap": float(np.mean(values)), "units": {f"v{number}": value for number, value in enumerate(values)}}


def test_a_row_for_each_model_and_a_column_for_each_plain_figure(write, table):
    files = [write("random", {"miou": 17.31, "iou": {"road": 1.0}}), write("longer-name", {"miou": 7.5, "extra": 1})]
    assert table(*files) == [
        "model         miou",
        "random       17.31",
        "longer-name   7.50",
    ]


def test_seeds_are_one_row_with_mean_and_students_interval(write, table):
    seeds = [write("random", {"miou": miou}, seed) for seed, miou in enumerate((10, 11, 15))]
    assert table(seeds[1], write("pixels", {"miou": 7.5}), seeds[0], seeds[2]) == [
        "model                  miou  seeds",
        "random  12.00 [5.43, 18.57]      3",
        "pixels                 7.50      1",
    ]


def test_models_of_one_name_are_told_apart_by_their_files(write, table):
    files = [
        write("encoder", {"miou": miou}, miou, model={"name": "encoder", "weights_sha256": f"{miou}" * 64})
        for miou in (1, 2)
    ]
    assert [line.rsplit(maxsplit=1)[0] for line in table(*files)[1:]] == ["encoder (encoder-1)", "encoder (encoder-2)"]


def test_only_like_is_compared_with_like(run_command, write, tmp_path):
    one = write("a", {"miou": 1})
    other = write("b", {"miou": 1}, setting={"size": 2})
    assert "b-0.json has another setting than a-0.json" in run_command(evaluate.main, "compare", one, other)
    assert "two results are of a with one seed" in run_command(evaluate.main, "compare", one, one)
    units = write("c", by_unit([1, 2])), write("d", by_unit([1, 2, 3]))
    assert "d and c do not have the same units" in run_command(evaluate.main, "compare", *units)
    (tmp_path / "e.json").write_text("[]")
    assert "e.json is not a result" in run_command(evaluate.main, "compare", one, tmp_path / "e.json")


BASE = np.array([40, 60, 50, 70, 45, 65, 55, 75])


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ([[2, 3, 2, 3, 2, 3, 2, 3]], "larger"),
        ([[-2, -3, -2, -3, -2, -3, -2, -3]], "smaller"),
        ([[2, 3, 2, 3, 2, 3, 2, 3], [1, 1, 1, 1, 1, 1, 1, 1]], "larger"),
        ([[9, -8, 9, 8, -9, 8, 9, 8]], "cannot tell: interval"),
        ([[9, 9, 9, 9, 9, 9, 9, 9], [-1, -1, -1, -1, -1, -1, -1, -1]], "cannot tell: seed"),
        ([[20, -1, 21, 0, 22, -1, 20, 0]], "cannot tell: half"),
        ([[0, 0, 0, 0, 0, 0, 0, 0]], "cannot tell: interval"),
        ([[20, -9, 21, 0, -22, 0, 0, 0], [0, -9, 0, 0, 0, 0, 0, 0]], "cannot tell: interval, seed, half"),
    ],
)
def test_a_difference_must_hold_in_interval_seeds_and_halves(write, table, changes, verdict):
    rows = [write("ours", by_unit((BASE + change).tolist()), seed) for seed, change in enumerate(changes)]
    head, _, ours = table(write("random", by_unit(BASE.tolist())), *rows)
    assert head.endswith("gap against random")
    change = np.mean(changes, axis=0)
    reach = stats.t.ppf(0.975, 7) * stats.sem(change)
    bounds = f"[{change.mean() - reach:.2f}, {change.mean() + reach:.2f}]"
    assert ours.endswith(f"{change.mean():+.2f} {bounds}, 8 units: {verdict}")


def test_seeds_of_the_first_row_count_too(write, table):
    rows = [write("random", by_unit((BASE + change).tolist()), seed) for seed, change in enumerate((-9, 1))]
    *_, ours = table(*rows, write("ours", by_unit(BASE.tolist())))
    assert ours.endswith("cannot tell: seed")


@pytest.mark.parametrize("gone", [None, float("nan"), "missing"])
def test_a_unit_without_a_figure_in_one_seed_is_left_out(write, table, gone):
    ours = by_unit((BASE + np.array([2, 3, 2, 3, 2, 3, 2, 3])).tolist())
    lacking = {**ours, "units": dict(ours["units"])}
    if gone == "missing":
        del lacking["units"]["v3"]
    else:
        lacking["units"]["v3"] = gone
    files = [write("random", by_unit(BASE.tolist())), write("ours", lacking, 0), write("ours", ours, 1)]
    *_, line = table(*files)
    assert line.endswith("7 of 8 units: larger")
    assert "+2.43 [" in line  # (2 + 3 + 2 + 2 + 3 + 2 + 3) / 7
    lacking["units"] = dict.fromkeys(ours["units"])
    *_, line = table(files[0], write("ours", lacking, 0))
    assert line.endswith("0 of 8 units: cannot tell")


def test_the_heading_names_the_figure_that_units_are_of(write, table):
    rows = [write(name, {"gap": None, "other": 1.0, "units": {"a": 1.0, "b": 2.0}}) for name in ("random", "ours")]
    assert table(*rows)[0].split("  ")[-1] == "gap against random"


def test_two_units_of_one_sign_tell_nothing(write, table):
    *_, ours = table(write("random", by_unit([1.0, 5.0])), write("ours", by_unit([2.0, 8.0])))
    assert ours.endswith("2 units: cannot tell: interval")


def test_other_data_of_one_name_are_not_compared(run_command, write):
    one, other = (write(name, {"miou": 1}, fingerprint={"data": name}) for name in "ab")
    old = write("c", {"miou": 1})
    assert run_command(evaluate.main, "compare", one, old) is None
    assert "b-0.json is of other data than a-0.json" in run_command(evaluate.main, "compare", one, old, other)


def test_one_unit_tells_nothing(write, table):
    *_, ours = table(write("random", by_unit([1.0])), write("ours", by_unit([2.0])))
    assert "cannot tell: interval" in ours
