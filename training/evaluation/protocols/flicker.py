"""Prediction flicker: how often a frozen linear probe's label changes along a correspondence from frame to frame.

The layer is trained as in `linear-segmentation` on the labelled --data, and applied to frames of --video that lie
--step seconds apart. Correspondences come from the raw pixels of both frames, not from the model that is measured: each
block of 16x16 pixels is searched for in the other frame (least absolute difference, in colour, at half resolution,
within 24 pixels) and what is found is searched for in the first; only blocks that come home to within 2 pixels and look
alike are followed. Fast, occluded and repetitive things are thus left out, for all encoders alike.

    relative       100 * flicker / chance, mean over videos: the figure to compare, lower is better; 0 = steady; 100 =
                   as labels drawn at random, and, by definition, a video in which the probe gives one label only,
                   which says nothing and never flickers. With its `interval`, its value on each video (`units`), on
                   every second one (`half_a`) and on the others (`half_b`)
    flicker        share of followed blocks whose label changes, percent, 0 to 100; mean over videos
    chance         share that would change if labels were drawn at random, in the proportions in which the probe
                   gives them in a video: 1 - sum p^2, percent; mean over videos
    miou, pixel_accuracy
                   of the layer on the labelled test images, percent; steadiness in error is worth nothing
    classes, entropy
                   number of classes given to the followed blocks of all videos, and their entropy in bits
    followed       share of blocks that could be followed, percent; the same for every encoder of one patch size
    videos         flicker, chance and followed of each
    vc8, vc16      layout vspw: VSPW's video consistency on the test images, percent: of the pixels whose true label
                   stays the same over 8 (16) frames, the share whose predicted label does; right or wrong, so that a
                   constant encoder has 100

A constant encoder scores flicker 0, relative 100, entropy 0. On 13 real clips, with a layer trained on CamVid
(`model_cards/results`), random weights scored relative 9, of mIoU 16, and raw pixels 4, of mIoU 13: telling bright from
dark is steady, and a poor segmentation. So steadiness counts only against an encoder whose mIoU is no higher, and the
rows of random and pixels stand beside every figure. The interval is a 95 % percentile bootstrap over videos.
"""

from __future__ import annotations

import argparse
import math
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.evaluation.data.segmentation import split_names
from training.evaluation.data.video_frames import Clip, load_clips
from training.evaluation.features import extract
from training.evaluation.metrics.segmentation import figures_of
from training.evaluation.probes import segmentation as probe
from training.evaluation.probes.linear import StandardizedLinear
from training.evaluation.statistics.figures import by_unit, percent
from training.models.model import Model
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.sources.options import add_source_options, asked_of

BLOCK = 8
"""Side of a block in pixels at half resolution."""
REACH = 12
"""How far a block is searched for, at half resolution."""
MAX_COST = 0.06
"""Mean absolute difference, white being 1, above which two blocks are not of the same thing."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the protocol's options."""
    probe.add_arguments(parser)
    parser.add_argument("--video", type=Path, required=True, help="a video, or a folder of videos or image sequences")
    add_source_options(parser)
    parser.add_argument("--step", type=float, default=0.1, help="seconds between two frames (%(default)s)")
    parser.add_argument("--videos", type=int, default=0, help="take this many, drawn by --seed; 0 = all (%(default)s)")
    parser.add_argument("--frames", type=int, default=8, help="pairs of frames per video (%(default)s)")
    parser.add_argument("--fps", type=float, default=24.0, help="frame rate of image sequences (%(default)s)")


def evaluate(model: Model, args: argparse.Namespace) -> dict[str, object]:
    """Train the layer and measure its flicker."""
    train, test = probe.load_splits(model, args)
    layer = probe.train_layer(train, steps=args.steps, seed=args.seed, device=model.device)
    height = train.features.shape[1] * model.patch_size
    classes = len(train.layout.classes)
    videos: dict[str, dict[str, float]] = {}
    counts = np.zeros(classes, dtype=np.int64)
    for clip in load_clips(
        args.video,
        [args.step],
        fps=args.fps,
        max_videos=args.videos,
        frames=args.frames,
        seed=args.seed,
        asked=asked_of(args),
    ):
        videos[clip.video], given = measure_clip(model, layer, clip, height, args)
        counts += given
    scores = figures_of(probe.score(layer, test), test.layout.classes)
    return {
        "figures": {
            **summarize(videos, counts),
            "miou": scores["miou"],
            "pixel_accuracy": scores["pixel_accuracy"],
            **(vspw_consistency(layer, test) if args.layout == "vspw" else {}),
            "videos": {name: {key: percent(share) for key, share in found.items()} for name, found in videos.items()},
        },
        "setting": {
            "features": f"patch tokens, last {args.layers} block(s)",
            "height": height,
            "future": probe.told_future(args),
            "steps": args.steps,
            "step": args.step,
            "frames": args.frames,
        },
        "data": {"labelled": args.data.name, "split": list(split_names(args)), "videos": sorted(videos)},
    }


def measure_clip(
    model: Model, layer: StandardizedLinear, clip: Clip, height: int, args: argparse.Namespace
) -> tuple[dict[str, float], np.ndarray]:
    """Return the figures of one video, shares in [0, 1], and how often each class is given to a followed block."""
    (pairs,) = clip.pairs.values()
    size = model.nearest_size(height, height * clip.images.shape[2] / clip.images.shape[1])
    half = size[0] // 2, size[1] // 2
    found = extract(model, list(clip.images), size, cache=args.cache, layers=args.layers, desc=f"encode {clip.video}")
    labels = [probe.predict(layer, tokens, half) for tokens in found.grid]
    small = [shrink(image, half) for image in clip.images]
    before, after, blocks = [], [], 0
    for first, second in pairs:
        starts, ends, asked = follow(small[first], small[second])
        before.append(label_at(labels[first], starts))
        after.append(label_at(labels[second], ends))
        blocks += asked
    start, end = torch.cat(before), torch.cat(after)
    if not len(start):
        raise InputError(f"nothing can be followed over {args.step} s in {clip.video}; lower --step or leave it out")
    counts = torch.bincount(torch.cat([start, end]), minlength=layer.linear.out_features).numpy()
    shares = counts / counts.sum()
    figures = {
        "flicker": float((start != end).double().mean()),
        "chance": float(1 - (shares**2).sum()),
        "followed": len(start) / blocks,
    }
    return figures, counts


