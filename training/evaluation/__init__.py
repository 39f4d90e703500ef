"""Evaluation protocols, one file each.

A protocol's module has a docstring that states the protocol, and
    add_arguments(parser)     its options
    evaluate(model, args)     -> {"figures": …, "setting": …, "data": …}
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

_HELPERS = {"models"}


def protocols() -> dict[str, ModuleType]:
    """Return the protocols by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _HELPERS)
    return {name.replace("_", "-"): importlib.import_module(f"{__name__}.{name}") for name in names}
