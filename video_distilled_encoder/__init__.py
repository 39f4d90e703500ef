"""A single-image vision encoder whose weights learned time from unlabelled video.

>>> from video_distilled_encoder import Encoder
>>> encoder = Encoder.from_pretrained("nota/vfd-vits16")
>>> out = encoder.encode("photograph.jpg")  # out.cls (1, 384), out.patches (1, 196, 384), out.grid (1, 384, 14, 14)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from video_distilled_encoder.encoder import Encoder, EncoderOutput
    from video_distilled_encoder.errors import InputError
    from video_distilled_encoder.model_config import ModelConfig
    from video_distilled_encoder.runtimes import Runtime, load_runtime
    from video_distilled_encoder.stream import Stream

__all__ = ["Encoder", "EncoderOutput", "InputError", "ModelConfig", "Runtime", "Stream", "load_runtime"]

_MODULES = {
    "Encoder": "encoder",
    "EncoderOutput": "encoder",
    "InputError": "errors",
    "ModelConfig": "model_config",
    "Runtime": "runtimes",
    "Stream": "stream",
    "load_runtime": "runtimes",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for: torch and timm take seconds, and what reads video needs neither."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
