"""The rooms of `training` and their order: a file imports its own room and lower ones, nothing imports a command."""

import ast
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[2] / "training"
ROOMS = [
    "common",
    "data",
    "nn",
    "models",
    "methods",
    "recipes",
    "engine",
    "evaluation",
    "reporting",
    "studies",
    "releases",
]
"""From the lowest to the highest; commands stand above them all, the core package below."""
NARROWER = {"nn": {"common"}, "models": {"common", "nn"}, "evaluation": {"common", "models", "nn"}}
"""Rooms that may use fewer than all lower ones."""


def room_of(parts):
    """Return the room of a file or module, by its path from `training`; "commands" for those that stand in none."""
    return parts[0] if len(parts) > 1 and parts[0] in ROOMS else "commands"


def imported(path):
    """Yield the modules of `training` that a file imports, wherever in it, each as its path."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "training":
            for alias in node.names:
                parts = [*node.module.split(".")[1:], alias.name]
                whole = HOUSE.joinpath(*parts)
                yield tuple(parts if whole.is_dir() or whole.with_suffix(".py").is_file() else parts[:-1])
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "training":
                    yield tuple(alias.name.split(".")[1:])


def breaks(path):
    """Return what a file imports and may not."""
    room = room_of(path.relative_to(HOUSE).with_suffix("").parts)
    lower = ROOMS[: ROOMS.index(room)] if room in ROOMS else ROOMS
    allowed = {room, *NARROWER.get(room, lower)} - {"commands"}
    return {".".join(parts) for parts in imported(path) if (parts[0] if parts else "commands") not in allowed}


FILES = sorted(path for path in HOUSE.rglob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(HOUSE).as_posix())
def test_a_file_imports_its_own_room_and_lower_ones(path):
    name = path.relative_to(HOUSE).as_posix()
    assert not breaks(path), f"{name} breaks the order of the rooms"


def test_every_file_has_its_place():
    assert all(room_of(path.relative_to(HOUSE).parts) in [*ROOMS, "commands"] for path in FILES)
    stray = {path.parent.name for path in FILES if len(path.relative_to(HOUSE).parts) > 1} - set(ROOMS)
    assert stray <= {"data", "finetune", "metrics", "presets", "probes", "protocols", "simulation", "statistics"}


@pytest.mark.parametrize("path", sorted(HOUSE.glob("[!_]*.py")), ids=lambda path: path.name)
def test_a_command_parses_calls_and_prints(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 80


def test_no_protocol_imports_another():
    for path in (HOUSE / "evaluation" / "protocols").glob("[!_]*.py"):
        assert ("evaluation", "protocols") not in {parts[:2] for parts in imported(path)}, path.name
