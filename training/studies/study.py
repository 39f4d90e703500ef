"""Studies (training/studies/*.yaml): rows that differ in one choice, with the same arithmetic, measured alike."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.common.json_files import read_facts
from training.common.yaml_files import find_file, read_as
from training.data.extraction import extract_all
from training.data.frame_store import ExtractConfig, FrameStore, open_stores
from training.engine import handover
from training.engine.assembly import build_method, clip_index, clip_views
from training.engine.directory import is_run
from training.engine.estimate import find_phases
from training.engine.plan import mean_cost
from training.evaluation.evidence import Subject, read_figure
from training.evaluation.statistics.comparison import cell
from training.recipes.recipe import Recipe, options, read_recipe
from video_distilled_encoder.errors import InputError, import_pyplot
from video_distilled_encoder.files import atomic_path, write_json
from video_distilled_encoder.sources.source import Asked

STUDIES = Path(__file__).parent

TRAINED = ("steps", "clips", "pflop")
"""What `plan` says of a row."""


@dataclass(frozen=True)
class Row:
    """What is trained, or a model that is only measured."""

    recipe: str | None = None
    """A recipe on top of the base."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings on top of that, as {"clips.stride": 0.1}."""
    share: float = 1.0
    """Of the base's arithmetic that this row takes."""
    after: str | None = None
    """An earlier row, from whose handover/ this one goes on."""
    model: str | None = None
    """Instead of training, measure this: `pixels`, a release, `random:{architecture}` for the base's, `{start}` for
    what it starts from (`run.init_from`, or random weights)."""
    measured: str | None = None
    """What is measured of its run, as `frame2:{run}`, if not the encoder that it leaves."""
    published: dict[str, float] = field(default_factory=dict)
    """What a paper says of the same row, by heading: more columns of the table."""


@dataclass(frozen=True)
class Study:
    """What a file in training/studies says."""

    title: str
    recipe: list[str]
    """The base: recipes, each on top of those before it."""
    seeds: list[int]
    rows: dict[str, Row]
    measures: dict[str, str]
    """By name, what follows `python -m training.evaluate`, with folders relative to --evaluation."""
    columns: dict[str, str]
    """Figures in the table: by heading, "MEASURE FIGURE"."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of all rows, before those given on the command line and a row's own."""


def read_study(name: str) -> Study:
    """Read a study by name or path.

    Raises:
        InputError: there is none, or it is not one.
    """
    path = find_file(name, STUDIES, "study")
    study = read_as(path, "study", _study_of)
    for title, figure in study.columns.items():
        if figure.split()[0] not in study.measures:
            known = ", ".join(study.measures)
            raise InputError(f"{path}: the column {title!r} is of {figure!r}, and the measures are {known}")
    for number, (name, row) in enumerate(study.rows.items()):
        if row.after and row.after not in list(study.rows)[:number]:
            raise InputError(f"{path}: {name} is to go on after {row.after}, which is no row above it")
    return study


def _study_of(content: dict[str, Any]) -> Study:
    rows = {key: Row(**(row or {})) for key, row in content.pop("rows").items()}
    return Study(rows=rows, **content)


def with_names_of(study: Study, base: Recipe) -> Study:
    """Name the base's architecture, and the encoder that it starts from, in the rows that ask for them."""
    architecture = base.backbone.architecture
    start = base.run.init_from or f"random:{architecture}"
    if is_run(Path(start)):
        start = str(Path(start) / "encoder")
    rows = {
        name: replace(row, model=row.model.format(architecture=architecture, start=start)) if row.model else row
        for name, row in study.rows.items()
    }
    return replace(study, rows=rows)


