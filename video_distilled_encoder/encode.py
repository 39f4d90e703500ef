"""`vde-encode INPUT… --out DIR`: features and PCA pictures of images, folders, videos and robots' recordings.

Of an image NAME.jpg it writes NAME.safetensors (cls, patches) and NAME.pca.png, the image beside its features' three
main directions as colours. Of a video it writes NAME.safetensors (cls, patches, times: one row per frame) and
NAME.pca.mp4, all of it or nothing. Of a data set (LeRobot, MCAP, ROS bag, HDF5, Zarr, RLDS) each camera's view of an
episode is a video, SET/CAMERA/EPISODE; without --fps row n is of its frame n, so that a policy can be trained on the
features. With --format parquet they are the columns cls and patches of NAME.parquet, beside LeRobot's episode_index,
timestamp and, without --fps, frame_index; with --format npy files of their own. Folders are searched, and their
structure is kept. Inputs that cannot be read are named at the end, when the others are done.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count, islice
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from video_distilled_encoder.encoder import Encoder, EncoderOutput
from video_distilled_encoder.errors import (
    CannotWrite,
    InputError,
    command,
    import_extra,
    refuse_failed,
    tidy_at_sigterm,
)
from video_distilled_encoder.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, atomic_directory, atomic_path, find_files
from video_distilled_encoder.hub import DEFAULT_RELEASE
from video_distilled_encoder.image_files import open_image
from video_distilled_encoder.pca import PCA
from video_distilled_encoder.preprocessing import CROP_MODES
from video_distilled_encoder.sources import find_sources, is_data_set
from video_distilled_encoder.sources.options import add_source_options, asked_of
from video_distilled_encoder.sources.source import Asked, Source, in_passes
from video_distilled_encoder.sources.video_files import VideoFile
from video_distilled_encoder.video import write_video

FRAMES_PER_FILE = 1000
OF_FRAMES = ("cls", "patches", "times")
"""What is written of each frame."""
_TURNS = Lock()
_T = TypeVar("_T")


def _is_video(path: Path) -> bool:
    """Tell by a file's suffix; of those that pictures have too, GIF, by whether it moves."""
    suffix = path.suffix.lower()
    return suffix in VIDEO_SUFFIXES and (suffix not in IMAGE_SUFFIXES or _moves(path))


def _moves(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return getattr(image, "is_animated", False)
    except (OSError, ValueError, SyntaxError):  # whoever reads it as an image says why
        return False


@command
def main() -> None:
    """Run the command."""
    tidy_at_sigterm()
    args = parse_arguments()
    targets = find_jobs(args.inputs, args.out, asked_of(args))
    encoder = Encoder.from_pretrained(args.model, revision=args.revision, device=args.device)
    failed: list[InputError] = []

    def image(path: Any) -> None:
        encode_image(encoder, path, targets[path], args)

    with tqdm(total=len(targets), desc="encode", unit="file", dynamic_ncols=True) as bar:
        for sources in in_passes(targets):
            bar.set_postfix_str(sources[0].name)
            if recordings := [source for source in sources if isinstance(source, Source)]:
                failed += encode_recordings(encoder, recordings, targets, args)
            else:
                failed += filter(None, (why_not(image, source) for source in sources))
            bar.update(len(sources))
    print(f"{len(targets) - len(failed)} of {len(targets)} inputs encoded into {args.out}")
    refuse_failed(failed, len(targets), "inputs could not be encoded")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="vde-encode", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="+", type=Path, help="images, videos, data sets, or folders of them")
    add_source_options(parser)
    parser.add_argument("--out", required=True, type=Path, help="folder for the results")
    parser.add_argument("--model", default=DEFAULT_RELEASE, help="directory, release or Hub name (%(default)s)")
    parser.add_argument("--revision", help="of a model on the Hub")
    parser.add_argument("--size", type=int, help="pixels of the network's input, its shorter side (the model's own)")
    parser.add_argument("--crop-mode", choices=CROP_MODES, default="whole", help="how an image is fitted (%(default)s)")
    parser.add_argument(
        "--format", choices=("safetensors", "npy", "parquet"), default="safetensors", help="of features (%(default)s)"
    )
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="of features (%(default)s)")
    parser.add_argument("--fps", type=float, help="frames per second taken from videos (all)")
    parser.add_argument("--batch-size", type=int, default=8, help="video frames encoded at once (%(default)s)")
    parser.add_argument("--device", help="cpu, cuda, … (cpu)")
    parser.add_argument("--no-features", action="store_true", help="write pictures only")
    parser.add_argument("--no-pictures", action="store_true", help="write features only")
    args = parser.parse_args()
    if args.batch_size < 1 or (args.fps is not None and not 0 < args.fps < float("inf")):
        parser.error("--batch-size and --fps must be positive")
    if args.no_features and args.no_pictures:
        parser.error("--no-features and --no-pictures leave nothing to write")
    return args


