"""Keeping the results used last."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The results of a function for the arguments it was asked for last.

    An `lru_cache` around a method would make a ring with its object, whose memory, a GPU's too, would then wait for the
    garbage collector.

    Args:
        most: how many results are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: dict[K, V] = {}

    def get(self, key: K, make: Callable[[K], V]) -> V:
        """Return what `make` gives for a key, or has given for it."""
        value = self._kept.pop(key, None)
        if value is None:
            value = make(key)
        self._kept[key] = value  # as the newest
        if len(self._kept) > self._most:
            del self._kept[next(iter(self._kept))]
        return value
