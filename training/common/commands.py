"""What commands share."""

from __future__ import annotations

import argparse
import re
from functools import partial


def command_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser for `python -m training.NAME`, whose help keeps the lines of the description."""
    return argparse.ArgumentParser(
        prog=f"python -m training.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def parse_whole(text: str, least: int = 0) -> int:
    """Turn digits into a number.

    Raises:
        ArgumentTypeError: they are none, or it is less than the least.
    """
    if not re.fullmatch(r"\d+", text) or int(text) < least:
        raise argparse.ArgumentTypeError(f"this is a whole number of {least} or more, got {text!r}")
    return int(text)


parse_positive = partial(parse_whole, least=1)


def parse_duration(text: str | float) -> float:
    """Turn HH:MM:SS into seconds; jsonargparse hands in its own result again."""
    if isinstance(text, (int, float)):
        return float(text)
    if not re.fullmatch(r"\d+:\d\d:\d\d", text):
        raise ValueError(f"a time is written HH:MM:SS, got {text!r}")
    hours, minutes, seconds = (int(part) for part in text.split(":"))
    return hours * 3600.0 + minutes * 60 + seconds


def parse_shard(text: str) -> tuple[int, int]:
    """Turn I/N into numbers.

    Raises:
        ArgumentTypeError: it is not written so, or I is not one of 0 to N - 1.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(f"a shard is written 0/N to N-1/N, got {text!r}")
    return int(match[1]), int(match[2])
