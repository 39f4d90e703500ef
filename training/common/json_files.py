"""Facts in JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from video_distilled_encoder.errors import InputError, first_line


def read_facts(path: Path, why: str) -> dict[str, Any]:
    """Read the JSON object in a file.

    Args:
        path: the file.
        why: it is needed, for the message.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({first_line(error)}); {why}") from error
    return facts
