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
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from training.evaluation.data.image_folder import (
    LabelledFeatures,
    accuracy,
    add_split_arguments,
    describe,
    load_class_tokens,
)
from training.evaluation.probes.linear import StandardizedLinear
from training.models.loading import Model
from video_distilled_encoder.errors import InputError

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Learning rates tried, for a batch of 256."""
BATCH = 1024


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


def training_setting(epochs: int) -> dict[str, object]:
    """Return what a result says of the layer's training."""
    return {"epochs": epochs, "batch": f"{BATCH}, at most a tenth of the data or 32", "learning_rates": list(RATES)}


def fit_and_score(
    train: LabelledFeatures, test: LabelledFeatures, classes: int, device: torch.device, *, epochs: int, seed: int
) -> dict[str, object]:
    """Choose the learning rate, train the layer and return its accuracies on the test part."""
    train = LabelledFeatures(train.features.to(device), train.labels.to(device))
    rate, held_out = choose_rate(train, classes, epochs=epochs, seed=seed)
    layer = train_layer(train, classes, rate, epochs=epochs, seed=seed)
    figures: dict[str, object] = dict(accuracy(predict(layer, test.features.to(device)), test.labels.to(device)))
    figures["learning_rate"] = {"chosen": rate, "held_out_top1": {str(r): value for r, value in held_out.items()}}
    return figures


def choose_rate(train: LabelledFeatures, classes: int, *, epochs: int, seed: int) -> tuple[float, dict[float, float]]:
    """Return the learning rate with the best top-1 accuracy on a tenth held out, and the accuracy of each.

    Of equally accurate rates the one with the lowest loss is chosen.

    Raises:
        InputError: there are fewer than two training examples.
    """
    count = len(train.labels)
    if count < 2:
        raise InputError(f"a linear layer needs at least 2 training examples, got {count}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held, rest = order[: max(count // 10, 1)].to(train.labels.device), order[max(count // 10, 1) :]
    rest = rest.to(train.labels.device)
    part = LabelledFeatures(train.features[rest], train.labels[rest])
    quality: dict[float, tuple[float, float]] = {}
    for rate in RATES:
        layer = train_layer(part, classes, rate, epochs=epochs, seed=seed)
        logits = predict(layer, train.features[held])
        loss = F.cross_entropy(logits, train.labels[held]).item()
        quality[rate] = (accuracy(logits, train.labels[held])["top1"], -loss) if math.isfinite(loss) else (0, -math.inf)
    return max(RATES, key=lambda rate: quality[rate]), {rate: quality[rate][0] for rate in RATES}


def train_layer(train: LabelledFeatures, classes: int, rate: float, *, epochs: int, seed: int) -> StandardizedLinear:
    """Train the layer with one learning rate, stated for a batch of 256."""
    device = train.features.device
    generator = torch.Generator().manual_seed(seed)
    layer = StandardizedLinear(train.features, classes).to(device)
    nn.init.zeros_(layer.linear.weight)
    nn.init.zeros_(layer.linear.bias)
    count = len(train.labels)
    batch = min(BATCH, max(count // 10, 32), count)
    steps = math.ceil(count / batch)
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate * batch / 256, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    for _ in tqdm(range(epochs), desc=f"linear layer, rate {rate}", unit="epoch", dynamic_ncols=True, leave=False):
        for chosen in torch.randperm(count, generator=generator).to(device).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(layer(train.features[chosen]), train.labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    return layer


@torch.no_grad()
def predict(layer: StandardizedLinear, features: Tensor) -> Tensor:
    """(n, C) -> (n, classes) logits."""
    return torch.cat([layer(part) for part in features.split(4096)])
