"""Action recognition: how well one linear layer on the mean class token of a video's frames tells what is done in it.

Eight frames of each video, evenly spaced (the middles of eight equal parts), resized to 256, of which the middle 224
are kept; the mean of their class tokens (last block); a linear layer trained as in linear-classification: standardised
features, no augmentation, learning rate chosen on a tenth of the training videos. That tenth is drawn at random, so it
shares groups of clips with the rest; it chooses the rate and nothing else. Top-1 and top-5 over all test videos of one
of the three official splits (--split; papers give the first, or the mean of the three).

The layouts, as the data sets are handed out (the first alone is wanted of each pair of names):

    UCF-101   videos/ or UCF-101/         ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi …  (UCF101.rar)
              ucfTrainTestlist/           trainlist01.txt   ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1
                                          testlist01.txt    ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi
    HMDB-51   videos/ or hmdb51_org/      brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi …  (hmdb51_org.rar holds
                                          a .rar for each class)
              test_train_splits/ or       brush_hair_test_split1.txt, a file per class and split:
              testTrainMulti_7030_splits/ April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1   (1 train, 2 test, 0 unused)

A listed .avi may lie there as .mp4.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training.evaluation.cache import cached
from training.evaluation.data.image_folder import ClassTokens, LabelledFeatures
from training.evaluation.data.listing import read_list, split_use
from training.evaluation.features import compact
from training.evaluation.probes.classification import fit_and_score, training_setting
from training.models.model import Model
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.files import sha256
from video_distilled_encoder.video import probe, read_frames

GROUP = 64
"""Videos of one cache entry."""
_VIDEOS = ("videos", "UCF-101", "hmdb51_org")
_UCF = ("ucfTrainTestlist",)
_HMDB = ("test_train_splits", "testTrainMulti_7030_splits")


class Video(NamedTuple):
    """One video of a split."""

    path: Path
    action: str
    """Name of its class."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the protocol's options."""
    parser.add_argument("--split", type=int, choices=(1, 2, 3), default=1, help="official split (%(default)s)")
    parser.add_argument("--frames", type=int, default=8, help="frames of each video (%(default)s)")
    parser.add_argument("--layers", type=int, default=1, help="last blocks whose tokens are concatenated (%(default)s)")
    parser.add_argument("--epochs", type=int, default=100, help="passes over the training videos (%(default)s)")


def evaluate(model: Model, args: argparse.Namespace) -> dict[str, object]:
    """Train the layer on the training videos and score it on the test videos."""
    train, test = find_split(args.data, args.split)
    if args.frames < 1:
        raise InputError(f"--frames {args.frames} is no number of frames; give 1 or more")
    actions = sorted({video.action for video in train})
    train_features, test_features = (
        LabelledFeatures(
            encode_videos(model, [video.path for video in part], args, f"encode {name}"),
            torch.tensor([actions.index(video.action) for video in part]),
        )
        for name, part in (("train", train), ("test", test))
    )
    return {
        "figures": fit_and_score(
            train_features, test_features, len(actions), model.device, epochs=args.epochs, seed=args.seed
        ),
        "setting": {
            "features": f"mean class token of {args.frames} frames, last {args.layers} block(s)",
            "size": list(model.nearest_size(224, 224)),
            **training_setting(args.epochs),
        },
        "data": {
            name: f"{args.data.name}, split {args.split}, {len(part)} videos of {len(actions)} classes"
            for name, part in (("train", train), ("test", test))
        },
    }


def find_split(root: Path, split: int) -> tuple[list[Video], list[Video]]:
    """Return the training and the test videos of a split of UCF-101 or HMDB-51, whichever lies in `root`.

    Raises:
        InputError: neither does, a listed video is missing or in both parts, or these have different classes.
    """
    videos = _first(root, _VIDEOS)
    if lists := _first(root, _UCF):
        train, test = (read_ucf(lists / f"{part}list{split:02d}.txt") for part in ("train", "test"))
    elif lists := _first(root, _HMDB):
        train, test = read_hmdb(lists, split)
    if videos is None or lists is None:
        raise InputError(
            f"{root} holds neither UCF-101 nor HMDB-51; expected videos/CLASS/*.avi, and "
            "ucfTrainTestlist/trainlist01.txt or test_train_splits/CLASS_test_split1.txt"
        )
    if both := sorted(set(train) & set(test)):
        raise InputError(f"{len(both)} videos of split {split} in {lists} are in both of its lists, e.g. {both[0]}")
    odd = sorted({name.split("/")[0] for name in train} ^ {name.split("/")[0] for name in test})
    if odd or not train:
        raise InputError(f"split {split} in {lists} must train and test the same classes; {odd[:3] or 'it has none'}")
    return _locate(videos, train), _locate(videos, test)