def find_jobs(inputs: Iterable[Path], out: Path, asked: Asked | None = None) -> dict[Path | Source, Path]:
    """Find the images, the videos and the recordings of data sets among the inputs.

    Returns:
        Where the results of each go, without suffix.

    Raises:
        InputError: an input does not exist, a folder holds neither image nor video, or two results would have one
            name, or one input two.
    """
    found: dict[Path, Path | Source] = {}

    def add(source: Path | Source, target: Path) -> None:
        if target in found:
            raise _collision(source, found[target], target)
        found[target] = source

    for path in inputs:
        files = find_files(path, IMAGE_SUFFIXES | VIDEO_SUFFIXES, is_data_set)
        if not files:
            raise InputError(f"the folder {path} holds neither image nor video")
        root = path if path.is_dir() and files != [path] else path.parent
        sets = [file for file in files if is_data_set(file)]
        for file in files:
            if file not in sets:
                add(VideoFile(file) if _is_video(file) else file, out / file.relative_to(root).with_suffix(""))
        for recording in find_sources(sets, asked) if sets else []:
            add(recording, out / recording.path.relative_to(root).parent / recording.name)
    for target, source in found.items():
        whole = target.with_name(re.sub(r"\.part\d+$", "", target.name))
        if whole != target and isinstance(found.get(whole), Source):
            raise _collision(source, found[whole], target)
    targets: dict[Path | Source, Path] = {}
    for target, source in found.items():
        if source in targets:
            raise InputError(f"{source} is among the inputs twice, as {targets[source]} and {target}; name it once")
        targets[source] = target
    return targets


def _collision(one: Path | Source, other: Path | Source, target: Path) -> InputError:
    return InputError(f"{one} and {other} would both be written to {target}; rename one")


def encode_image(encoder: Encoder, source: Path, target: Path, args: argparse.Namespace) -> None:
    """Write the features and the picture of one image."""
    image = open_image(source)
    out = encode_images(encoder, image, args)
    if not args.no_features:
        one = slice(None) if args.format == "parquet" else 0
        save_features(target, {"cls": out.cls[one], "patches": out.patches[one]}, out.grid.shape[-2:], args)
    if not args.no_pictures:
        picture = side_by_side(np.asarray(image), PCA.fit(out.patches[0]), out.grid[0])
        with atomic_path(target.with_name(f"{target.name}.pca.png")) as temporary:
            Image.fromarray(picture).save(temporary)