def shrink(image: np.ndarray, size: tuple[int, int]) -> Tensor:
    """(H, W, 3) uint8 -> (3, h, w) float in [0, 1]."""
    pixels = torch.from_numpy(image).movedim(-1, 0)[None].float() / 255
    return F.interpolate(pixels, size, mode="bilinear", antialias=True)[0]


def label_at(labels: Tensor, corners: Tensor) -> Tensor:
    """Return the (N,) labels at the centres of blocks whose upper left corners are given, (N, 2) rows and columns."""
    centres = corners + BLOCK // 2
    return labels[centres[:, 0], centres[:, 1]]


def follow(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, int]:
    """Follow the blocks of a frame into another.

    Args:
        first: (3, h, w) in [0, 1].
        second: (3, h, w).

    Returns:
        Upper left corners, (N, 2) rows and columns, in both frames, of the blocks that are surely found, and how many
        were searched for.
    """
    rows, columns = (torch.arange(0, side - BLOCK + 1, BLOCK) for side in first.shape[1:])
    starts = torch.cartesian_prod(rows, columns)
    ends, cost = find_blocks(first, second, starts)
    home, _ = find_blocks(second, first, ends)
    sure = (cost <= MAX_COST) & ((home - starts).abs().amax(1) <= 1)
    return starts[sure], ends[sure], len(starts)


def find_blocks(first: Tensor, second: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    """Search each block of one frame in another, at whole pixels within `REACH`; of equals, the nearest wins.

    Args:
        first: (3, h, w).
        second: (3, h, w).
        corners: (N, 2) upper left corners in `first`.

    Returns:
        (N, 2) corners in `second`, and (N,) mean absolute differences.
    """
    height, width = first.shape[1:]
    shifts = torch.arange(-REACH, REACH + 1)
    padded = F.pad(second, (REACH,) * 4)
    side = 2 * REACH + BLOCK
    windows = padded.unfold(1, side, 1).unfold(2, side, 1)
    blocks = first.unfold(1, BLOCK, 1).unfold(2, BLOCK, 1)
    far = 1e-6 * (shifts[:, None].abs() + shifts[None].abs())
    ends, costs = [], []
    for part in corners.split(32):
        row, column = part.T
        candidates = windows[:, row, column].unfold(2, BLOCK, 1).unfold(3, BLOCK, 1)
        cost = (candidates - blocks[:, row, column][:, :, None, None]).abs().mean((0, 4, 5)) + far
        rows, columns = row[:, None] + shifts, column[:, None] + shifts
        outside = ((rows < 0) | (rows > height - BLOCK))[:, :, None] | ((columns < 0) | (columns > width - BLOCK))[
            :, None
        ]
        value, best = cost.masked_fill(outside, math.inf).flatten(1).min(1)
        ends.append(part + torch.stack([best // len(shifts), best % len(shifts)], dim=1) - REACH)
        costs.append(value)
    return torch.cat(ends), torch.cat(costs)


def summarize(videos: dict[str, dict[str, float]], counts: np.ndarray) -> dict[str, object]:
    """Return the figures over all videos; counts is how often each class is given."""
    relative = [found["flicker"] / found["chance"] if found["chance"] else 1.0 for found in videos.values()]
    shares = counts[counts > 0] / counts.sum()
    return {
        "relative": percent(relative),
        **{name: percent([found[name] for found in videos.values()]) for name in ("flicker", "chance", "followed")},
        "classes": len(shares),
        "entropy": round(float(-(shares * np.log2(shares)).sum()), 2) + 0.0,
        **by_unit(relative, list(videos)),
    }


def video_consistency(labels: np.ndarray, predictions: np.ndarray, frames: int) -> list[float]:
    """Return VSPW's consistency of each window of consecutive frames, in [0, 1].

    Like VSPW's script it leaves out the last window, counts void as a class, and asks for steadiness alone.

    Args:
        labels: (T, H, W).
        predictions: (T, H, W).
        frames: length of a window.
    """
    found = []
    for start in range(len(labels) - frames):
        steady, predicted = ((part[start : start + frames] == part[start]).all(0) for part in (labels, predictions))
        if steady.any():
            found.append(float(predicted[steady].mean()))
    return found


def vspw_consistency(layer: StandardizedLinear, test: probe.Split) -> dict[str, float | None]:
    """Return VC8 and VC16, in percent, over the windows of all sequences of the test images that are long enough.

    Where the size changes another sequence begins.
    """
    found: dict[int, list[float]] = {8: [], 16: []}
    images = ((pair.sequence, number, test.labels(number).numpy()) for number, pair in enumerate(test.pairs))
    for _, alike in groupby(images, key=lambda image: (image[0], image[2].shape)):
        _, numbers, truths = zip(*alike, strict=True)
        labels = np.stack(truths)
        predictions = np.stack(
            [probe.predict(layer, test.features[number], labels.shape[1:]).numpy() for number in numbers]
        )
        for frames, shares in found.items():
            shares += video_consistency(labels, predictions, frames)
    return {f"vc{frames}": percent(shares) for frames, shares in found.items() if shares}
