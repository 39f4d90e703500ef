"""Training methods, one file each.

A method's module has:
    Objective               a dataclass of its settings
    plan_views(rng, size, spec)     the views it wants of a clip whose frames have `size` (width, height)
    Method                  a `training.methods.base.Method`: student, teacher and loss
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from video_distilled_encoder.errors import InputError


def method_names() -> list[str]:
    """Return the names of all methods."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def load_method(name: str) -> ModuleType:
    """Import the module of a method.

    Raises:
        InputError: there is no such method.
    """
    if name not in method_names():
        raise InputError(f"there is no method {name!r}; choose from: {', '.join(method_names())}")
    return importlib.import_module(f"training.methods.{name}")