def encode_recordings(
    encoder: Encoder, sources: Sequence[Source], targets: Mapping[Path | Source, Path], args: argparse.Namespace
) -> list[InputError]:
    """Write the results of recordings that are read in one pass, front to back in bounded memory.

    Where pictures are written there are two passes, for their colours are fitted to the whole recording first.

    Returns:
        Why recordings cannot be read, of which nothing is written then.
    """
    pcas: dict[Source, PCA] = {}
    failed: dict[Source, InputError] = {}

    def fit(source: Source) -> None:
        pcas[source] = fit_pca(encoder, source, args)

    def write(source: Source) -> None:
        encode_video(encoder, source, targets[source], args, pcas.get(source))

    for step in (write,) if args.no_pictures else (fit, write):
        if left := [source for source in sources if source not in failed]:
            found = type(left[0]).together(left, partial(why_not, step))
            failed.update((source, error) for source, error in zip(left, found, strict=True) if error)
    return list(failed.values())


def why_not(work: Callable[[_T], None], source: _T) -> InputError | None:
    """Do some work with an input; return why it cannot be done if it is the input's fault."""
    try:
        work(source)
    except CannotWrite:
        raise
    except InputError as error:
        return error
    return None


def encode_video(
    encoder: Encoder, source: Source, target: Path, args: argparse.Namespace, pca: PCA | None = None
) -> None:
    """Write the features of a recording, and the video of their colours if these are given."""
    info = source.info()
    fps = min(args.fps or info.fps, info.fps) or 25.0
    expected = round(info.frames * fps / info.fps) if info.frames and info.fps else None
    with atomic_directory(target.parent) as staging:
        writer = FeatureWriter(staging / target.name, args, source.episode)

        def pictures() -> Iterator[np.ndarray]:
            kept = source.frames(interval_of(args))
            frames = iter(tqdm(kept, source.name, expected, unit="frame", leave=False, dynamic_ncols=True))
            while batch := list(islice(frames, args.batch_size)):
                out = encode_images(encoder, [frame.image for frame in batch], args)
                if not args.no_features:
                    writer.add(out.cls, out.patches, [frame.time for frame in batch], out.grid.shape[-2:])
                for frame, grid in zip(batch, out.grid, strict=True):
                    if pca is not None:
                        yield side_by_side(frame.image, pca, grid)

        if pca is None:
            for _ in pictures():
                pass
        else:
            write_video(staging / f"{target.name}.pca.mp4", pictures(), fps)
        writer.close()
    if writer.parts:
        remove_older_parts(target, writer.parts, args.format)


def encode_images(encoder: Encoder, images: Any, args: argparse.Namespace) -> EncoderOutput:
    """Return an image's features, or several ones'; the topics of a recording, in their threads, take turns."""
    with _TURNS:
        return encoder.encode(images, size=args.size, crop_mode=args.crop_mode)


def interval_of(args: argparse.Namespace) -> float:
    """Return the seconds between frames that are taken, 0 for all."""
    return 1 / args.fps if args.fps else 0.0


def remove_older_parts(target: Path, parts: int, suffix: str) -> None:
    """Remove the parts beyond the last that features of a longer video left under the same name."""
    kinds = [f"{name}." for name in OF_FRAMES] if suffix == "npy" else [""]
    for number in count(parts + 1):
        names = [f"{target.name}.part{number}.{what}{suffix}" for what in kinds]
        older = [file for file in map(target.with_name, names) if file.exists()]
        if not older:
            return
        for file in older:
            file.unlink()


def fit_pca(encoder: Encoder, video: Source, args: argparse.Namespace) -> PCA:
    """Fit the colours to frames spread over the whole video, so that they do not change while it plays."""
    frames = spread(video.frames(interval_of(args)), 16)
    return PCA.fit(torch.cat([encode_images(encoder, frame.image, args).patches.flatten(0, 1) for frame in frames]))


def spread(items: Iterable[_T], most: int) -> list[_T]:
    """Return evenly spaced ones of any number of items, the first of them and at most `most`, holding no more."""
    kept: list[_T] = []
    step = 1
    for number, item in enumerate(items):
        if number % step == 0:
            if len(kept) == most:
                kept, step = kept[::2], 2 * step
                if number % step:
                    continue
            kept.append(item)
    return kept


