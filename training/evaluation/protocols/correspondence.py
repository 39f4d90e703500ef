"""Correspondence: whether the keypoints of an object are found again on another object of its kind.

Nothing is trained. SPair-71k's measure (Min et al. 2019), as works on frozen features have it (Tang et al. 2023, DIFT;
El Banani et al. 2024, Probe3D): each keypoint of the source image is found in the target image at the place whose
feature, by cosine similarity, is most like the keypoint's. It is right within 0.1 of the longer side of the target
object's box (PCK@0.1).

Images are squashed to --size x --size (512); features are the patch tokens of the last block, of several with --layers.

    pck_image            mean over pairs of the share of a pair's keypoints that are right: figure that is compared by,
                         in `units` that are categories
    pck_point            share of all keypoints of all pairs
    pck_image_nearest    pck_image with whole patches: a keypoint has the token of the patch that it lies in, and is
                         found at a patch's centre
    pck_point_nearest    likewise

The first two enlarge features bilinearly 4 times. DIFT enlarges them to the image's size; Probe3D cuts the object's box
out, takes the source's feature bilinearly, finds the target at a patch and scores the mean over categories of
pck_point. Their figures compare with ours roughly. Ties are broken at random (--seed), so that constant features score
chance. Random weights belong beside every figure, at the same --size: the larger it is, the more a patch's colours find
alone. For the layout see `training/evaluation/data/keypoints.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training.evaluation.data.keypoints import KeypointPair, find_pairs
from training.evaluation.features import extract
from training.evaluation.metrics.correspondence import normalize
from training.evaluation.metrics.keypoints import cells_of, centres_of, correct, enlarge, find_points
from training.evaluation.statistics.figures import by_unit, percent
from training.models.model import Model
from video_distilled_encoder.errors import InputError

LIMIT = 0.1
FACTOR = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the protocol's options."""
    parser.add_argument("--split", default="test", help="folder of PairAnnotation (%(default)s)")
    parser.add_argument("--size", type=int, default=512, help="pixels of a side (%(default)s)")
    parser.add_argument("--layers", type=int, default=1, help="last blocks whose tokens are concatenated (%(default)s)")


def evaluate(model: Model, args: argparse.Namespace) -> dict[str, object]:
    """Find the keypoints of every pair."""
    if args.size < 1:
        raise InputError(f"--size {args.size} is no number of pixels; give 1 or more")
    pairs = find_pairs(args.data, args.split)
    images = sorted({image for pair in pairs for image in (pair.source, pair.target)})
    size = model.nearest_size(args.size, args.size)
    features = extract(model, images, size, cache=args.cache, layers=args.layers).grid
    grids = dict(zip(images, features, strict=True))
    enlarged, nearest = (list(score(pairs, grids, factor, args.seed, model.device)) for factor in (FACTOR, 1))
    categories = [pair.category for pair in pairs]
    shares = [right.mean() for right in enlarged]
    return {
        "figures": {
            "pck_image": percent(shares),
            "pck_point": percent(np.concatenate(enlarged)),
            "pck_image_nearest": percent([right.mean() for right in nearest]),
            "pck_point_nearest": percent(np.concatenate(nearest)),
            **by_unit(shares, categories),
        },
        "setting": {
            "features": f"patch tokens, last {args.layers} block(s)",
            "size": list(size),
            "resizing": model.resizing(),
            "enlarged": FACTOR,
            "limit": f"{LIMIT} x longer side of the object's box",
        },
        "data": {
            "test": f"{args.data.name}/{args.split}, {len(pairs)} pairs, {len(images)} images, "
            f"{len(set(categories))} categories"
        },
    }


def score(
    pairs: Sequence[KeypointPair], grids: Mapping[Path, Tensor], factor: int, seed: int, device: torch.device
) -> Iterator[np.ndarray]:
    """Yield for each pair which of its (k,) keypoints are right.

    Args:
        pairs: those of a target side by side.
        grids: image -> its (h, w, C) features.
        factor: by which they are enlarged.
        seed: of the ties.
        device: where features are compared.
    """
    generator = torch.Generator(device).manual_seed(seed)
    bar = tqdm(total=len(pairs), desc=f"match, {factor} x", unit="pair", dynamic_ncols=True)
    for image, group in groupby(pairs, key=lambda pair: pair.target):
        target = enlarge(grids[image].to(device), factor)
        grid, known = (target.shape[0], target.shape[1]), normalize(target.flatten(0, 1))
        for pair in group:
            queries = _at(enlarge(grids[pair.source].to(device), factor), pair)
            found = centres_of(find_points(queries, known, generator).cpu(), pair.target_size, grid)
            yield correct(found, pair.target_points, pair.extent, LIMIT)
            bar.update()
    bar.close()


def _at(source: Tensor, pair: KeypointPair) -> Tensor:
    """Return the (k, C) features of a pair's keypoints in its source image."""
    cells = cells_of(pair.source_points, pair.source_size, (source.shape[0], source.shape[1]))
    return source.flatten(0, 1)[cells.to(source.device)]
