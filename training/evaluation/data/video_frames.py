"""Pairs of frames of unlabelled video, a given number of seconds apart, and their features.

The data is a video file, a robot's data set, a folder of them, or a folder of image sequences: DAVIS (its root, or
JPEGImages/480p), or any folder whose images are named NAME_NUMBER.jpg or NUMBER.jpg, such as CamVid's, where a folder's
images of one NAME are a sequence and NUMBER counts frames at --fps. A pair never crosses from one video to another.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from training.evaluation.data.partners import find_partners
from training.evaluation.features import extract
from training.models.model import Model
from video_distilled_encoder.errors import InputError, warn
from video_distilled_encoder.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, find_files
from video_distilled_encoder.image_files import open_image
from video_distilled_encoder.sources import find_sources, is_data_set
from video_distilled_encoder.sources.options import add_source_options, asked_of
from video_distilled_encoder.sources.source import Asked, Source

_ONE_CHANNEL = ("1", "L", "P", "I", "I;16")
OFFSETS = (0.1, 0.2, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Clip:
    """Frames of one video."""

    video: str
    """Its name: the path within the data."""
    images: np.ndarray
    """(n, H, W, 3) uint8 RGB."""
    times: np.ndarray
    """(n,) seconds since the video's first frame."""
    pairs: dict[float, np.ndarray]
    """For each offset (m, 2): the numbers, among `images`, of a base frame and of the frame that much later."""


@dataclass(frozen=True)
class EncodedClip:
    """Features of the frames of one video."""

    video: str
    cls: Tensor
    """(n, C), as `Features` has them."""
    grid: Tensor
    """(n, h, w, C), likewise."""
    pairs: dict[float, np.ndarray]
    """As in `Clip`."""


class _Sequence(NamedTuple):
    """Image files with their times."""

    name: str
    files: list[Path]
    times: list[float]


def load_clips(
    data: Path,
    offsets: Sequence[float] = OFFSETS,
    *,
    fps: float = 24.0,
    max_videos: int = 0,
    frames: int = 8,
    seed: int = 0,
    asked: Asked | None = None,
) -> Iterator[Clip]:
    """Choose evenly spaced base frames of each video, and the frames some seconds later.

    Every base frame has a partner at every offset, so that a curve over the offsets is of the same base frames. A later
    frame is the one whose time stamp is nearest. Videos too short, or too slow, for all offsets are left out.

    Args:
        data: a video, a data set, a folder of them, or a folder of image sequences.
        offsets: seconds from a base frame to its partners.
        fps: frame rate of image sequences; videos have time stamps.
        max_videos: take this many, drawn by `seed`; 0 takes all.
        frames: base frames per video, at most.
        seed: of the draw of videos.
        asked: cameras and episodes of data sets, and the rate of those without a clock.

    Yields:
        A clip per video, by name, or as drawn; only one at a time is in memory.

    Raises:
        InputError: the data is missing, cannot be decoded, or no video is long enough.
    """
    if not offsets or min(offsets) <= 0:
        raise InputError(f"offsets must be positive seconds, got {list(offsets)}")
    if fps <= 0 or frames < 1:
        raise InputError(f"fps must be positive and frames at least 1, got {fps} and {frames}")
    sources = _find(data, fps, asked)
    found = 0
    for number in np.random.default_rng(seed).permutation(len(sources)) if max_videos else range(len(sources)):
        if max_videos and found == max_videos:
            break
        clip = _load(*sources[number], offsets, frames)
        if clip is not None:
            found += 1
            yield clip
    if not found:
        raise InputError(
            f"no video in {data} has two frames each of {', '.join(map(str, offsets))} s apart; lower the offsets"
        )


