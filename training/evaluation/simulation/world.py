"""What a simulated task offers to a policy, and to its expert."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np


class Observation(NamedTuple):
    """What can be known at one moment without looking."""

    proprioception: np.ndarray
    """(P,) float32, what the robot knows of itself."""
    state: np.ndarray
    """(S,) float32, what the simulator knows."""


class Episode(ABC):
    """One attempt at a task."""

    @abstractmethod
    def observe(self) -> Observation:
        """Return what is known now."""

    @abstractmethod
    def picture(self) -> np.ndarray:
        """Draw what the task's camera sees now, (H, W, 3) uint8 RGB. It takes longer than all the rest."""

    @abstractmethod
    def expert(self) -> np.ndarray:
        """Return what the scripted expert would do now, (A,) float32 in [-1, 1]."""

    @abstractmethod
    def act(self, action: np.ndarray) -> bool:
        """Do (A,) something for a while; tell whether the task is solved."""


class World(ABC):
    """A task."""

    name: str

    @abstractmethod
    def episode(self, seed: int, number: int) -> Episode:
        """Return the attempt `number` of those that a seed draws."""

    @property
    @abstractmethod
    def description(self) -> dict[str, object]:
        """All that its pictures and dynamics depend on."""
