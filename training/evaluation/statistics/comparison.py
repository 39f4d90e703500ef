"""Several results of one protocol as a table: a row for each model, and whether it differs from the first.

Results of one model with different seeds are one row: the mean over seeds, and in brackets Student's 95 % interval of
it. Where a protocol gives its first figure unit by unit (a video, a run of images), the last column says by how much
the mean over units exceeds the first row's, with its interval and the number of units. A unit that has no figure in one
of the results is left out of that. It is "larger" or "smaller" only if

    interval   Student's 95 % interval over units, each the mean over seeds, leaves out 0,
    seed       each seed of the model lies on the same side of each seed of the first row, and
    half       every second unit, and the others, say the same;

else "cannot tell", and which of these fail. One seed alone passes the second: give several.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from training.evaluation.statistics.figures import halves
from training.evaluation.statistics.student import difference, student_interval
from video_distilled_encoder.errors import InputError


class Row(NamedTuple):
    """One model's results, one for each seed."""

    name: str
    seeds: list[int]
    figures: dict[str, np.ndarray]
    """(seeds,) of each plain figure."""
    units: dict[str, np.ndarray]
    """(seeds,) of each unit, NaN where it has no figure; empty if the protocol has none."""
    headline: str
    """Name of the figure that units are of."""


def compare(paths: Sequence[Path]) -> str:
    """Return the table of results.

    Raises:
        InputError: a file is no result, two are of one model and seed, or they are of several protocols, settings or
            data.
    """
    results = [read_result(path) for path in paths]
    for key in ("protocol", "setting", "data"):
        different = [path.name for path, r in zip(paths, results, strict=True) if r[key] != results[0][key]]
        if different:
            raise InputError(f"{different[0]} has another {key} than {paths[0].name}; only like is compared with like")
    named = [(path.name, r["fingerprint"]) for path, r in zip(paths, results, strict=True) if "fingerprint" in r]
    if different := [name for name, fingerprint in named if fingerprint != named[0][1]]:
        raise InputError(f"{different[0]} is of other data than {named[0][0]}; only like is compared with like")
    rows = _rows([path.stem for path in paths], results)
    columns = [name for name in rows[0].figures if all(name in row.figures for row in rows)]
    table = [["model", *columns], *([row.name, *(cell(row.figures[name]) for name in columns)] for row in rows)]
    if any(len(row.seeds) > 1 for row in rows):
        _append(table, ["seeds", *(str(len(row.seeds)) for row in rows)])
    if len(rows) > 1 and rows[0].units:
        _append(table, [f"{rows[0].headline} against {rows[0].name}", "", *(against(row, rows[0]) for row in rows[1:])])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for name, *cells in table:
        numbers = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([name.ljust(widths[0]), *numbers]))
    return "\n".join(lines)


def against(row: Row, reference: Row) -> str:
    """Return by how much a row exceeds another over units, the interval, the number of units, and the verdict.

    Raises:
        InputError: their units are not the same.
    """
    if row.units.keys() != reference.units.keys():
        raise InputError(f"{row.name} and {reference.name} do not have the same units; only like is compared with like")
    ours, theirs = (np.array([one.units[name] for name in reference.units]) for one in (row, reference))
    known = np.isfinite(ours).all(1) & np.isfinite(theirs).all(1)
    told = f"{known.sum()} of {len(known)}" if not known.all() else f"{len(known)}"
    if not known.any():
        return f"{told} units: cannot tell"
    ours, theirs = ours[known], theirs[known]
    change = ours.mean(1) - theirs.mean(1)
    found = difference(ours.mean(1), theirs.mean(1))
    sign = np.sign(found.mean)
    pairings = ours.mean(0)[:, None] - theirs.mean(0)
    failed = {
        "interval": found.verdict == "cannot tell",
        "seed": (np.sign(pairings) != sign).any(),
        "half": any(np.sign(np.sum(half)) != sign for half in halves(change)),
    }
    reasons = ", ".join(name for name, fails in failed.items() if fails)
    verdict = f"cannot tell: {reasons}" if reasons else found.verdict
    return f"{found.mean:+.2f}{_brackets(found.low, found.high)}, {told} unit{'s' * (found.groups > 1)}: {verdict}"


def _rows(files: Sequence[str], results: Sequence[dict]) -> list[Row]:
    """Group results by model, in the order given; where two models have one name, their first file's name follows."""
    groups: dict[str, list[tuple[str, dict]]] = {}
    for file, result in zip(files, results, strict=True):
        identity = {key: value for key, value in result["model"].items() if key != "seed"} | result.get("variant", {})
        groups.setdefault(json.dumps(identity, sort_keys=True), []).append((file, result))
    names = [_name(group[0][1]) for group in groups.values()]
    rows = []
    for name, group in zip(names, groups.values(), strict=True):
        file = group[0][0]
        rows.append(row_of(f"{name} ({file})" if names.count(name) > 1 else name, [result for _, result in group]))
    return rows


def _name(result: Mapping[str, Any]) -> str:
    return ", ".join([str(result["model"]["name"]), *map(str, result.get("variant", {}).values())])


def row_of(name: str, group: Sequence[dict]) -> Row:
    """Return the results of a model with different seeds as a row.

    Raises:
        InputError: a seed is there twice.
    """
    seeds = [result["seed"] for result in group]
    if len(set(seeds)) < len(seeds):
        raise InputError(f"two results are of {name} with one seed; give each once")
    figures = [result["figures"] for result in group]
    plain = [key for key in figures[0] if all(isinstance(one.get(key), int | float) for one in figures)]
    by_seed = [one.get("units") or {} for one in figures]
    units = dict.fromkeys(key for one in by_seed for key in one)
    return Row(
        name,
        seeds,
        {key: np.array([one[key] for one in figures]) for key in plain},
        {key: np.array([one.get(key) for one in by_seed], dtype=float) for key in units},
        next(iter(figures[0]), ""),
    )


def cell(values: np.ndarray) -> str:
    """Return the mean over seeds, and Student's 95 % interval of it if there are several."""
    return f"{values.mean():.2f}{_brackets(*student_interval(values))}"


def _brackets(low: float, high: float) -> str:
    return f" [{low:.2f}, {high:.2f}]" if np.isfinite(low) else ""


def _append(table: list[list[str]], column: Sequence[str]) -> None:
    for line, cell in zip(table, column, strict=True):
        line.append(cell)


def read_result(path: Path) -> dict:
    """Read a result of `python -m training.evaluate`.

    Raises:
        InputError: it is none.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a result of this command: {error}") from error
    if not isinstance(result, dict) or not {"protocol", "model", "figures", "setting", "data", "seed"} <= result.keys():
        raise InputError(f"{path} is not a result of this command")
    return result
