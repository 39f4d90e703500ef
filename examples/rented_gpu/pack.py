"""Videos made small, to be sent to a machine that is rented by the minute.

python examples/rented_gpu/pack.py VIDEO_OR_DIR… --out parcel/video --max-mib 60

Each video, or view of a camera in a data set, is written again in AV1, with no more frames a second and pixels than
training keeps. Folders stay folders and cameras become some, for `clips.balance` draws from them. If all together are
larger than --max-mib, they are compressed harder, and anew.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from functools import partial
from itertools import count
from pathlib import Path

import av
from PIL import Image
from tqdm import tqdm

from video_distilled_encoder.errors import InputError, command
from video_distilled_encoder.files import atomic_path
from video_distilled_encoder.sources import find_sources
from video_distilled_encoder.sources.source import Source

_TICK = Fraction(1, 1000)
"""Time base in seconds, so that frames keep their times."""
_QUALITIES = (30, 36, 42, 48, 54, 60)
"""AV1's constant rate factors that are tried, from the best."""


@command
def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", type=Path, help="video files, data sets, or folders searched for them")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the small videos")
    parser.add_argument("--max-mib", type=float, default=60.0, help="size of all together (%(default)s MiB)")
    parser.add_argument("--fps", type=float, default=12.0, help="frames kept a second (%(default)s)")
    parser.add_argument("--short-side", type=int, default=256, help="pixels of the shorter side, at most (%(default)s)")
    args = parser.parse_args()
    os.environ.setdefault("SVT_LOG", "1")  # its encoder tells all its settings of each video otherwise
    videos = named(args.videos, args.out)
    for quality in _QUALITIES:
        write = partial(pack, fps=args.fps, short_side=args.short_side, quality=quality)
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            jobs = pool.map(write, videos.values(), videos)
            list(tqdm(jobs, total=len(videos), desc=f"quality {quality}", unit="video", dynamic_ncols=True))
        size = sum(path.stat().st_size for path in videos) / 2**20
        print(f"{len(videos)} videos, {size:.1f} MiB in {args.out}")
        if size <= args.max_mib:
            return
    raise InputError(f"the videos do not fit into {args.max_mib:g} MiB; lower --fps or --short-side, or give fewer")


def named(paths: list[Path], out: Path) -> dict[Path, Source]:
    """Return every video under the path of its small version, which lies in a folder of its group's name."""
    names: dict[Path, Source] = {}
    for source in find_sources(paths):
        name = Path(source.name).stem if source.episode is None else f"{source.path.name}-{source.episode}"
        free = (out / Path(source.group).name / f"{name}{suffix}.mp4" for suffix in _suffixes())
        names[next(path for path in free if path not in names)] = source
    return names


def _suffixes() -> Iterator[str]:
    yield ""
    yield from (f"-{number}" for number in count(2))


def pack(source: Source, path: Path, *, fps: float, short_side: int, quality: int) -> None:
    """Write a video again with fewer frames and pixels.

    Args:
        source: what is read.
        path: what is written.
        fps: frames kept a second.
        short_side: larger frames are resized to this many pixels of the shorter side.
        quality: AV1's constant rate factor, 0 (lossless) to 63.
    """
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = None
        for frame in source.frames(min_interval=1 / fps):
            image = Image.fromarray(frame.image)
            if stream is None:
                scale = min(1.0, short_side / min(image.size))
                stream = container.add_stream("libsvtav1", rate=Fraction(fps).limit_denominator(1001))
                stream.width, stream.height = (max(round(side * scale / 2), 1) * 2 for side in image.size)
                stream.pix_fmt, stream.time_base, stream.codec_context.time_base = "yuv420p", _TICK, _TICK
                stream.options = {"crf": str(quality), "preset": "7", "svtav1-params": "lp=1"}
            size = (stream.width, stream.height)
            picture = av.VideoFrame.from_image(image.resize(size, Image.Resampling.BICUBIC))
            picture.pts, picture.time_base = round(frame.time / _TICK), _TICK
            container.mux(stream.encode(picture))
        if stream is not None:
            container.mux(stream.encode())


if __name__ == "__main__":
    main()
