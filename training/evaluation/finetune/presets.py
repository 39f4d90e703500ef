"""Settings of a fine-tuning protocol: a frozen dataclass, filled from a preset (YAML) and from `--set key=value`."""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from training.common.yaml_files import find_file, read_mapping
from video_distilled_encoder.errors import InputError

PRESETS = Path(__file__).parents[1] / "presets"
Settings = TypeVar("Settings")


def add_preset_arguments(parser: argparse.ArgumentParser, protocol: str, default: str) -> None:
    """Add --preset, --set and --workers."""
    names = ", ".join(preset_names(protocol))
    parser.add_argument("--preset", default=default, help=f"{names}, or a YAML file (%(default)s)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings other than the preset's")
    parser.add_argument("--workers", type=int, default=4, help="processes that read and augment (%(default)s)")


def preset_names(protocol: str) -> list[str]:
    """Return the presets that come with a protocol."""
    found = {path.stem: read_mapping(path, "preset") for path in PRESETS.glob("*.yaml")}
    return sorted(name for name, values in found.items() if values.get("protocol") == protocol)


def read_settings(kind: type[Settings], protocol: str, preset: str, changes: Sequence[str] = ()) -> Settings:
    """Return a preset's settings with changes.

    Args:
        kind: the dataclass of settings.
        protocol: that the preset must be of.
        preset: name of a preset that comes with the package, or path of a YAML file.
        changes: KEY=VALUE, values in YAML.

    Raises:
        InputError: there is no such preset or setting, or a value is of the wrong kind.
    """
    names = preset_names(protocol)
    path = find_file(preset, PRESETS, "preset", names)
    values = read_mapping(path, "preset")
    if values.pop("protocol", None) != protocol:
        raise InputError(f"{path} is not a preset of {protocol}; choose {', '.join(names)}")
    for change in changes:
        key, sign, text = change.partition("=")
        if not sign:
            raise InputError(f"--set {change} is not KEY=VALUE")
        values[key] = _parse(text, f"--set {key}")
    hints = typing.get_type_hints(kind)
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(values.keys() - set(known))
    if unknown:
        raise InputError(f"{preset} has no setting {unknown[0]}; there are {', '.join(known)}")
    return kind(**{key: _fit(value, hints[key], key) for key, value in values.items()})


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{where} is not YAML: {str(error).splitlines()[0]}") from error


def _fit(value: Any, hint: Any, key: str) -> Any:
    """Return a value as its setting's type."""
    kind = typing.get_origin(hint)
    choices = typing.get_args(hint)
    if kind is Literal and value in choices:
        return value
    if kind is types.UnionType:
        return None if value is None else _fit(value, choices[0], key)
    if kind is tuple and isinstance(value, list) and (choices[-1] is Ellipsis or len(value) == len(choices)):
        return tuple(_fit(element, choices[0], key) for element in value)
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 takes 1e-4 for text
        except ValueError:
            pass
    if hint in (int, bool, str) and type(value) is hint:
        return value
    wanted = f"one of {', '.join(map(str, choices))}" if kind is Literal else getattr(hint, "__name__", str(hint))
    if kind is tuple:
        count = "" if choices[-1] is Ellipsis else f"{len(choices)} "
        wanted = f"a list of {count}numbers, as {key}=[1,2]"
    raise InputError(f"setting {key} must be {wanted}, got {value!r}")