def nearest_frames(
    times: np.ndarray, offsets: Sequence[float], count: int, shots: np.ndarray | None = None
) -> dict[float, np.ndarray]:
    """Choose base frames and partners by time.

    Args:
        times: (T,) ascending seconds.
        offsets: seconds.
        count: number of base frames, at most.
        shots: (T,) numbers; a frame and its partners are of one. All are if it is not given.

    Returns:
        For each offset (m, 2) frame numbers, the base frames the same for all; m = 0 if no frame has all partners.
    """
    eligible = np.ones(len(times), dtype=bool)
    shots = np.zeros(len(times), dtype=int) if shots is None else shots
    later = {}
    for offset in offsets:
        later[offset], close = find_partners(times, offset)
        eligible &= close & (shots[later[offset]] == shots)
    bases = np.flatnonzero(eligible)
    if len(bases) > count:
        bases = bases[np.linspace(0, len(bases) - 1, count + 2).round().astype(int)[1:-1]]
    return {offset: np.stack([bases, partner[bases]], axis=1) for offset, partner in later.items()}


def add_video_arguments(parser: argparse.ArgumentParser, offsets: Sequence[float] = OFFSETS) -> None:
    """Add the options of protocols on unlabelled video."""
    parser.add_argument(
        "--offsets", type=float, nargs="+", default=list(offsets), help="seconds between two frames (%(default)s)"
    )
    parser.add_argument("--videos", type=int, default=0, help="take this many, drawn by --seed; 0 = all (%(default)s)")
    parser.add_argument("--frames", type=int, default=8, help="base frames per video, evenly spaced (%(default)s)")
    parser.add_argument("--fps", type=float, default=24.0, help="frame rate of image sequences (%(default)s)")
    add_source_options(parser)
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=[224, 384],
        metavar=("HEIGHT", "WIDTH"),
        help="pixels that frames are stretched to, rounded to whole patches (%(default)s)",
    )


def encode_clips(model: Model, args: argparse.Namespace) -> list[EncodedClip]:
    """Encode the frames of the videos that the options name; all have grids of one size.

    Raises:
        InputError: as `load_clips`, or there is only one video: nothing to compare it with.
    """
    size = model.nearest_size(*args.size)
    clips = load_clips(
        args.data,
        args.offsets,
        fps=args.fps,
        max_videos=args.videos,
        frames=args.frames,
        seed=args.seed,
        asked=asked_of(args),
    )
    encoded = []
    for clip in clips:
        found = extract(model, list(clip.images), size, cache=args.cache, desc=f"encode {clip.video}")
        encoded.append(EncodedClip(clip.video, found.cls, found.grid, clip.pairs))
    if len(encoded) < 2:
        raise InputError(f"{args.data} holds one video that is long enough; a control needs frames of at least two")
    return sorted(encoded, key=lambda clip: clip.video)


def other_frame(clips: Sequence[EncodedClip], clip: int, pair: int, offset: float) -> tuple[int, int]:
    """Return a frame of another video, to stand in for the later frame of a pair: a control.

    The other videos take turns over pairs and offsets.

    Returns:
        (number of the other clip, number of the frame in it)
    """
    turn = pair + list(clips[clip].pairs).index(offset)
    other = (clip + 1 + turn % (len(clips) - 1)) % len(clips)
    pairs = clips[other].pairs[offset]
    return other, int(pairs[pair % len(pairs), 1])


def describe(model: Model, clips: Sequence[EncodedClip], args: argparse.Namespace) -> dict[str, object]:
    """Return the settings and data of a result on unlabelled video."""
    return {
        "setting": {
            "size": list(model.nearest_size(*args.size)),
            "grid": list(clips[0].grid.shape[1:3]),
            "offsets": list(args.offsets),
            "frames": args.frames,
        },
        "data": {
            "name": args.data.name,
            "videos": [clip.video for clip in clips],
            "pairs": sum(len(clip.pairs[args.offsets[0]]) for clip in clips),
        },
    }


