"""Running everything: exports first, then round after round over all rows, each in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from tqdm import tqdm

from export.benchmark.floor import PRECISIONS
from export.benchmark.plan import Wanted, needs_export
from export.benchmark.process import ask
from export.benchmark.rows import Failure, Result, Row, best
from video_distilled_encoder.errors import InputError


class Rounds:
    """The rounds over all rows.

    Args:
        rows: what to measure.
        settings: how.
    """

    def __init__(self, rows: Sequence[Row], settings: Wanted) -> None:
        self.settings = settings
        self.rates: dict[str, float] = {}
        """Of matrix products, GFLOP/s by precision: the best of all rounds."""
        self.interrupted = False
        """Whether it was ended before all rounds were over."""
        self._found: dict[Row, list[Result]] = {row: [] for row in rows}
        self._failed: dict[Row, str] = {}

    @property
    def results(self) -> list[Result]:
        """Of the rows that could be measured in every round that they came to."""
        return [best(found) for row, found in self._found.items() if found and row not in self._failed]

    @property
    def failures(self) -> list[Failure]:
        """The other rows."""
        return [Failure(row, reason) for row, reason in self._failed.items()]

    def run(self) -> None:
        """Export what is missing, then measure; a row that failed once is not tried again.

        Interleaved, so that a machine whose speed varies does not favour a row. Interrupted, it keeps what it has.
        """
        try:
            self._run()
        except KeyboardInterrupt:
            self.interrupted = True
            for row, found in self._found.items():
                if not found:
                    self._failed.setdefault(row, "it was not its turn yet when all was interrupted")

    def _run(self) -> None:
        rows, settings = list(self._found), self.settings
        missing = [row for row in rows if needs_export(row, settings.cache)]
        with tqdm(
            total=len(missing) + settings.rounds * (len(PRECISIONS) + len(rows)),
            desc="bench",
            unit="step",
            dynamic_ncols=True,
        ) as bar:
            for row in missing:
                self._try(bar, row, f"export {row.name}", self._export)
            for _ in range(settings.rounds):
                for precision in PRECISIONS:
                    bar.set_postfix_str(f"matmul {precision}")
                    try:
                        self._measure_rate(precision)
                    except InputError as error:
                        bar.write(f"no matmul floor in {precision}: {error}", file=sys.stderr)
                    bar.update()
                for row in rows:
                    self._try(bar, row, row.name, self._measure)

    def _try(self, bar: tqdm, row: Row, name: str, work: Callable[[Row], None]) -> None:
        bar.set_postfix_str(name)
        if row not in self._failed:
            try:
                work(row)
            except InputError as error:
                self._failed[row] = str(error)
        bar.update()

    def _export(self, row: Row) -> None:
        options = {"format": row.kind, "precision": row.precision, "size": row.size, "batch": row.batch}
        self._ask("export", model=str(self.settings.directory), out=row.source, **options)

    def _measure(self, row: Row) -> None:
        answer = self._ask("measure", row=asdict(row), frame=self.settings.frame, seconds=self.settings.seconds)
        self._found[row].append(Result.of(row, answer))

    def _measure_rate(self, precision: str) -> None:
        rate = self._ask("matmul_rate", precision=precision, seconds=self.settings.seconds)
        self.rates[precision] = max(rate, self.rates.get(precision, 0.0))

    @property
    def _ask(self) -> Callable[..., Any]:
        settings = self.settings
        return partial(ask, threads=settings.threads, timeout=settings.timeout, device=settings.device)
