"""Linear classification: how well one linear layer on frozen class tokens tells an image's class.

DINO's linear evaluation of ViT-S (its eval_linear.py): class tokens of the last four blocks, each after the final norm,
concatenated (--layers 4; ViT-B takes 1, to which DINO adds the mean patch token, and we do not); SGD with momentum 0.9,
no weight decay, cosine decay to 0 over 100 epochs, batches of 1,024, cross-entropy. The learning rate is stated for
batches of 256 and scaled linearly.

Ours differs in order to be cheap and reproducible. Features are extracted once, from the middle 224 pixels of images
resized to 256, without the random crops and flips of DINO's training, so figures are not comparable with published
ones, but with one another. Features are standardised per channel with the training images' mean and deviation. A batch
is at most a tenth of the images (or 32), so that small sets have a thousand steps. DINO tweaks the learning rate by
checkpoint and reports the best epoch on the test images; here each of seven rates from 0.001 to 1 is trained on nine
tenths of the training images (drawn by --seed), the one most accurate on the last tenth is trained on all of them,
and only its end is tested.

Top-1 and, with more than five classes, top-5. ROOT/SPLIT/CLASS/NAME.jpg, see
`training/evaluation/data/image_folder.py`.
"""

from __future__ import annotations

import argparse

from training.evaluation.data.image_folder import add_split_arguments, describe, load_class_tokens
from training.evaluation.probes.classification import fit_and_score, training_setting
from training.models.model import Model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the protocol's options."""
    add_split_arguments(parser)
    parser.add_argument("--layers", type=int, default=4, help="last blocks whose tokens are concatenated (%(default)s)")
    parser.add_argument("--epochs", type=int, default=100, help="passes over the training images (%(default)s)")


def evaluate(model: Model, args: argparse.Namespace) -> dict[str, object]:
    """Train the layer on the training images and score it on the test images."""
    train, test, classes = load_class_tokens(model, args, args.layers)
    return {
        "figures": fit_and_score(train, test, len(classes), model.device, epochs=args.epochs, seed=args.seed),
        "setting": {
            "features": f"class tokens, last {args.layers} block(s), no augmentation",
            "size": list(model.nearest_size(224, 224)),
            **training_setting(args.epochs),
        },
        "data": describe(args, train, test, len(classes)),
    }
