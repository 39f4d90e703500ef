"""Clips: K frames of one video, a fixed time apart, in an order that is a pure function of (seed, position)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from training.data.frame_store import FrameStore
from video_distilled_encoder.errors import InputError, warn
from video_distilled_encoder.recent import Recent
from video_distilled_encoder.video import nearest


@dataclass(frozen=True)
class ClipsConfig:
    """Which frames make a clip."""

    frames: int = 3
    """K, frames per clip (paper, section 2)."""
    stride: float = 0.5
    """Seconds between consecutive frames of a clip (the paper's 30 frames at 60 frames/s)."""
    balance: float = 0.0
    """How evenly the folders of videos are drawn from: 0, every clip as often as another; 1, every folder as often as
    another, however many clips it holds; between, a folder of n clips in proportion to n^(1 - balance)."""
    in_memory: bool | Literal["device"] = False
    """Keep all decoded frames in memory, for data that fit: no frame is decoded twice. `device`: in the memory of the
    device that trains, which then cuts the views as well."""
    reduced: bool = False
    """Decode a frame at a half, a quarter or an eighth of its size where all its views have still twice their pixels:
    for large frames, when they are not in memory."""
    still: bool = False
    """Take the first frame of a clip for all: the same clips, crops and arithmetic without time, as a control."""

    def __post_init__(self) -> None:
        if self.frames < 1 or self.stride <= 0:
            raise InputError(f"clips need frames >= 1 and stride > 0, got {self.frames} and {self.stride}")
        if not 0 <= self.balance <= 1:
            raise InputError(f"clips.balance is 0 to 1, got {self.balance}")

    def regular(self) -> ClipSpec:
        """Return the clips of `frames` frames, `stride` apart."""
        return ClipSpec(tuple(self.stride * number for number in range(self.frames)))


class ClipSpec(NamedTuple):
    """Which clips a method wants."""

    offsets: tuple[float, ...]
    """Seconds of the frames from the first, whose offset is 0, ascending."""
    gap: tuple[float, float] | None = None
    """One more frame: so many seconds after the last, drawn anew for every clip."""
    draws: int = 1
    """Samples that are made of a clip each time it is decoded, one after another."""

    def __str__(self) -> str:
        """Tell of the frames, as "3 frames, 0.5 s apart"."""
        count, steps = len(self.offsets) + bool(self.gap), np.diff(self.offsets)
        if count == 1:
            return "1 frame"
        if self.gap:
            return f"{count} frames, the last {self.gap[0]:g} to {self.gap[1]:g} s after the one before"
        if np.allclose(steps, steps[0]):
            return f"{count} frames, {steps[0]:g} s apart"
        return f"{count} frames, at {', '.join(f'{offset:g}' for offset in self.offsets)} s"


class ClipIndex:
    """All clips of several videos.

    A clip starts at every frame from which the others can be reached: for each the nearest frame in time is taken, and
    it must lie within half a frame interval of where it should be, so variable frame rates and gaps are handled. No
    clip leaves its video or crosses a cut.

    Args:
        stores: the videos.
        config: settings.
        seed: of the order.
        spec: the frames of a clip; those of the settings if it is not given.

    Raises:
        InputError: no video is long enough.
    """

    def __init__(
        self, stores: Sequence[FrameStore], config: ClipsConfig, seed: int, spec: ClipSpec | None = None
    ) -> None:
        self.stores = stores
        self.seed = seed
        self.balance = config.balance
        self.spec = spec or config.regular()
        furthest = self.spec.offsets
        if self.spec.gap:
            furthest = (*furthest, furthest[-1] + self.spec.gap[1])
        rows = [clip_frames(store.times, store.shots, furthest) for store in stores]
        self.frames = np.concatenate(rows) if rows else np.zeros((0, len(furthest)), dtype=np.int64)
        """(clips, K) frame numbers, with the largest gap if that is drawn."""
        if config.still:
            self.frames = np.repeat(self.frames[:, :1], len(furthest), axis=1)
            self.spec = self.spec._replace(gap=None)
        self.videos = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        """(clips,) the store each clip is from."""
        without = [store for store, row in zip(stores, rows, strict=True) if not len(row)]
        if len(self.frames) == 0:
            raise InputError(f"no video {_why_no_clip(without, furthest)}")
        if without:
            warn(f"{len(without)} of {len(stores)} videos give no clip: none {_why_no_clip(without, furthest)}")
        self._orders: Recent[int, np.ndarray] = Recent(2)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, position: int) -> tuple[FrameStore, np.ndarray]:
        """Return the store and the (K,) frame numbers of the clip at `position` of the run.

        With one sample a clip, position p is clip p mod n of a fresh shuffle in epoch p div n: of all n clips, or,
        where folders are balanced, of n clips of which each folder has its share.
        """
        number = self.number_of(position)
        epoch, index = divmod(number, len(self))
        clip = self._orders.get(epoch, self._shuffle)[index]
        store, frames = self.stores[self.videos[clip]], self.frames[clip]
        if self.spec.gap:
            gap = np.random.default_rng([self.seed, 2, number]).uniform(*self.spec.gap)
            last = nearest(store.times, store.times[frames[-2]] + gap)
            frames = np.append(frames[:-1], max(last, frames[-2] + 1))
        return store, frames

    def number_of(self, position: int) -> int:
        """Return which of the run's clips the sample at a position is made of."""
        return position // self.spec.draws

    @property
    def samples(self) -> int:
        """Samples of an epoch."""
        return len(self) * self.spec.draws

    def offsets(self) -> list[float]:
        """Return the mean seconds of a clip's frames from its first, as the videos have them."""
        times = np.concatenate([store.times for store in self.stores])
        begins = np.cumsum([0, *(len(store) for store in self.stores[:-1])])
        seconds = times[self.frames + begins[self.videos][:, None]]
        return (seconds - seconds[:, :1]).mean(0).tolist()

    def _shuffle(self, epoch: int) -> np.ndarray:
        shuffle = np.random.default_rng([self.seed, epoch]).permutation
        return shuffle(self._balanced(epoch)) if self.balance else shuffle(len(self))

    def _balanced(self, epoch: int) -> np.ndarray:
        """Return the clips of an epoch: of each folder the next ones of an endless row of shuffles of its clips."""
        folders = [store.folder for store in self.stores]
        names = list(dict.fromkeys(folders))
        of_clip = np.array([names.index(folder) for folder in folders])[self.videos]
        members = [found for n in range(len(names)) if len(found := np.flatnonzero(of_clip == n))]
        chosen = []
        for number, (clips, share) in enumerate(zip(members, self._shares(members), strict=True)):
            first, last = epoch * share, (epoch + 1) * share
            rounds = range(first // len(clips), -(-last // len(clips)))
            row = [np.random.default_rng([self.seed, number, n]).permutation(clips) for n in rounds]
            chosen.append(np.concatenate([*row, clips[:0]])[first - rounds.start * len(clips) :][:share])
        return np.concatenate(chosen)

    def _shares(self, members: Sequence[np.ndarray]) -> list[int]:
        """Return how many clips of an epoch each folder has; together all."""
        weights = np.array([len(clips) for clips in members]) ** (1 - self.balance)
        ends = np.round(len(self) * np.cumsum(weights) / weights.sum()).astype(int)
        return np.diff(ends, prepend=0).tolist()


def _why_no_clip(stores: Sequence[FrameStore], offsets: Sequence[float]) -> str:
    """Say what no one of some videos has that a clip needs, and how to mend it."""
    span = f"a clip's {len(offsets)} frames span {offsets[-1]:g} s"
    longest = max(stores, key=_longest_shot, default=None)
    shot = _longest_shot(longest) if longest else 0.0
    if longest is None or shot < offsets[-1]:
        seconds = max((store.times[-1] for store in stores if len(store)), default=0.0)
        shots = f", its longest shot {shot:.2f} s" if shot < seconds else ""
        return (
            f"is long enough: {span}, and the longest video has {seconds:.2f} s{shots}; change clips.stride or give "
            "longer videos"
        )
    step = float(np.median(np.diff(longest.times)))
    return (
        f"has frames where a clip wants them: {span}, and those of {longest} are {step:.3g} s apart; choose a "
        f"clips.stride that is a multiple of {step:.3g}, or more frames a second (extract.fps)"
    )


def _longest_shot(store: FrameStore) -> float:
    """Return how many seconds the longest shot of a video has."""
    begins = np.flatnonzero(np.diff(store.shots, prepend=-1))
    ends = np.append(begins[1:], len(store)) - 1
    return float((store.times[ends] - store.times[begins]).max()) if len(store) else 0.0


def clip_frames(times: np.ndarray, shots: np.ndarray, offsets: Sequence[float]) -> np.ndarray:
    """Return the (clips, K) frame numbers of all clips of a video.

    Args:
        times: (T,) seconds of its frames, ascending.
        shots: (T,) number of the shot each frame belongs to.
        offsets: (K,) seconds of a clip's frames from its first.
    """
    if len(times) < len(offsets):
        return np.zeros((0, len(offsets)), dtype=np.int64)
    tolerance = 0.51 * float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    wanted = times[:, None] + np.asarray(offsets)
    found = nearest(times, wanted)
    close = np.abs(times[found] - wanted) <= tolerance
    distinct = (np.diff(found, axis=1) > 0).all(axis=1)
    one_shot = (shots[found] == shots[found[:, :1]]).all(axis=1)
    return found[close.all(axis=1) & distinct & one_shot]
