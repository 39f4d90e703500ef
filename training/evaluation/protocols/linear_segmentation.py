"""Linear segmentation: how much of a scene's layout one linear layer reads from frozen patch tokens.

Images are stretched to the layout's size, or to the nearest multiples of the patch size; the features are the patch
tokens of the last block, or of several (--layers 4), standardised per channel with the training images' mean and
deviation. One linear layer is trained for 1,000 steps of 64 images (the papers' Fast-LP; the optimiser is not stated
there: AdamW 1e-3, weight decay 1e-4, polynomial decay). Its loss is the cross-entropy of every labelled pixel with its
patch's prediction, computed from the share of each class in each patch. For the score, logits are upsampled bilinearly
to the labels' size: mean IoU over the classes that occur or are predicted. Its `interval`, and `units` to compare by,
are of the recordings, or of runs of images if there are few recordings (`figures_by_unit` of
`training/evaluation/metrics/segmentation.py`).

With --future 1 each image's features must tell the labels of the frame one second after it, by the frames' numbers;
images without such a frame are left out. For the layouts of the data see `training/evaluation/data/segmentation.py`.
"""

from __future__ import annotations

import argparse

from training.evaluation.data.segmentation import describe_data, unit_names
from training.evaluation.metrics.segmentation import figures_by_unit, sum_by_unit
from training.evaluation.probes import segmentation as probe
from training.models.model import Model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the protocol's options."""
    probe.add_arguments(parser)


def evaluate(model: Model, args: argparse.Namespace) -> dict[str, object]:
    """Train the layer on one split and score it on the other."""
    train, test = probe.load_splits(model, args)
    layer = probe.train_layer(train, steps=args.steps, seed=args.seed, device=model.device)
    return {
        "figures": figures_by_unit(
            sum_by_unit(probe.confusions(layer, test), unit_names(test.pairs)), test.layout.classes
        ),
        "setting": {**probe.describe_features(model, train, args), "steps": args.steps, "batch": 64},
        "data": describe_data(train.pairs, test.pairs, args),
    }
