"""Which rows there are, from what was asked for and what is installed."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from export.benchmark.rows import DTYPES, Failure, Group, Row
from export.pipeline import FORMATS
from export.versions import code_sha256, differences, versions
from video_distilled_encoder import model_directory
from video_distilled_encoder.errors import InputError, MissingExtra, warn
from video_distilled_encoder.runtimes.artefact import SUFFIXES, Artefact

TORCH = ("torch", "torch-compile")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
_ONNX = ("onnx", "onnxscript", "onnxruntime")
_NEEDED = {"onnx": _ONNX, "openvino": ("openvino", *_ONNX), "tensorrt": ("tensorrt", *_ONNX)}
"""Packages without which nothing of a format can run."""


@dataclass(frozen=True)
class Wanted:
    """What is to be measured."""

    directory: Path
    """Of the model."""
    sizes: Sequence[tuple[int, int]]
    batches: Sequence[int]
    formats: Sequence[str]
    precisions: Sequence[str] | None
    """None: all, and fp32 of other models."""
    against: Sequence[str]
    """timm:NAME and transformers:DIR_OR_ID."""
    artefacts: Sequence[Path]
    device: str
    cache: Path
    """Folder of exports."""
    frame: tuple[int, int] = (720, 1280)
    """(height, width) of a camera frame."""
    threads: int = 1
    seconds: float = 2.0
    """For each figure in each round."""
    rounds: int = 3
    timeout: float = 900.0
    """Seconds that a row may take, to be exported or to be measured in one round."""

    @property
    def groups(self) -> list[Group]:
        """Sizes by batches."""
        return [(size, batch) for size in dict.fromkeys(self.sizes) for batch in dict.fromkeys(self.batches)]


def plan(wanted: Wanted) -> tuple[list[Row], list[Failure]]:
    """Return the rows to measure, and those that cannot be, as far as that is known without trying."""
    rows: list[Row] = []
    failures: list[Failure] = []
    key = export_key(wanted.directory)
    for group in wanted.groups:
        for row in (*_own_rows(wanted, group, key), *_other_rows(wanted, group)):
            reason = unfit(row)
            failures.append(Failure(row, reason)) if reason else rows.append(row)
    return [*rows, *_artefact_rows(wanted)], failures


def _own_rows(wanted: Wanted, group: Group, key: str) -> Iterator[Row]:
    """Yield formats by precisions."""
    (height, width), batch = group
    device = wanted.device.replace(":", "")
    for kind in dict.fromkeys(wanted.formats):
        for precision in dict.fromkeys(wanted.precisions or PRECISIONS):
            place = wanted.cache / f"{kind}-{precision}-{height}x{width}-batch{batch}-{device}-{key}"
            source = wanted.directory if kind in TORCH else place / f"encoder{SUFFIXES[kind]}"
            yield Row(kind, str(source), precision, *group, {"torch": "torch eager"}.get(kind, kind))


def _other_rows(wanted: Wanted, group: Group) -> Iterator[Row]:
    """Yield models of other libraries by precisions."""
    for other in dict.fromkeys(wanted.against):
        library, _, name = other.partition(":")
        for precision in dict.fromkeys(wanted.precisions or ("fp32",)):
            yield Row(library, name, precision, *group, f"{library}:{Path(name).name}")


def _artefact_rows(wanted: Wanted) -> Iterable[Row]:
    """Yield existing exports; one of a fixed size is measured at its own only."""
    for path in dict.fromkeys(wanted.artefacts):
        artefact = Artefact.read(path)
        camera = artefact.camera
        label = f"{path.name} of {camera.height}x{camera.width} frames" if camera else path.name
        if other := differences(artefact.facts.get("versions", {})):
            warn(
                f"{path} was exported by other versions, {other}, and is measured as it is; export it again to compare"
            )
            label += " (by other versions)"
        for size in [artefact.size] if artefact.size else dict.fromkeys(wanted.sizes):
            for batch in dict.fromkeys(wanted.batches):
                yield Row(artefact.format, str(path), artefact.precision, size, batch, label)


def export_key(directory: Path) -> str:
    """Return what tells apart exports of other weights, or by other versions."""
    facts = {"weights": model_directory.weights_sha256(directory), "versions": versions(), "code": code_sha256()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def unfit(row: Row) -> str | None:
    """Return why a row cannot be measured here, if that is known without trying."""
    if row.kind not in FORMATS:
        return None if row.precision in DTYPES else f"torch modules run in {', '.join(DTYPES)} here"
    known = FORMATS[row.kind].PRECISIONS
    if row.precision not in known:
        return f"this format has {', '.join(known)}"
    for package in _NEEDED.get(row.kind, ()):
        if importlib.util.find_spec(package) is None:
            return str(MissingExtra(package, "tensorrt" if package == "tensorrt" else "export"))
    return None


def needs_export(row: Row, cache: Path) -> bool:
    """Tell whether a row's export is one of ours and not there yet, whole."""
    if row.kind not in FORMATS or not Path(row.source).is_relative_to(cache):
        return False
    try:
        Artefact.read(Path(row.source))
    except InputError:
        return True
    return False
