"""A linear layer that tells the class of an image or a video from a frozen feature: its training and its score.

`training/evaluation/protocols/linear_classification.py` states the procedure.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from training.evaluation.data.image_folder import LabelledFeatures, accuracy
from training.evaluation.probes.linear import StandardizedLinear
from video_distilled_encoder.errors import InputError

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Learning rates tried, for a batch of 256."""
BATCH = 1024


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