def _find(data: Path, fps: float, asked: Asked | None) -> list[tuple[str, Source | _Sequence]]:
    files = find_files(data, IMAGE_SUFFIXES | VIDEO_SUFFIXES, is_data_set)
    sets = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES or is_data_set(file)]
    sources = find_sources(files if data.is_file() else sets, asked) if sets or data.is_file() else []
    if not sources:
        fps = (asked and asked.fps) or fps
        return [(sequence.name, sequence) for sequence in _photographs(_find_sequences(data, files, fps))]
    root = data if data.is_dir() else data.parent
    places = [source.path.relative_to(root).as_posix() for source in sources]
    names = [source.name if source.camera else place for source, place in zip(sources, places, strict=True)]
    counts = Counter(names)
    return [
        (f"{place}/{name}" if counts[name] > 1 else name, source)
        for place, name, source in zip(places, names, sources, strict=True)
    ]


def _find_sequences(data: Path, files: Sequence[Path], fps: float) -> list[_Sequence]:
    root = data / "JPEGImages" / "480p"
    root = root if root.is_dir() else data
    sequences: dict[str, list[tuple[int, Path]]] = {}
    for path in files:
        match = re.fullmatch(r"(.*?)[_-]?[a-z]?(\d+)", path.stem)
        if match and path.is_relative_to(root):
            name = (path.parent.relative_to(root) / match[1]).as_posix()
            sequences.setdefault(name, []).append((int(match[2]), path))
    if not sequences:
        raise InputError(f"{data} holds neither videos nor images named NAME_NUMBER.jpg or NUMBER.jpg")
    found = []
    for name, numbered in sorted(sequences.items()):
        numbered.sort()
        times = [(number - numbered[0][0]) / fps for number, _ in numbered]
        found.append(_Sequence(name, [path for _, path in numbered], times))
    return found


def _photographs(sequences: list[_Sequence]) -> list[_Sequence]:
    """Leave out sequences of one channel where others have colours: beside photographs they are their labels."""
    grey = [sequence for sequence in sequences if _mode(sequence.files[0]) in _ONE_CHANNEL]
    if not grey or len(grey) == len(sequences):
        return sequences
    warn(
        f"{len(grey)} of {len(sequences)} sequences have one channel, as labels do, and are left out: {grey[0].name} …"
    )
    return [sequence for sequence in sequences if sequence not in grey]


def _mode(path: Path) -> str:
    with suppress(OSError), Image.open(path) as image:  # of one that is damaged it is told when it is read
        return image.mode
    return ""


def _load(name: str, source: Source | _Sequence, offsets: Sequence[float], count: int) -> Clip | None:
    """Decode the chosen frames of one video; None if it has none."""
    if isinstance(source, _Sequence):
        times, shots = np.array(source.times), None
    else:
        frames = [(frame.time, frame.new_shot) for frame in source.frames()]
        times, shots = np.array([time for time, _ in frames]), np.cumsum([new_shot for _, new_shot in frames])
    pairs = nearest_frames(times, offsets, count, shots)
    chosen = np.unique(np.concatenate([pair.ravel() for pair in pairs.values()]))
    if not len(chosen):
        return None
    renumbered = {offset: np.searchsorted(chosen, pair) for offset, pair in pairs.items()}
    images = _read(source, chosen)
    if sizes := {image.shape[:2] for image in images} - {images[0].shape[:2]}:
        told = " and ".join(f"{height}x{width}" for height, width in (images[0].shape[:2], *sizes))
        raise InputError(f"the pictures of {name} are {told}; put those of each size into folders of their own")
    return Clip(name, np.stack(images), times[chosen], renumbered)


def _read(source: Source | _Sequence, chosen: np.ndarray) -> list[np.ndarray]:
    if isinstance(source, _Sequence):
        return [np.array(open_image(source.files[number])) for number in chosen]
    wanted, last = set(chosen.tolist()), int(chosen[-1])
    images = []
    for number, frame in enumerate(source.frames()):
        if number in wanted:
            images.append(frame.image)
        if number == last:
            break
    return images
