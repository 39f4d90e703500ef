"""Where everything is kept that can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """Return the folder of all caches: $VDE_CACHE, or a part of the user's cache."""
    cache = os.environ.get("VDE_CACHE")
    base = Path(cache) if cache else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "video_distilled_encoder"
    return base.expanduser()


def frame_stores() -> Path:
    """Return the folder of frame stores."""
    return cache_root() / "frames"
