"""What commands share."""

from __future__ import annotations

import argparse
import re
import sys


def command_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser for `python -m training.NAME`, whose help keeps the lines of the description."""
    return argparse.ArgumentParser(
        prog=f"python -m training.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def parse_duration(text: str | float) -> float:
    """Turn HH:MM:SS into seconds; jsonargparse hands in its own result again."""
    if isinstance(text, (int, float)):
        return float(text)
    if not re.fullmatch(r"\d+:\d\d:\d\d", text):
        raise ValueError(f"a time is written HH:MM:SS, got {text!r}")
    hours, minutes, seconds = (int(part) for part in text.split(":"))
    return hours * 3600.0 + minutes * 60 + seconds


def parse_range(text: str) -> range:
    """Turn A:B into the numbers from A to before B; either may be left out.

    Raises:
        ArgumentTypeError: it is not written so, or holds no number.
    """
    match = re.fullmatch(r"(\d*):(\d*)", text)
    numbers = range(int(match[1] or 0), int(match[2] or sys.maxsize)) if match else range(0)
    if not numbers:
        raise argparse.ArgumentTypeError(f"a range is written A:B, with A before B, got {text!r}")
    return numbers
