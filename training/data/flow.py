"""Optical flow between two frames of a store, there and back, computed once and kept beside the store.

    STORE.flow/NAME/000010-000025.npy   (2, 2, h, w) float16: from the first frame to the second and back, each x and y
                                        in pixels of the store's frames

NAME tells the estimator and all its settings, of RAFT the SHA-256 of its weights, too; STORE is named by the content of
its source. A file appears under its name when it is whole, so any process may compute what is missing while others do.

Legend: W, H = width and height of a frame, h, w = rows and columns of what is kept of a flow.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from training.common import stop
from training.common.digests import remembered_sha256
from training.data.box import Box
from training.data.frame_store import FrameStore
from training.data.views import cut
from video_distilled_encoder.errors import InputError, first_line, import_extra
from video_distilled_encoder.files import atomic_path, read_tensors, reading

_RAFT_MULTIPLE, _RAFT_LEAST = 8, 128
"""What the sides of RAFT's images have to be a multiple of, and at least."""


@dataclass(frozen=True)
class FlowConfig:
    """How optical flow is computed, and how much of it is kept."""

    estimator: Literal["dis", "raft"] = "dis"
    """dis: OpenCV's dense inverse search (Kroeger et al. 2016), which wants no weights. raft: torchvision's RAFT, small
    or large, with `weights`; PooDLe's is the large one, trained on FlyingThings."""
    weights: str = ""
    """RAFT's: a file with the state of torchvision's raft_small or raft_large, .safetensors or what torch.save writes;
    pickled code is not run."""
    iterations: int = 24
    """Of RAFT (PooDLe)."""
    preset: Literal["ultrafast", "fast", "medium"] = "medium"
    """Of DIS: OpenCV's, from coarse to fine."""
    side: int = 384
    """Larger frames are resized to it before (pixels of the shorter side); ours, between speed and detail."""
    coarseness: int = 8
    """Every so many pixels of those one flow is kept, their mean; ours: one for each half patch of 16 pixels."""

    def __post_init__(self) -> None:
        if min(self.iterations, self.side, self.coarseness) < 1:
            raise InputError("flow.iterations, .side and .coarseness must be positive")
        if (self.estimator == "raft") != bool(self.weights):
            raise InputError(
                "flow.weights is the file of RAFT's weights: give it with flow.estimator raft, and with no other; "
                f"got {self.estimator} and {self.weights or 'none'}"
            )

    def name(self) -> str:
        """Name the estimator and all that its flow depends on.

        Raises:
            InputError: there are no such weights.
        """
        kind: str = self.preset
        if self.estimator == "raft":
            with reading(Path(self.weights)):
                kind = f"{remembered_sha256(Path(self.weights))[:16]}-{self.iterations}"
        return f"{self.estimator}-{kind}-{self.side}px-{self.coarseness}"


class Motion(NamedTuple):
    """The flow between two frames."""

    there: np.ndarray
    """(2, h, w) from the first to the second: x and y in pixels of the frames."""
    back: np.ndarray
    """(2, h, w) from the second to the first."""
    size: tuple[int, int]
    """(W, H) of the frames."""

    def reversed(self) -> Motion:
        """Return the flow of the same frames in the other order."""
        return Motion(self.back, self.there, self.size)

    def at(self, points: np.ndarray) -> np.ndarray:
        """Return the flow from (…, 2) places of the first frame, x and y in pixels: (…, 2), bilinear."""
        return _bilinear(self.there, points, self.size)

    def returning(self, points: np.ndarray) -> np.ndarray:
        """Return the flow from (…, 2) places of the second frame back to the first: (…, 2), bilinear."""
        return _bilinear(self.back, points, self.size)


