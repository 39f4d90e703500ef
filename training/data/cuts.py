"""Finding cuts: frames that begin a new shot, so that no clip crosses one.

A frame begins a shot if it differs from the frame before it much more than its neighbours in time differ from theirs,
as in PySceneDetect's adaptive detector, whose ratio is taken over: a fast camera moves every frame, a cut only one.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

_SIDE = 32
_MIN_CHANGE = 25.0
_RATIO = 3.0
_WINDOW = 4


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Reduce an (H, W, 3) uint8 image to what frames are compared by: (32, 32, 3) float32."""
    small = Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.BOX, reducing_gap=2.0)
    return np.asarray(small, dtype=np.float32)


def find_cuts(changes: np.ndarray) -> list[int]:
    """Return the frames that begin a new shot.

    Args:
        changes: (T,) mean absolute difference of each frame's thumbnail from the one before, of 255; the first is 0.
    """
    cuts = []
    for frame in range(1, len(changes)):
        around = [*changes[max(frame - _WINDOW, 1) : frame], *changes[frame + 1 : frame + 1 + _WINDOW]]
        usual = float(np.mean(around)) if around else 0.0
        if changes[frame] >= _MIN_CHANGE and changes[frame] >= _RATIO * usual:
            cuts.append(frame)
    return cuts