def plan(
    study: Study, data: Sequence[Path], frames: Path, settings: Sequence[str], asked: Asked | None = None
) -> tuple[dict[str, Recipe], dict[str, dict[str, Any]]]:
    """Return the recipe of every row that is trained, its steps such that all have their share of one arithmetic.

    Args:
        study: the study.
        data: video files, or folders of them.
        frames: folder of the frame stores.
        settings: of all rows, as on a command line.
        asked: cameras and episodes of data sets, and the rate of what has no clock.

    Returns:
        The recipes, and what a table says of each: clips, steps and PFLOP.

    Raises:
        InputError: the base does not state its steps.
    """
    base = read_recipe(study.recipe, settings)
    if base.run.steps is None:
        raise InputError("a study compares runs of equal length: state the base's with --run.steps")

    @functools.cache
    def stores(extract: ExtractConfig) -> list[FrameStore]:
        return open_stores(extract_all(data, frames, extract, asked=asked))

    whole = base.run.steps * base.run.batch_size * _flops(base, stores(base.extract))
    recipes, facts = {}, {}
    for name, row in study.rows.items():
        if row.model:
            continue
        layers = [*study.recipe, *([row.recipe] if row.recipe else [])]
        recipe = read_recipe(layers, [*settings, *options(row.settings)])
        cost = _flops(recipe, stores(recipe.extract))
        steps = max(1, round(row.share * whole / cost / recipe.run.batch_size))
        clips = steps * recipe.run.batch_size
        recipes[name] = replace(recipe, run=replace(recipe.run, steps=steps))
        facts[name] = {"steps": steps, "clips": clips, "pflop": round(clips * cost / 1e15, 4)}
    return recipes, facts


def _flops(recipe: Recipe, stores: Sequence[FrameStore]) -> float:
    """Return the floating-point operations of one clip, on the average of the run."""
    index = clip_index(recipe, stores)
    return mean_cost(find_phases(recipe, clip_views(recipe, index), build_method(recipe)))


def chained(recipe: Recipe, run: Path) -> Recipe:
    """Return a recipe that goes on from what a run left.

    Raises:
        InputError: the run has left nothing yet.
    """
    left = run / handover.FOLDER
    if not handover.is_handover(left):
        raise InputError(f"there is no {left}, from which a row is to go on; train that row too")
    return replace(recipe, run=replace(recipe.run, init_from=str(left)))


def subject_of(out: Path, name: str, row: Row, seed: int) -> Subject:
    """Return what is measured of a row."""
    measured = (row.measured or "{run}/encoder").format(run=run_of(out, name, seed))
    return Subject(name, row.model or measured, seed)


def run_of(out: Path, name: str, seed: int) -> Path:
    """Return the run directory of a row."""
    return out / f"{name}-seed{seed}"


def summarize(
    study: Study,
    out: Path,
    facts: Mapping[str, Mapping[str, Any]],
    settings: Sequence[str],
    earlier: Mapping[str, Any] | None = None,
) -> None:
    """Write `study.json`, `study.md` and `study.png` of what has been measured so far, and of what `earlier` holds."""
    summary = _summary(study, out, facts, settings)
    if earlier:
        summary = joined(earlier, summary)
    write_json(out / "study.json", summary)
    with atomic_path(out / "study.md") as temporary:
        temporary.write_text(table(summary) + "\n", encoding="utf-8")
    draw(summary, out / "study.png")


def _summary(
    study: Study, out: Path, facts: Mapping[str, Mapping[str, Any]], settings: Sequence[str]
) -> dict[str, Any]:
    rows: dict[str, dict[str, Any]] = {}
    for name, row in study.rows.items():
        subjects = [subject_of(out, name, row, seed) for seed in study.seeds]
        found = {
            title: [read_figure(out / "results", subject, figure) for subject in subjects]
            for title, figure in study.columns.items()
        }
        chosen = {key: value for key, value in asdict(row).items() if value}
        rows[name] = {**chosen, **facts.get(name, {}), "figures": found}
    return {
        "title": study.title,
        "recipe": study.recipe,
        "settings": list(settings),
        "seeds": study.seeds,
        "measures": study.measures,
        "rows": rows,
    }


def read_earlier(path: Path) -> dict[str, Any]:
    """Read the `study.json` of a study that was begun elsewhere.

    Raises:
        InputError: it is none.
    """
    earlier = read_facts(path, "a study goes on from the study.json that it wrote")
    if not {"recipe", "settings", "seeds", "measures", "rows"} <= set(earlier):
        raise InputError(f"{path} is not the study.json of a study")
    return earlier