def side_by_side(image: np.ndarray, pca: PCA, grid: Tensor, max_height: int = 720) -> np.ndarray:
    """Return the image and its features' picture next to each other, each of even height and width."""
    scale = min(1.0, max_height / image.shape[0])
    height, width = (max(round(side * scale) // 2 * 2, 2) for side in image.shape[:2])
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    return np.concatenate([resized, pca.picture(grid, (height, width))], axis=1)


class FeatureWriter:
    """Writes the features of a video's frames; after every 1,000 frames a new file, NAME.part2 and so on, begins."""

    def __init__(self, target: Path, args: argparse.Namespace, episode: int | None = None) -> None:
        self.target = target
        self.args = args
        self.episode = episode
        self.parts = self.written = 0
        self.grid = torch.Size()
        self.rows: dict[str, list[Tensor]] = {name: [] for name in OF_FRAMES}

    def add(self, cls: Tensor, patches: Tensor, times: list[float], grid: torch.Size) -> None:
        """Add (T, C) class tokens and (T, N, C) patch tokens of frames at `times` seconds."""
        self.grid = grid
        dtype = getattr(torch, self.args.dtype)
        values = (cls.to(dtype).cpu(), patches.to(dtype).cpu(), torch.tensor(times))
        for rows, value in zip(self.rows.values(), values, strict=True):
            rows.append(value)
        if sum(map(len, self.rows["times"])) >= FRAMES_PER_FILE:
            self.close()

    def close(self) -> None:
        """Write what is held back."""
        if not self.rows["times"]:
            return
        self.parts += 1
        name = self.target.name if self.parts == 1 else f"{self.target.name}.part{self.parts}"
        tensors = {key: torch.cat(rows) for key, rows in self.rows.items()}
        if self.args.format == "parquet":  # LeRobot's names of what a frame is found by
            number = torch.arange(self.written, self.written + len(tensors["times"]))
            episode = {} if self.episode is None else {"episode_index": torch.full_like(number, self.episode)}
            index = {} if self.args.fps else {"frame_index": number}  # with frames left out a row is not of its number
            tensors = {**episode, **index, "timestamp": tensors.pop("times"), **tensors}
        self.written += len(tensors["cls"])
        save_features(self.target.with_name(name), tensors, self.grid, self.args)
        for rows in self.rows.values():
            rows.clear()


def save_features(target: Path, tensors: dict[str, Tensor], grid: torch.Size, args: argparse.Namespace) -> None:
    """Write tensors as a file of safetensors, a table of parquet, a column each, or as .npy files."""
    dtype = getattr(torch, args.dtype)
    stored = {k: (v.to(dtype) if k in ("cls", "patches") else v).cpu().contiguous() for k, v in tensors.items()}
    if args.format == "npy":
        for name, tensor in stored.items():
            with atomic_path(target.with_name(f"{target.name}.{name}.npy")) as temporary:
                np.save(temporary, tensor.numpy())
        return
    metadata = {"model": str(args.model), "grid": f"{grid[0]}x{grid[1]}"}
    with atomic_path(target.with_name(f"{target.name}.{args.format}")) as temporary:
        if args.format == "safetensors":
            save_file(stored, temporary, metadata=metadata)
        else:
            save_table(stored, temporary, metadata)


def save_table(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write tensors as the columns of a parquet file, a row their first dimension, those behind it as nested lists."""
    arrow, parquet = (import_extra(name, "robot") for name in ("pyarrow", "pyarrow.parquet"))

    def column(values: np.ndarray) -> Any:
        array = arrow.array(values.reshape(-1))
        for length in values.shape[:0:-1]:
            array = arrow.FixedSizeListArray.from_arrays(array, length)
        return array

    table = arrow.table({name: column(tensor.numpy()) for name, tensor in tensors.items()})
    parquet.write_table(table.replace_schema_metadata(metadata), path)


if __name__ == "__main__":
    main()
