"""YAML files that come with the package and can be given by name: recipes, presets, studies, releases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from video_distilled_encoder.errors import InputError, first_line

T = TypeVar("T")


def names_in(folder: Path) -> list[str]:
    """Return the names of a folder's YAML files."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def find_file(name: str, folder: Path, kind: str, names: Sequence[str] | None = None) -> Path:
    """Return a file of `folder`, given its name, or any file, given its path.

    Args:
        name: a name or a path.
        folder: where files with names are.
        kind: what it is called in a message.
        names: the names to choose from; all in the folder by default.

    Raises:
        InputError: there is none.
    """
    for path in (folder / f"{name}.yaml", Path(name)):
        if path.is_file():
            return path
    raise InputError(f"there is no {kind} {name!r}; give a YAML file or one of: {', '.join(names or names_in(folder))}")


def read_mapping(path: Path, kind: str) -> dict[str, Any]:
    """Read a file's settings.

    Raises:
        InputError: it cannot be read, or is no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a {kind}: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a {kind}: it is no mapping of settings")
    return content


def read_as(path: Path, kind: str, build: Callable[[dict[str, Any]], T]) -> T:
    """Read a file as what `build` makes of its settings.

    Raises:
        InputError: it cannot be read, or a setting is missing or unknown.
    """
    content = read_mapping(path, kind)
    try:
        return build(content)
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is not a {kind}: {error}") from error
