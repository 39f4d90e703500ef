"""Linear depth: how much of a scene's geometry one linear layer reads from frozen tokens.

DINOv2's linear protocol (Oquab et al. 2024, section 7.4 "lin. 1"; its code `dinov2/eval/depth`): the tokens of the last
block, each patch token beside the image's class token; one linear layer to 256 evenly spaced depths from 0.001 to 10 m,
whose weights are relu(x) + 0.1 over their sum (AdaBins' linear normalisation) and whose weighted mean is the depth; the
scale-invariant loss sqrt(var(g) + 0.15 mean(g)^2) of the logarithms' difference g. For the score the depth is enlarged
bilinearly to the labels' size, and

    delta1     share of pixels that are less than a factor of 1.25 away, in percent: larger is better
    rmse       root mean squared error in metres
    abs_rel    mean error over true depth

are each the mean over images, as in the Monocular-Depth-Estimation-Toolbox that DINOv2's code is built on. Results are
compared by delta1, in `units` that are scenes, or runs of images if there are few scenes.

What differs from DINOv2's, so that figures are to be compared among each other and with theirs only roughly: tokens are
not enlarged 4 times before the layer, depths are, after it; no augmentation, and no gradient loss; tokens are
standardised per channel, where theirs pass a batch norm; 2,000 steps of 16 images (AdamW 1e-2, weight decay 1e-4,
polynomial decay) on mean depths in cells of a quarter of a patch's side. --layers 4 takes the last four blocks,
DINOv2's "lin. 4" four spread over the network: its model card gives RMSE 0.417 for ViT-S/14 on NYU Depth v2.

NYU Depth v2 is scored within Eigen's crop, and trained within it too. For the layouts see
`training/evaluation/data/depth.py`; a folder's unit is --depth-scale.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor

from training.common.commands import parse_positive
from training.evaluation.data.depth import LAYOUTS, DepthLayout, Range, read_depth
from training.evaluation.data.segmentation import Pair, describe_parts, unit_names
from training.evaluation.features import Features, extract
from training.evaluation.metrics.depth import DepthErrors, depth_errors
from training.evaluation.probes import depth as probe
from training.evaluation.statistics.bootstrap import interval
from training.evaluation.statistics.figures import by_unit, percent
from training.models.model import Model
from video_distilled_encoder.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the protocol's options."""
    parser.add_argument("--layout", choices=LAYOUTS, default="nyu", help="of the data (%(default)s)")
    parser.add_argument("--train-split", help="images the layer is trained on (the layout's)")
    parser.add_argument("--test-split", help="images it is tested on (the layout's)")
    parser.add_argument("--depth-scale", type=float, default=1000, help="steps a metre (%(default)s: millimetres)")
    parser.add_argument("--min-depth", type=float, default=1e-3, help="least depth used, in metres (%(default)s)")
    parser.add_argument("--max-depth", type=float, default=10, help="largest depth used, in metres (%(default)s)")
    parser.add_argument("--layers", type=int, default=1, help="last blocks whose tokens are concatenated (%(default)s)")
    parser.add_argument("--steps", type=parse_positive, default=2000, help="training steps (%(default)s)")


def evaluate(model: Model, args: argparse.Namespace) -> dict[str, object]:
    """Train the layer on one split and score it on the other."""
    layout, within = LAYOUTS[args.layout], Range(args.depth_scale, args.min_depth, args.max_depth)
    splits = args.train_split or layout.splits[0], args.test_split or layout.splits[1]
    train, test = (layout.pairs(args.data, split) for split in splits)
    size = model.nearest_size(*read(layout, train[0], within).shape)
    known, tested = (
        extract(
            model, [pair.image for pair in part], size, cache=args.cache, layers=args.layers, desc=f"encode {split}"
        )
        for part, split in zip((train, test), splits, strict=True)
    )
    if not any(read(layout, pair, within).any() for pair in train):
        raise InputError(f"no depth of the {len(train)} training images is from {within.least:g} to {within.most:g} m")
    layer = probe.train_layer(
        known,
        lambda number: read(layout, train[number], within),
        within,
        steps=args.steps,
        seed=args.seed,
        device=model.device,
    )
    return {
        "figures": figures(score(layer, tested, test, layout, within), test),
        "setting": {
            "features": f"patch tokens beside the class token, last {args.layers} block(s)",
            "size": list(size),
            "depths": f"{probe.BINS} from {within.least:g} to {within.most:g} m, {within.scale:g} steps a metre",
            "steps": args.steps,
            "learning_rate": probe.RATE,
            "batch": probe.BATCH,
        },
        "data": describe_parts(args.data, splits, (train, test)),
    }


def read(layout: DepthLayout, pair: Pair, within: Range) -> Tensor:
    """Return the (H, W) depths of a pair in metres, 0 where not known."""
    return torch.from_numpy(read_depth(pair.label, within, layout.crop))


def score(
    layer: probe.DepthLayer, features: Features, pairs: list[Pair], layout: DepthLayout, within: Range
) -> list[DepthErrors]:
    """Return the errors of each image."""
    errors = []
    for number, pair in enumerate(pairs):
        truth = read(layout, pair, within)
        errors.append(depth_errors(probe.predict(layer, features, number, truth.shape).numpy(), truth.numpy()))
    return errors


def figures(errors: list[DepthErrors], pairs: list[Pair]) -> dict[str, object]:
    """Return the mean errors of the images that have a known depth, and how sure they are.

    Raises:
        InputError: none has.
    """
    known = [number for number, one in enumerate(errors) if not np.isnan(one.rmse)]
    if not known:
        raise InputError(f"none of the {len(pairs)} test images has a depth in the range; check --depth-scale")
    delta1, rmse, abs_rel = (np.array([errors[number][part] for number in known]) for part in (2, 0, 1))
    units = unit_names([pairs[number] for number in known])
    bounds = interval(rmse, units)
    return {
        "delta1": percent(delta1),
        "rmse": round(float(np.mean(rmse)), 4),
        "abs_rel": round(float(np.mean(abs_rel)), 4),
        "rmse_interval": [None if np.isnan(bound) else round(bound, 4) for bound in bounds],
        "images": len(known),
        **by_unit(delta1, units),
    }
