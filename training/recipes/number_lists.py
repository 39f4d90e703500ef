"""Settings of several numbers on a command line: `0.99 0.998`, `0.99,0.998` or, as in YAML, `[0.99,0.998]`."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, NamedTuple

from video_distilled_encoder.errors import InputError


class NumberList(NamedTuple):
    """A setting of several numbers."""

    length: int | None
    """How many; None for any number."""
    example: str
    """What may stand behind its name."""


def settings(sections: Mapping[str, type]) -> dict[str, NumberList]:
    """Return the settings of several numbers among the fields of dataclasses, as options: "--optimizer.betas"."""
    found = {}
    for section, config in sections.items():
        hints = typing.get_type_hints(config)
        for field in fields(config):
            hint = hints[field.name]
            kind = typing.get_args(hint)[0] if isinstance(hint, types.UnionType) else hint
            if typing.get_origin(kind) is tuple and typing.get_args(kind)[0] in (int, float):
                inner = typing.get_args(kind)
                count = None if inner[-1] is ... else len(inner)
                values = field.default if field.default not in (None, MISSING, ()) else [*range(1, (count or 2) + 1)]
                found[f"--{section}.{field.name}"] = NumberList(count, " ".join(f"{value:.4g}" for value in values))
    return found


def on_command_line(argv: Sequence[str], known: Mapping[str, NumberList]) -> list[str]:
    """Return a command line with such settings in YAML's form.

    Raises:
        InputError: one has something else than its numbers.
    """
    found, words = [], list(argv)
    while words:
        word = words.pop(0)
        name, _, value = word.partition("=")
        if name in known:
            while words and not words[0].startswith("--"):
                value += f" {words.pop(0)}"
            word = f"{name}={_in_yaml(name, value.strip(), known[name])}"
        found.append(word)
    return found


def check(content: Mapping[str, Any], known: Mapping[str, NumberList]) -> None:
    """Check such settings of a recipe.

    Raises:
        InputError: one is no list of its numbers.
    """
    for option, wanted in known.items():
        section, name = option.removeprefix("--").split(".")
        value = content[section].get(name) if isinstance(content.get(section), dict) else None
        if isinstance(value, list):
            _in_yaml(option, ",".join(map(str, value)), wanted)
        elif value is not None:
            raise InputError(
                f"{section}.{name} in a recipe is a list, as [{', '.join(wanted.example.split())}]; got {value!r}"
            )


def _in_yaml(name: str, text: str, wanted: NumberList) -> str:
    if text in ("null", "None"):
        return "null"
    numbers = re.findall(r"[^\s,]+", text.strip("[]()"))
    if not all(map(_is_number, numbers)) or len(numbers) != (len(numbers) if wanted.length is None else wanted.length):
        count = {2: "two", 3: "three"}.get(wanted.length or 0, "several")
        raise InputError(f"{name} takes {count} numbers, such as {name} {wanted.example}; got {text!r}")
    return f"[{','.join(numbers)}]"


def _is_number(text: Any) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
