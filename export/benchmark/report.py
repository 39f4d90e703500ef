"""What was found, as a table to read, as CSV, and as JSON with everything needed to repeat it."""

from __future__ import annotations

import csv
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from export.benchmark.floor import Floor
from export.benchmark.rows import Failure, Group, Result, Row
from export.versions import versions
from video_distilled_encoder.files import atomic_path, write_json

Record = dict[str, Any]
"""One row, flat."""

_COLUMNS = (
    ("network ms", "network_median_ms", ".2f"),
    ("p95", "network_p95_ms", ".2f"),
    ("p99", "network_p99_ms", ".2f"),
    ("end to end ms", "end_to_end_median_ms", ".2f"),
    ("p95", "end_to_end_p95_ms", ".2f"),
    ("p99", "end_to_end_p99_ms", ".2f"),
    ("preprocessing", "preprocessing_share", ".1%"),
    ("images/s", "images_per_second", ".1f"),
    ("x floor", "floor_ratio", ".2f"),
    ("speed-up", "speedup", ".2f"),
    ("first ms", "first_call_ms", ".0f"),
    ("load s", "load_seconds", ".2f"),
    ("RSS MiB", "memory_mib", ".0f"),
    ("GPU MiB", "gpu_memory_mib", ".0f"),
    ("min cosine", "min_cosine", ".6f"),
)
"""Title, key of a record, format."""
_MARKED = ("network_median_ms", "end_to_end_median_ms")


@dataclass(frozen=True)
class Report:
    """Everything found in one run."""

    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    results: Sequence[Result]
    floors: Sequence[Floor]
    failures: Sequence[Failure]
    interrupted: bool = False
    """Whether fewer rounds were measured than were asked for."""

    def records(self) -> list[Record]:
        """Return a record for each row measured, group by group, the fastest end to end first."""
        groups: dict[Group, list[Record]] = {(floor.size, floor.batch): [] for floor in self.floors}
        for result in self.results:
            groups[result.row.group].append(self._record(result))
        return [
            record
            for records in groups.values()
            for record in sorted(records, key=lambda record: record["end_to_end_median_ms"])
        ]

    def floor(self, group: Group) -> Floor:
        """Return the floor of a size and batch."""
        return next(floor for floor in self.floors if (floor.size, floor.batch) == group)

    def baseline(self, group: Group) -> Result | None:
        """Return what speed-ups are against: the first `--against` model in fp32, else torch eager in fp32."""
        those = [result for result in self.results if result.row.group == group and result.row.precision == "fp32"]
        others = [result for result in those if result.row.kind in ("timm", "transformers")]
        ours = [result for result in those if result.row.kind == "torch"]
        return next(iter([*others, *ours]), None)

    def _record(self, result: Result) -> Record:
        floor, baseline = self.floor(result.row.group).ms("fp32"), self.baseline(result.row.group)
        return {
            **_identity(result.row),
            **_times("network", result),
            **_times("end_to_end", result),
            "preprocessing_share": result.preprocessing_share,
            "preprocessing_inside": result.preprocessing_inside,
            "images_per_second": result.images_per_second,
            "first_call_ms": result.network.first,
            "load_seconds": result.load_seconds,
            "memory_mib": result.memory_mib,
            "gpu_memory_mib": result.gpu_memory_mib,
            "min_cosine": result.min_cosine,
            "floor_ms": floor,
            "floor_ratio": result.network.median / floor if floor else None,
            "speedup": baseline.network.median / result.network.median if baseline else None,
            "speedup_end_to_end": baseline.end_to_end.median / result.end_to_end.median if baseline else None,
            "speedup_over": baseline.row.name if baseline else None,
        }


def table(report: Report) -> str:
    """Return what the command prints: a table for each size and batch, the floors, and what could not be measured."""
    records = report.records()
    machine = report.machine
    lines = [f"{machine['gpu'] or machine['cpu']}, {machine['cores']} CPU cores, {machine['threads']} threads used"]
    if machine["load_average"] is not None and machine["load_average"] > 0.5:
        lines.append(f"other work is running here (load {machine['load_average']:.1f}): figures may be too slow")
    for floor in report.floors:
        group = (floor.size, floor.batch)
        mine = [record for record in records if (record["size"], record["batch"]) == (_size(floor.size), floor.batch)]
        lines += ["", *_group_lines(mine), _floor_line(floor)]
        baseline = report.baseline(group)
        if baseline:
            lines.append(f"speed-up: of the network, over {baseline.row.name}. * fastest")
    if report.failures:
        lines += ["", "not measured:", *failure_lines(report.failures, several=len(report.floors) > 1)]
    if report.interrupted:
        lines += ["", "interrupted: these are the rounds that were over, perhaps not of all rows as many"]
    return "\n".join(lines)


