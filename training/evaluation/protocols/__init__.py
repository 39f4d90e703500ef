"""The protocols, one file each: `linear_segmentation.py` is the protocol `linear-segmentation`.

A protocol's module imports no other protocol (what several share lies in probes and metrics); it has a docstring that
states the protocol, and

    add_arguments(parser)     its options, besides those that all have (--model --data --out --device --seed --cache)
    prepare(args)             if it makes its data itself: makes what is not there yet -> {name: path of what it uses}
    evaluate(model, args)     -> {"figures": {name: number or {…}}, "setting": {…}, "data": {…}}, and "variant": {…} if
                              models may be measured in several ways that are compared with one another
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def protocols() -> dict[str, ModuleType]:
    """Return the protocols by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name.replace("_", "-"): importlib.import_module(f"{__name__}.{name}") for name in names}
