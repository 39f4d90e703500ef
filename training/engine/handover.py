"""What a run leaves for the next one: all that it learnt, in half precision and in parts that are easy to carry.

    part-00, part-01, …   one safetensors file in parts of at most --shard-size: `cat part-*` joins them
    handover.json         the architecture, and the runs that have led here with their recipes
    SHA256SUMS            of the files above

Of what student and teacher both have, the teacher's is kept, which is the better encoder, and the next student starts
equal to it; prediction head, mask token and the like are the student's, and running averages are kept as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from training.common import json_files
from training.engine.plan import Plan
from video_distilled_encoder.errors import InputError, first_line
from video_distilled_encoder.files import atomic_directory, sha256, write_json
from video_distilled_encoder.model_config import ModelConfig
from video_distilled_encoder.model_directory import CHECKSUMS, read_checksums

FOLDER = "handover"
SHARD_MIB = 15.0
_SMALLEST_MIB = 0.1
_FACTS = "handover.json"
_VERSION = 1
_STUDENT, _TEACHER = "student.", "teacher."


class Handover(NamedTuple):
    """What a run learnt."""

    state: dict[str, Tensor]
    """Of the method, in float32."""
    config: ModelConfig
    """Of the encoder."""
    runs: list[dict[str, Any]]
    """The runs that have led here, the last one last: steps, clips, progress and recipe of each, and what its method
    says of the frozen models that it learnt from."""

    def backbone(self) -> dict[str, Tensor]:
        """Return the encoder's weights under timm's names."""
        return backbone_of(self.state)


def backbone_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the encoder of a method's state: the teacher's backbone, or the student's if there is no teacher."""
    role = _TEACHER if any(name.startswith(_TEACHER) for name in state) else _STUDENT
    prefix = f"{role}backbone."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def write(
    folder: Path, method: nn.Module, config: ModelConfig, runs: list[dict[str, Any]], shard_mib: float = SHARD_MIB
) -> None:
    """Write what a run learnt into `folder`, in place of what was there.

    Args:
        folder: made if missing.
        method: whose state it is.
        config: of the encoder.
        runs: that have led here.
        shard_mib: largest size of a part.
    """
    kept = {name: tensor.detach().to("cpu", torch.float16) for name, tensor in _without_twins(method.state_dict())}
    data, size = save(kept), int(shard_mib * 2**20)
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    names = _names(len(parts))
    encoder = {"architecture": config.architecture, "model_args": dict(config.model_args)}
    facts = {"version": _VERSION, **encoder, "parts": len(parts), "runs": runs}
    with atomic_directory(folder) as staging:
        for name, part in zip(names, parts, strict=True):
            (staging / name).write_bytes(part)
        write_json(staging / _FACTS, facts)
        sums = "".join(f"{sha256(file)}  {file.name}\n" for file in sorted(staging.iterdir()))
        (staging / CHECKSUMS).write_text(sums, encoding="utf-8")
    for old in set(folder.glob("part-*")) - {folder / name for name in names}:
        old.unlink()


def facts_of(step: int, plan: Plan, recipe: Mapping[str, Any], provenance: str) -> dict[str, Any]:
    """Return what is told of a run after `step` steps."""
    clips = step * recipe["run"]["batch_size"]
    facts = {"steps": step, "clips": clips, "progress": plan.progress(step), "recipe": recipe}
    return facts | {"provenance": provenance} if provenance else facts


class Past(NamedTuple):
    """What a run's `run.json` tells of where its weights come from."""

    runs: list[dict[str, Any]]
    """Before it."""
    provenance: str
    """Of its own frozen models."""


def past_of(run: Path) -> Past:
    """Read where the weights of a run come from.

    Raises:
        InputError: `run.json` is missing or damaged.
    """
    facts = read_facts(run)
    return Past(facts.get("runs_before", []), facts.get("provenance", ""))


def read_facts(run: Path) -> dict[str, Any]:
    """Return what a run's `run.json` holds.

    Raises:
        InputError: it is missing or damaged.
    """
    return json_files.read_facts(run / "run.json", "it says what the run began with")


def check_size(shard_mib: float) -> None:
    """Refuse a size of parts of which there would be thousands.

    Raises:
        InputError: it is one.
    """
    if not shard_mib >= _SMALLEST_MIB:
        raise InputError(f"--shard-size is at least {_SMALLEST_MIB:g} MiB, got {shard_mib:g}")


def is_handover(folder: Path) -> bool:
    """Tell whether a folder is one."""
    return (folder / _FACTS).is_file()


def is_of_finished_run(folder: Path) -> bool:
    """Tell whether a folder is what a run left after its last step.

    Raises:
        InputError: as `read`.
    """
    return is_handover(folder) and bool(read(folder).runs[-1]["progress"] == 1)


def read(folder: Path) -> Handover:
    """Read what a run learnt.

    Raises:
        InputError: a part is missing or damaged, or it was written by a later version.
    """
    try:
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        if facts["version"] > _VERSION:
            raise InputError(f"{folder} was written by a later version of this package, which is needed to read it")
        names = _names(facts["parts"])
        sums = read_checksums(folder)
        wrong = [name for name in (_FACTS, *names) if sha256(folder / name) != sums.get(name)]
        if wrong:
            raise InputError(f"{folder / wrong[0]} does not match its checksum in {CHECKSUMS}; copy it again")
        state = load(b"".join((folder / name).read_bytes() for name in names))
        return Handover(_with_twins(state), ModelConfig.from_json(facts), facts["runs"])
    except FileNotFoundError as error:
        raise InputError(f"{folder} lacks {Path(error.filename).name}; copy all of its files") from error
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"{folder} is not what a run leaves for the next ({first_line(error)})") from error


def _names(parts: int) -> list[str]:
    """Return the names of so many parts, which sort as the parts follow one another."""
    return [f"part-{number:0{max(len(str(parts - 1)), 2)}d}" for number in range(parts)]


def _without_twins(state: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Return the tensors but those of the student that the teacher has too."""
    return [(name, tensor) for name, tensor in state.items() if _twin(name) not in state]


def _with_twins(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    whole = {name: tensor.float() for name, tensor in state.items()}
    twins = {f"{_STUDENT}{name.removeprefix(_TEACHER)}": name for name in state if name.startswith(_TEACHER)}
    return whole | {twin: whole[name].clone() for twin, name in twins.items()}


def _twin(name: str) -> str | None:
    """Return what a student's tensor is called in the teacher."""
    return f"{_TEACHER}{name.removeprefix(_STUDENT)}" if name.startswith(_STUDENT) else None