def failure_lines(failures: Sequence[Failure], several: bool) -> list[str]:
    """Return a line for each network and reason: precisions, and sizes and batches if there are several."""
    reasons: dict[tuple[str, str], list[Row]] = {}
    for row, reason in failures:
        reasons.setdefault((row.label, reason), []).append(row)
    lines = []
    for (label, reason), rows in reasons.items():
        precisions = ", ".join(dict.fromkeys(row.precision for row in rows))
        places = ", ".join(dict.fromkeys(f"{_size(row.size)} batch {row.batch}" for row in rows))
        lines.append(f"  {label} {precisions}{f' ({places})' if several else ''}: {reason}")
    return lines


def write(report: Report, folder: Path) -> None:
    """Write bench.csv (a line for each row, also of those that failed) and bench.json (everything)."""
    records = report.records()
    failures = [{**_identity(row), "reason": reason} for row, reason in report.failures]
    with atomic_path(folder / "bench.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*records[0], "reason"], restval="")
        writer.writeheader()
        writer.writerows([*records, *failures])
    content = {
        "machine": report.machine,
        "settings": report.settings,
        "interrupted": report.interrupted,
        "floors": [_floor_record(floor) for floor in report.floors],
        "rows": records,
        "failures": failures,
    }
    write_json(folder / "bench.json", content)


def machine(device: str, threads: int) -> dict[str, Any]:
    """Return the facts of this machine; load_average: how many processes wanted to compute in the last minute."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name(device) if device != "cpu" else None,
        "device": device,
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _identity(row: Row) -> Record:
    size = _size(row.size)
    return {"name": row.name, "kind": row.kind, "precision": row.precision, "size": size, "batch": row.batch}


def _size(size: tuple[int, int]) -> str:
    return "{}x{}".format(*size)


def _times(part: str, result: Result) -> Record:
    latency = getattr(result, part)
    percentiles = {f"{part}_{name}_ms": getattr(latency, name) for name in ("median", "p95", "p99")}
    return {**percentiles, f"{part}_calls": latency.calls}


def _floor_record(floor: Floor) -> Record:
    return {
        "size": _size(floor.size),
        "batch": floor.batch,
        "gflop": floor.gflop,
        "gflop_per_second": dict(floor.rates),
        "ms": {precision: floor.ms(precision) for precision in floor.rates},
    }


def _floor_line(floor: Floor) -> str:
    if not floor.rates:
        return f"matmul floor: {floor.gflop:.2f} GFLOP, whose time is not known"
    rates = ", ".join(f"{floor.ms(name):.2f} ms in {name} ({rate:,.0f} GFLOP/s)" for name, rate in floor.rates.items())
    return f"matmul floor: {floor.gflop:.2f} GFLOP take {rates}; x floor is over fp32"


def _group_lines(records: Sequence[Record]) -> list[str]:
    """Return an aligned table; columns in which nothing is known are left out."""
    if not records:
        return ["nothing measured"]
    known = [column for column in _COLUMNS if any(record[column[1]] is not None for record in records)]
    columns = [[title, *_cells(records, key, form)] for title, key, form in known]
    names = [f"{records[0]['size']}, batch {records[0]['batch']}", *(record["name"] for record in records)]
    lines = [[name.ljust(max(map(len, names)))] for name in names]
    for column in columns:
        width = max(map(len, column))
        for line, cell in zip(lines, column, strict=True):
            line.append(cell.rjust(width))
    return ["  ".join(line) for line in lines]


def _cells(records: Sequence[Record], key: str, form: str) -> list[str]:
    least = min((record[key] for record in records if record[key] is not None), default=None)
    mark = [key in _MARKED and record[key] == least for record in records]
    return [
        "–" if record[key] is None else ("* " if best else "") + format(record[key], form)
        for record, best in zip(records, mark, strict=True)
    ]
