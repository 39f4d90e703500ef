"""Frame stores: the frames of one source as JPEGs in one uncompressed ZIP file, with their time stamps.

ZIP, because every language and file manager opens it, its central directory gives random access to each frame, and the
standard library writes it. JPEG, because a region of it can be decoded alone (`training.data.jpeg`). A store is named
by the source's identity, of a video file the SHA-256 of its content, so that a video is extracted once however often it
is copied or renamed, and it appears under its name only when it is complete.

Pictures that are JPEGs already are compressed anew, for a camera's have no restart markers, without which a region of
5 to 50 % of a 1280x720 frame takes as long as the whole, 6.4 to 1.2 times as long. A second compression turns the
bundled encoder's patches by .00003 in cosine at most, the camera's own by .00005 to .0002
(tests/benchmarks/recordings.py). So no frame is kept as it came.

    000000.jpg, 000001.jpg, …   the frames, in order
    video.json                  {"source", "sha256", "size": [width, height], "times": seconds of each frame,
                                "cuts": frames that begin a new shot, "settings"}
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np
from PIL import Image

from training.common.digests import NotRememberedError, ReadOnce, recalled_sha256
from training.data import jpeg
from training.data.box import Box
from training.data.cuts import find_cuts, thumbnail
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.files import atomic_path
from video_distilled_encoder.sources.source import Source
from video_distilled_encoder.video import VideoFrame

if TYPE_CHECKING:
    from torch import Tensor  # processes that extract need no torch

_META = "video.json"


@dataclass(frozen=True)
class ExtractConfig:
    """How videos become frame stores."""

    fps: float | None = None
    """Frames kept per second; all if none is given."""
    short_side: int | None = None
    """Frames larger than this are resized to it (pixels of the shorter side); none are if it is not given."""
    quality: int = 90
    """JPEG quality, 1 to 95."""

    def __post_init__(self) -> None:
        if self.fps is not None and self.fps <= 0:
            raise InputError(f"extract.fps must be positive, got {self.fps}")
        if self.short_side is not None and self.short_side < 16:
            raise InputError(f"extract.short_side must be at least 16 pixels, got {self.short_side}")
        if not 1 <= self.quality <= 95:
            raise InputError(f"extract.quality must be 1 to 95, got {self.quality}")

    @property
    def folder(self) -> str:
        """Name of the folder that holds the stores made with these settings."""
        fps = f"{self.fps:g}fps" if self.fps else "all-frames"
        size = f"{self.short_side}px" if self.short_side else "full-size"
        return f"{fps}-{size}-q{self.quality}"


def extract_source(source: Source, root: Path, config: ExtractConfig) -> Path:
    """Write the frame store of a source, unless it is there already, and return its path.

    Raises:
        InputError: the source is missing, unreadable, empty, damaged or truncated. No store is left behind then.
    """
    (found,) = extract_sources([source], root, config)
    if isinstance(found, Exception):
        raise found
    return found


def extract_sources(sources: Sequence[Source], root: Path, config: ExtractConfig) -> list[Path | Exception]:
    """Write the frame stores of sources of one path, unless they are there already; return their paths, or the errors.

    Where files are read whole, the digest is taken of the very read that the frames come of; it is taken before that
    where something of the same size was extracted, which may be the same content.
    """
    once = ReadOnce()
    found: dict[Source, Path | Exception] = {}
    marks: dict[Source, Path] = {}
    """Empty files that are there if something of the same size was extracted."""
    new: list[Source] = []
    for source in sources:
        try:
            marks[source] = root / config.folder / "sizes" / source.identity(once.sizes)[:32].replace(" ", "-")
            if source.read_whole and not marks[source].exists() and not _recalled(source):
                new.append(source.having(opener=once.open))
            elif (path := _place(source.identity(once.sha256), root, config)).exists():
                found[source] = path
            else:
                new.append(source)
        except InputError as error:
            found[source] = error

    def extract(source: Source) -> Path | Exception:
        try:
            path = _write(source, once, root, config)
        except InputError as error:
            return error
        with suppress(OSError):  # without it a copy is decoded before it is known for one
            marks[source].parent.mkdir(exist_ok=True)
            marks[source].touch()
        return path

    if new:
        found.update(zip(new, type(new[0]).together(new, extract), strict=True))
    return [found[source] for source in sources]


def _write(source: Source, once: ReadOnce, root: Path, config: ExtractConfig) -> Path:
    times: list[float] = []
    changes: list[float] = []
    joints: set[int] = set()
    before: np.ndarray | None = None

    def place() -> Path:
        return _place(digest, root, config)

    unknown = root / config.folder / f"{uuid4().hex[:16]}.zip"
    with atomic_path(unknown, place) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for frame in source.frames(min_interval=1 / config.fps if config.fps else 0.0):
            image = _scale_down(frame, config)
            archive.writestr(f"{len(times):06d}.jpg", jpeg.encode(image, config.quality))
            if frame.new_shot:
                joints.add(len(times))
            times.append(frame.time)
            small = thumbnail(frame.image)
            changes.append(0.0 if before is None else float(np.abs(small - before).mean()))
            before = small
        digest = source.identity(once.sha256)
        cuts = sorted(joints.union(find_cuts(np.array(changes))))
        meta = {"source": source.name, "sha256": digest, "size": image.size, "times": times, "cuts": cuts}
        archive.writestr(_META, json.dumps({**meta, "settings": asdict(config)}))
    return place()


def find_store(source: Source, root: Path, config: ExtractConfig) -> Path | None:
    """Return the store of a source, if it is there and the source need not be read to know it."""
    digest = _recalled(source)
    path = _place(digest, root, config) if digest else None
    return path if path and path.exists() else None


def _recalled(source: Source) -> str | None:
    try:
        return source.identity(recalled_sha256)
    except (NotRememberedError, InputError):
        return None


def _place(digest: str, root: Path, config: ExtractConfig) -> Path:
    return root / config.folder / f"{digest[:16]}.zip"


def _scale_down(frame: VideoFrame, config: ExtractConfig) -> Image.Image:
    image = Image.fromarray(frame.image)
    if not config.short_side or min(image.size) <= config.short_side:
        return image
    scale = config.short_side / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


class FrameStore:
    """Random access to the frames of one source.

    Args:
        path: the ZIP file.
        folder: group of the source, of a video file its folder; clips are balanced by it.

    Raises:
        InputError: the file is not a whole frame store, when it is opened.
    """

    def __init__(self, path: Path, folder: str = "") -> None:
        self.path, self.folder = path, folder
        try:
            with zipfile.ZipFile(path) as archive:
                meta = json.loads(archive.read(_META))
                frames = [info for info in archive.infolist() if info.filename != _META]
            self.source: str = meta["source"]
            self.times = np.asarray(meta["times"], dtype=np.float64)
            self.size: tuple[int, int] = tuple(meta["size"])
            self.shots = np.zeros(len(self.times), dtype=np.int64)
            self.shots[meta["cuts"]] = 1
            if (np.diff(self.times) < 0).any():
                raise ValueError("its times go back")
        except (OSError, LookupError, ValueError, TypeError, zipfile.BadZipFile) as error:
            raise InputError(f"{path} is not a whole frame store ({error}); delete it and extract again") from error
        self.shots = np.cumsum(self.shots)
        # A stored member's bytes follow its local header: 30 bytes and the name (extract_source writes no extra field).
        self._offsets = np.array([info.header_offset + 30 + len(info.filename) for info in frames], dtype=np.int64)
        self._sizes = np.array([info.file_size for info in frames], dtype=np.int64)
        self.pixels: Tensor | None = None
        """(F, H, W, 3) uint8 of all frames, where they are in memory (`training.data.resident`)."""
        self.first_resident = 0
        """Number of the first frame among all resident ones."""

    def __len__(self) -> int:
        return len(self.times)

    def __str__(self) -> str:
        return self.source

    def read(self, index: int, box: Box | None = None, scale: int = 1) -> np.ndarray:
        """Return frame `index`, or a region of it, as (H, W, 3) uint8 RGB, at 1/`scale` of its size (`jpeg.decode`).

        In memory frames are whole: there `scale` is 1.
        """
        if self.pixels is None:
            return self.decode(index, box, scale)
        frame = self.pixels[index].numpy()
        return frame if box is None else frame[box.top : box.top + box.height, box.left : box.left + box.width]

    def decode(self, index: int, box: Box | None = None, scale: int = 1) -> np.ndarray:
        """Read frame `index`, or a region of it, from the file, at 1/`scale` of its size.

        The file is opened for it, which takes less than a hundredth of the time: nothing is left that threads or forks
        would share, nor more open files than a process may have.
        """
        with io.FileIO(self.path) as file:
            data = os.pread(file.fileno(), int(self._sizes[index]), int(self._offsets[index]))
        return jpeg.decode(data, box, scale)

    def bytes_in_memory(self) -> int:
        """Return how much memory all frames take decoded."""
        return len(self) * self.size[0] * self.size[1] * 3


def open_stores(stores: Mapping[Path, str]) -> list[FrameStore]:
    """Open several stores, each with the group of its source."""
    return [FrameStore(path, folder) for path, folder in stores.items()]
