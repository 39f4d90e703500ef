"""Training methods, one file each.

A method's module has:

    Objective                       a dataclass of its settings
    plan_views(rng, size, spec)     the views it wants of a clip whose frames have `size` (width, height)
    Method(spec, build)             a `training.methods.method.Method`: what is trained, its losses, the encoder
    clip_spec(spec)                 the frames it wants, a `ClipSpec`, if not those of `clips.frames` and `clips.stride`
    flow_config(spec)               how the optical flow is computed between a clip's first and last frame, a
                                    `training.data.flow.FlowConfig`, if `plan_views` is to get it, a `Motion`, as well
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from video_distilled_encoder.errors import InputError

_SHARED = ("method", "self_distillation")


def method_names() -> list[str]:
    """Return the names of all methods."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _SHARED)


def load_method(name: str) -> ModuleType:
    """Import the module of a method.

    Raises:
        InputError: there is no such method.
    """
    if name not in method_names():
        raise InputError(f"there is no method {name!r}; choose from: {', '.join(method_names())}")
    return importlib.import_module(f"training.methods.{name}")