def read_ucf(listing: Path) -> list[str]:
    """Return the CLASS/NAME.avi that a list of UCF-101 names; the class number behind it, if any, is not needed.

    Raises:
        InputError: the list is missing, or a line names no CLASS/NAME.
    """
    found = []
    for line in read_list(listing):
        name = re.sub(r"\s+[0-9]+$", "", line)
        if len(name.split("/")) != 2:
            raise InputError(f"{listing} has a line that is not CLASS/NAME.avi [NUMBER]: {line!r}")
        found.append(name)
    return found


def read_hmdb(folder: Path, split: int) -> tuple[list[str], list[str]]:
    """Return the CLASS/NAME.avi that are for training and for testing in a split of HMDB-51.

    Raises:
        InputError: there are no files of the split, or a line is not NAME.avi 0|1|2.
    """
    ending = f"_test_split{split}.txt"
    found: dict[str, list[str]] = {"0": [], "1": [], "2": []}
    listings = sorted(folder.glob(f"*{ending}"))
    if not listings:
        raise InputError(f"{folder} holds no CLASS{ending}")
    for listing in listings:
        for line in read_list(listing):
            name, use = split_use(line)
            if use not in found or not name:
                raise InputError(f"{listing} has a line that is not NAME.avi 0|1|2: {line!r}")
            found[use].append(f"{listing.name.removesuffix(ending)}/{name}")
    return found["1"], found["2"]


def encode_videos(model: Model, videos: Sequence[Path], args: argparse.Namespace, desc: str) -> Tensor:
    """Return the mean class tokens of videos (n, C), from the cache where they are there.

    A cache entry holds a group of videos and is found by the content of their files, so that nothing is decoded again
    and an extraction that stopped goes on where it was.

    Raises:
        InputError: a video cannot be read, or the cache cannot be written.
    """
    encoder = ClassTokens(model)
    what = {**encoder.identity, "size": encoder.size, "layers": args.layers, "frames": args.frames}
    groups = []
    for start in tqdm(range(0, len(videos), GROUP), desc=desc, unit="group", dynamic_ncols=True):
        group = videos[start : start + GROUP]

        def write(folder: Path, group: Sequence[Path] = group) -> None:
            means = [encode_video(encoder, video, args.frames, args.layers) for video in group]
            np.save(folder / "mean.npy", compact(torch.stack(means)).numpy())

        groups += cached(args.cache, what, map(sha256, group), ["mean"], write)
    return torch.cat(groups)


def encode_video(encoder: ClassTokens, video: Path, frames: int, layers: int) -> Tensor:
    """Return the mean class token (C,) of evenly spaced frames of a video."""
    images = spaced_frames(video, frames)
    return encoder.encode(images, encoder.size, layers=layers, crop_mode="center").cls.mean(0)


def spaced_frames(video: Path, count: int) -> list[np.ndarray]:
    """Return the frames in the middles of `count` equal parts of a video; short ones give some of them twice.

    The container's number of frames is believed until decoding shows another; then the video is decoded once more.

    Returns:
        `count` images (H, W, 3) uint8.

    Raises:
        InputError: the video cannot be read.
    """
    expected = probe(video).frames
    found, total = _pick(video, count, expected)
    if total != expected:
        found, _ = _pick(video, count, total)
    return found


def _pick(video: Path, count: int, total: int) -> tuple[list[np.ndarray], int]:
    """Return the frames wanted if the video has `total`, and how many it has."""
    wanted = [int((part + 0.5) * total / count) for part in range(count)]
    found: dict[int, np.ndarray] = {}
    decoded = 0
    for frame in read_frames(video):
        if decoded in wanted:
            found[decoded] = frame.image
        decoded += 1
    return [found[number] for number in wanted if number in found], decoded


def _locate(videos: Path, names: list[str]) -> list[Video]:
    found: list[Video] = []
    missing: list[Video] = []
    for name in names:
        path = videos / name
        path = path if path.is_file() else path.with_suffix(".mp4")
        (found if path.is_file() else missing).append(Video(path, name.split("/")[0]))
    if missing:
        raise InputError(
            f"{len(missing)} of {len(names)} listed videos are not in {videos}, e.g. {missing[0].path.stem}"
        )
    return found


def _first(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)