def _bilinear(field: np.ndarray, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Read a (2, h, w) field of a picture of `size` (W, H) at (…, 2) places; beyond its edge it goes on as there."""
    counts = np.array(field.shape[:0:-1])
    cells = np.clip(points * counts / size - 0.5, 0, counts - 1)
    low = np.minimum(cells.astype(np.int64), np.maximum(counts - 2, 0))
    share = cells - low
    (x, y), (right, down) = np.moveaxis(low, -1, 0), np.moveaxis(share, -1, 0)
    x_next, y_next = np.minimum(x + 1, counts[0] - 1), np.minimum(y + 1, counts[1] - 1)
    above = field[:, y, x] * (1 - right) + field[:, y, x_next] * right
    below = field[:, y_next, x] * (1 - right) + field[:, y_next, x_next] * right
    return np.moveaxis(above * (1 - down) + below * down, 0, -1)


def occluded(there: np.ndarray, back: np.ndarray, slope: float = 0.1, offset: float = 0.5) -> np.ndarray:
    """Tell where the way there and back does not end where it began (Sundaram et al. 2010, as PooDLe has it).

    Args:
        there: (…, 2) flow f from some places.
        back: (…, 2) flow b from the places that it leads to.
        slope: of the squared lengths of the two, what the square of their sum may be.
        offset: as much more (pixels^2).

    Returns:
        (…) bool: |f + b|^2 > slope (|f|^2 + |b|^2) + offset.
    """
    allowed = slope * ((there**2).sum(-1) + (back**2).sum(-1)) + offset
    return ((there + back) ** 2).sum(-1) > allowed


class Correspondence(NamedTuple):
    """Where the points of a view of one frame are in the same view of another."""

    flow: np.ndarray
    """(2, n, n) float32: x and y in pixels of the view."""
    inside: np.ndarray
    """(n, n) bool: they are in the view there."""
    occluded: np.ndarray
    """(n, n) bool: something else is there."""


def correspond(motion: Motion, box: Box, side: int, points: int, limits: tuple[float, float]) -> Correspondence:
    """Find the points of a view in the same region of another frame.

    Args:
        motion: from the view's frame to the other.
        box: the region.
        side: of the view in pixels, to which the region is resized.
        points: n, of a row of points, in the middles of as many cells.
        limits: slope and offset of `occluded`, in pixels of the view.
    """
    corner, extent = np.array(box[:2], dtype=np.float64), np.array(box[2:], dtype=np.float64)
    middles = (np.arange(points) + 0.5) / points
    places = corner + np.stack(np.meshgrid(middles, middles), axis=-1) * extent
    there = motion.at(places)
    reached = (places + there - corner) / extent
    back = motion.returning(places + there)
    inside = ((reached >= 0) & (reached <= 1)).all(-1)
    scale = side / extent
    hidden = occluded(there * scale, back * scale, *limits)
    return Correspondence(np.moveaxis(there * scale, -1, 0).astype(np.float32), inside, hidden)


Pair = tuple[FrameStore, int, int]
"""Two frames of a store."""


class Flows:
    """The flow between frames of stores.

    Args:
        config: how it is computed.

    Raises:
        InputError: the estimator is not installed, or its weights are missing or of another network.
    """

    def __init__(self, config: FlowConfig) -> None:
        self.config, self.name = config, config.name()
        _estimator(config, "cpu")

    def between(self, store: FrameStore, first: int, second: int) -> Motion:
        """Return the flow between two frames, which is computed if nobody has before.

        Raises:
            InputError: its file is damaged, or cannot be written.
        """
        if first == second:
            still = np.zeros((2, 1, 1), dtype=np.float32)
            return Motion(still, still, store.size)
        path = self._place(store, first, second)
        if not path.exists():
            self._compute((store, first, second), path, "cpu")
        try:
            kept = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path} cannot be read ({first_line(error)}); delete it, and it is made anew") from error
        if kept.dtype != np.float16 or kept.shape[:2] != (2, 2) or kept.ndim != 4:
            raise InputError(f"{path} holds no flow; delete it, and it is made anew")
        there, back = kept.astype(np.float32)
        return Motion(there, back, store.size)

    def fill(self, pairs: Iterable[Pair], device: torch.device) -> None:
        """Compute what is missing of the flow between some frames, on a device.

        Raises:
            InputError: the process was asked to stop, or nothing can be written.
        """
        places = {self._place(*pair): pair for pair in pairs if pair[1] != pair[2]}
        missing = {path: pair for path, pair in places.items() if not path.exists()}
        for path, pair in tqdm(missing.items(), desc="flow", unit="pair", dynamic_ncols=True, disable=not missing):
            if stop.asked():
                raise InputError("stopped while optical flow was computed; the same command goes on")
            self._compute(pair, path, str(device))

    def _place(self, store: FrameStore, first: int, second: int) -> Path:
        return store.path.with_suffix(".flow") / self.name / f"{first:06d}-{second:06d}.npy"

    def _compute(self, pair: Pair, path: Path, device: str) -> None:
        store, first, second = pair
        height, width = _working_size(store.size, self.config)
        whole = Box(0, 0, *store.size)
        frames = [
            cut(torch.from_numpy(store.read(number)), whole, (height, width), False) for number in (first, second)
        ]
        flows = torch.from_numpy(_estimator(self.config, device)(*frames))
        grid = tuple(-(-side // self.config.coarseness) for side in (height, width))
        kept = F.interpolate(flows, grid, mode="area").numpy()
        kept = kept * np.array([store.size[0] / width, store.size[1] / height], dtype=np.float32)[:, None, None]
        if not np.isfinite(kept.astype(np.float16)).all():
            raise InputError(
                f"the optical flow between frames {first} and {second} of {store} is not finite; choose another "
                "flow.estimator or flow.weights"
            )
        with atomic_path(path) as temporary:
            np.save(temporary, kept.astype(np.float16))


def _working_size(size: tuple[int, int], config: FlowConfig) -> tuple[int, int]:
    """Return the (height, width) at which flow is computed between frames of `size` (W, H)."""
    scale = min(1.0, config.side / min(size))
    if config.estimator == "dis":
        return max(round(size[1] * scale), 1), max(round(size[0] * scale), 1)
    height, width = (
        max(round(side * scale / _RAFT_MULTIPLE) * _RAFT_MULTIPLE, _RAFT_LEAST) for side in (size[1], size[0])
    )
    return height, width


Estimator = Callable[[Tensor, Tensor], np.ndarray]
"""From two (3, H, W) uint8 frames to (2, 2, H, W) float32 flows, there and back, in pixels."""


@functools.lru_cache(maxsize=2)
def _estimator(config: FlowConfig, device: str) -> Estimator:
    return _dis(config) if config.estimator == "dis" else _raft(config, device)


def _dis(config: FlowConfig) -> Estimator:
    cv2 = import_extra("cv2", "flow")
    # DIS divides a picture among threads, and what it finds depends on how; on one it is the same everywhere
    cv2.setNumThreads(1)
    search = cv2.DISOpticalFlow_create(getattr(cv2, f"DISOPTICAL_FLOW_PRESET_{config.preset.upper()}"))

    def estimate(one: Tensor, other: Tensor) -> np.ndarray:
        first, second = (
            cv2.cvtColor(np.ascontiguousarray(frame.permute(1, 2, 0).numpy()), cv2.COLOR_RGB2GRAY)
            for frame in (one, other)
        )
        there, back = search.calc(first, second, None), search.calc(second, first, None)
        return np.ascontiguousarray(np.stack([there, back]).transpose(0, 3, 1, 2))

    return estimate


def _raft(config: FlowConfig, device: str) -> Estimator:
    network = load_raft(Path(config.weights)).to(device)

    @torch.no_grad()
    def estimate(one: Tensor, other: Tensor) -> np.ndarray:
        frames = torch.stack([one, other]).to(device).float() / 127.5 - 1
        flows: np.ndarray = network(frames, frames.flip(0), num_flow_updates=config.iterations)[-1].cpu().numpy()
        return flows

    return estimate


def load_raft(path: Path) -> nn.Module:
    """Load torchvision's RAFT, small or large, whichever the weights are of; no pickled code is run.

    Raises:
        InputError: the file is missing, damaged, or of another network.
    """
    models = import_extra("torchvision.models.optical_flow", "flow")
    try:
        with reading(path):
            state: Any = _read_state(path)
        with torch.random.fork_rng(devices=[]):
            networks = [build(weights=None, progress=False) for build in (models.raft_small, models.raft_large)]
        shapes = {name: tensor.shape for name, tensor in state.items()}
        for network in networks:
            if {name: tensor.shape for name, tensor in network.state_dict().items()} == shapes:
                network.load_state_dict(state)
                return network.eval().requires_grad_(False)
        why = f"it has {len(shapes)} other tensors"
    except InputError:
        raise
    except Exception as error:  # of zip, pickle and torch, each with its own
        why = first_line(error)
    raise InputError(
        f"{path} does not hold the weights of torchvision's raft_small or raft_large ({why}); "
        "torchvision.models.optical_flow.Raft_Small_Weights says where they are"
    )


def _read_state(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return read_tensors(path)
    return torch.load(path, map_location="cpu", weights_only=True)