def joined(earlier: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    """Return one study of two summaries; where both have a figure it is `here`'s.

    Raises:
        InputError: they do not compare the same.
    """
    _refuse_another(earlier, here)
    seeds = sorted({*earlier["seeds"], *here["seeds"]})
    rows = {}
    for name, row in here["rows"].items():
        before = earlier["rows"].get(name, {"figures": {}})
        known = {
            title: _by_seed(earlier, before["figures"].get(title, [])) | _by_seed(here, found)
            for title, found in row["figures"].items()
        }
        measured_here = any(_by_seed(here, found) for found in row["figures"].values())
        trained = {} if measured_here else {fact: before[fact] for fact in TRAINED if fact in before}
        figures = {title: [found.get(seed) for seed in seeds] for title, found in known.items()}
        rows[name] = {**row, **trained, "figures": figures}
    return {**here, "seeds": seeds, "rows": rows}


def _by_seed(summary: Mapping[str, Any], figures: Sequence[float | None]) -> dict[int, float]:
    return {seed: figure for seed, figure in zip(summary["seeds"], figures, strict=False) if figure is not None}


def _refuse_another(earlier: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    shared = [name for name in here["rows"] if name in earlier["rows"]]
    pairs: dict[str, Sequence[Any]] = {"measures": (earlier["measures"], here["measures"])}
    if _base(earlier) != _base(here):
        pairs["base"] = [" ".join([*study["recipe"], *study["settings"]]) for study in (earlier, here)]
    for name in shared:
        before, now = _stated(earlier, name), _stated(here, name)
        for what in ("recipe", "settings", "share", "after", "model", "measured"):
            pairs[f"{name}'s {what}"] = (before[what], now[what])
        # the count of a step's arithmetic may differ a little between releases of torch
        if not math.isclose(before.get("clips", 0), now.get("clips", 0), rel_tol=0.01):
            pairs[f"{name}'s clips"] = (before.get("clips"), now.get("clips"))
    for what, (before, now) in pairs.items():
        if before != now:
            raise InputError(f"the earlier study is another: its {what} {before}, not {now}")


def _stated(summary: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a row with the defaults of what it leaves out."""
    return {**asdict(Row()), **summary["rows"][name]}


def _base(summary: Mapping[str, Any]) -> Recipe:
    """Return the base of a study, but for what suits a machine."""
    base = read_recipe(summary["recipe"], summary["settings"])
    return replace(base, run=replace(base.run, precision="auto", workers=0))


def table(summary: Mapping[str, Any]) -> str:
    """Return a study as a table in Markdown: mean over seeds, and Student's 95 % interval of it."""
    rows = summary["rows"]
    titles = list(next(iter(rows.values()))["figures"])
    published = list(dict.fromkeys(title for row in rows.values() for title in row.get("published", {})))
    lines = [["", "clips", *titles, *published], ["---", *["---:"] * (1 + len(titles) + len(published))]]
    for name, row in rows.items():
        found = [_known(row["figures"][title]) for title in titles]
        measured = [cell(values) if len(values) else "" for values in found]
        told = [str(row.get("published", {}).get(title, "")) for title in published]
        lines.append([name, str(row.get("clips", "")), *measured, *told])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """Draw a study: a panel for each figure, a row for each row, a dot for each seed and a bar at their mean."""
    plt = import_pyplot("train")
    rows = summary["rows"]
    titles = list(next(iter(rows.values()))["figures"])
    size = (2 + 2.6 * len(titles), 1.2 + 0.34 * len(rows))
    figure, axes = plt.subplots(1, len(titles), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, title in zip(axes[0], titles, strict=True):
        for height, row in enumerate(rows.values()):
            known = _known(row["figures"][title])
            axis.plot(known, [height] * len(known), "o", color="tab:blue" if "clips" in row else "gray", alpha=0.6)
            if len(known):
                axis.plot(np.mean(known), height, "|", color="black", markersize=16)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    axes[0, 0].set_yticks(range(len(rows)), list(rows))
    axes[0, 0].invert_yaxis()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def _known(figures: Sequence[float | None]) -> NDArray[np.float64]:
    """Return a row's figures of the seeds that have been measured so far."""
    return np.array([value for value in figures if value is not None])


def only(entries: Mapping[str, Any], names: Sequence[str] | None, what: str) -> dict[str, Any]:
    """Return the entries of these names, or all.

    Raises:
        InputError: there is none of a name.
    """
    if unknown := set(names or ()) - set(entries):
        raise InputError(f"the study has no {what} {', '.join(sorted(unknown))}; it has {', '.join(entries)}")
    return {name: entry for name, entry in entries.items() if names is None or name in names}
