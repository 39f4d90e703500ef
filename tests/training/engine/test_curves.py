import json

import numpy as np
import pytest
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageColor

from training.engine.curves import COLOURS, _Scale, draw_panel, plot_curves


def rows_of(panel, colour):
    """Return, column by column of a panel, the mean row of the pixels of a colour, where there are any."""
    near = np.abs(panel.astype(int) - ImageColor.getrgb(colour)).sum(-1) < 60
    return {column: np.flatnonzero(near[:, column]).mean() for column in np.flatnonzero(near.any(0))}


def test_curves_lie_where_their_numbers_say():
    """One rises by equal steps, one falls; a number that is not finite leaves a gap, and the others where they are."""
    rising, falling = np.linspace(0, 1, 41), np.linspace(1, 0, 41)
    one = rows_of(draw_panel("a title", range(41), {"one": rising}), COLOURS[0])
    columns, rows = np.array(list(one)), np.array(list(one.values()))
    slope, begin = np.polyfit(columns, rows, 1)
    assert slope < 0
    assert np.abs(rows - (slope * columns + begin)).max() < 1.5
    assert columns[-1] - columns[0] > 300
    assert rows[0] - rows[-1] > 200
    broken = falling.copy()
    broken[15:25] = np.nan
    both = draw_panel("a title", range(41), {"one": rising, "other": broken})
    other = rows_of(both[60:], COLOURS[1])  # without the names
    gap = [column for column in range(min(other), max(other)) if column not in other]
    assert (len(gap) - 1) / (columns[-1] - columns[0]) == pytest.approx(11 / 40, abs=0.02)
    assert np.mean(gap) == pytest.approx(np.mean([columns[0], columns[-1]]), abs=8)


@pytest.mark.parametrize("ends", [(0, 1), (3.2, 3.9), (-1e-7, 4e-7), (1, 160_000), (0.98, 1.0)])
def test_ticks_are_as_round_as_matplotlibs(ends):
    scale = _Scale(ends, 0, 100)
    ticks = scale.ticks(6)
    theirs = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(scale.low, scale.high)
    assert 2 <= len(ticks) <= 7
    assert all(np.isclose(theirs, tick, rtol=1e-9, atol=1e-15).any() for tick in ticks)
    assert scale(scale.low) == 0
    assert scale(scale.high) == 100


@pytest.mark.parametrize("loss", [[], [2.0], [3.0, 3.0], [0.0, 0.0], [float("nan"), float("inf")], [1.0, 1e30]])
def test_any_log_can_be_drawn(tmp_path, loss):
    lines = [json.dumps({"step": step + 1, "loss": value, "other": 1.0}) for step, value in enumerate(loss)]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    plot_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (5 * 440, 320)
