"""Video files: whatever FFmpeg opens and has time stamps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from video_distilled_encoder.files import reading, sha256
from video_distilled_encoder.sources.source import Asked, Digest, Found, Source
from video_distilled_encoder.video import VideoFrame, VideoInfo, probe, read_frames


class VideoFile(Source):
    """A video file, a recording of its own; its identity is that of its content."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, path.name, str(path.parent))

    @property
    def read_whole(self) -> bool:
        """It is."""
        return True

    def identity(self, digest: Digest = sha256) -> str:
        """Return the SHA-256 of the file."""
        with reading(self.path):
            return digest(self.path)

    def frames(self, min_interval: float = 0.0) -> Iterator[VideoFrame]:
        """Decode the file."""
        return read_frames(self.path, min_interval, opener=self.opener)

    def info(self) -> VideoInfo:
        """Read the header."""
        return probe(self.path)


def recognises(path: Path) -> bool:
    """Return whether a path may be a video; FFmpeg tells when it is opened."""
    return not path.is_dir()


def find(path: Path, asked: Asked) -> Found:
    """Return the file as a source."""
    return Found([VideoFile(path)])
