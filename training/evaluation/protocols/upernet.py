"""UperNet: semantic segmentation with the whole encoder fine-tuned, as iBOT does it on ADE20K.

The encoder's four-level pyramid (`training/evaluation/finetune/backbone.py`) feeds a UPerNet head and an auxiliary FCN
head (`finetune/upernet.py`). iBOT's settings are the preset upernet-ade20k-160k: 160,000 steps of 16 crops of 512 x
512, AdamW 3e-5, weight decay .05, layer decay .9, linear warm-up of 1,500 steps, then linear decay to 0 (poly of power
1), drop path .1. Training images are resized to fit 2048 x 512 times a factor of .5 to 2, cropped where no class has
more than .75 of the labelled pixels (ten tries), flipped, and distorted in brightness (a factor, where mmsegmentation
adds), contrast, saturation and hue. Test images are resized to fit 2048 x 512; windows of 512 every 341 pixels are
predicted and their overlapping logits averaged, then upsampled to the labels' size: mean IoU over the classes that
occur. One scale, no flip; the weights after the last step, which lie in --cache before they are scored. Only an encoder
of this package and timm's vision transformers can be fine-tuned. Matrix products are bfloat16 on CUDA (iBOT: float16).

--preset upernet-small is for trying out on CamVid and a CPU. For the layouts of the data see
`training/evaluation/data/segmentation.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from tqdm import tqdm

from training.evaluation.data.labels import VOID
from training.evaluation.data.segmentation import LAYOUTS, Layout, Pair, describe_data, split_names, unit_names
from training.evaluation.finetune.backbone import VitPyramid, parameter_groups, trainable_backbone
from training.evaluation.finetune.presets import add_preset_arguments, read_settings
from training.evaluation.finetune.training import Stream, autocast, ends, train, train_once, warm_up
from training.evaluation.finetune.upernet import UperNet
from training.evaluation.metrics.segmentation import confusion_matrix, figures_by_unit, sum_by_unit
from training.models.model import Model
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.image_files import open_image
from video_distilled_encoder.model_config import ModelConfig


@dataclass(frozen=True)
class UpernetSettings:
    """Settings of the protocol (defaults: iBOT's for ViT-S on ADE20K)."""

    iterations: int = 160_000
    """Training steps."""
    batch_size: int = 16
    """Crops in a step."""
    accumulate: int = 1
    """Parts that a batch is computed in, to save memory; BatchNorm sees one part at a time."""
    crop: int = 512
    """Side of a training crop in pixels."""
    image_size: tuple[int, int] = (2048, 512)
    """Longer and shorter side, in pixels, that images are resized to fit, keeping their aspect ratio."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Random factor on that size in training."""
    max_class_share: float = 0.75
    """Most of a crop's labelled pixels that one class may have, if ten tries find such a crop."""
    learning_rate: float = 3e-5
    """Of the heads; see layer_decay."""
    weight_decay: float = 0.05
    """AdamW's, of matrices and kernels."""
    layer_decay: float = 0.9
    """Factor on the learning rate from a block to the one before it."""
    warmup: int = 1500
    """Steps of linear warm-up."""
    drop_path: float = 0.1
    """Stochastic depth of the last block."""
    normed: bool = True
    """Pass the tokens of each of the four blocks through the final norm."""
    channels: int = 384
    """Of the UPerNet head."""
    auxiliary_channels: int = 256
    """Of the auxiliary head."""
    window: int = 512
    """Side of a test window in pixels."""
    stride: int = 341
    """Pixels from window to window."""
    amp: bool = True
    """bfloat16 matrix products on CUDA."""

    def __post_init__(self) -> None:
        for name in ("iterations", "accumulate", "crop", "channels", "auxiliary_channels", "window", "stride"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.stride > self.window:
            raise InputError(f"stride {self.stride} leaves gaps between windows of {self.window}; lower it")
        if self.batch_size % self.accumulate or self.batch_size // self.accumulate < 2:
            raise InputError(
                f"batch_size {self.batch_size} must split into {self.accumulate} equal parts of at least 2 images, "
                "for BatchNorm"
            )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the protocol's options."""
    parser.add_argument("--layout", choices=LAYOUTS, default="ade20k", help="of the data (%(default)s)")
    parser.add_argument("--train-split", help="images it is trained on (the layout's)")
    parser.add_argument("--test-split", help="images it is tested on (the layout's)")
    add_preset_arguments(parser, "upernet", "upernet-ade20k-160k")


def evaluate(model: Model, args: argparse.Namespace) -> dict[str, object]:
    """Fine-tune on one split and score on the other."""
    settings = read_settings(UpernetSettings, "upernet", args.preset, args.set)
    layout = LAYOUTS[args.layout]
    backbone = trainable_backbone(model)
    pairs = [layout.labelled_pairs(args.data, split) for split in split_names(args)]
    torch.manual_seed(args.seed)
    pyramid = VitPyramid(backbone, settings.drop_path, settings.normed)
    network = UperNet(pyramid, len(layout.classes), settings.channels, settings.auxiliary_channels)
    network.to(model.device)
    history = train_once(
        network,
        args.cache,
        {**model.identity, "upernet": asdict(settings), "layout": args.layout, "seed": args.seed},
        (path for pair in pairs[0] for path in (pair.image, pair.label)),
        lambda: train_network(network, pairs[0], layout, model.config, settings, seed=args.seed, workers=args.workers),
    )
    confusions = sum_by_unit(score(network, pairs[1], layout, model.config, settings), unit_names(pairs[1]))
    return {
        "figures": {**figures_by_unit(confusions, layout.classes), "loss": ends(history)},
        "setting": asdict(settings),
        "data": describe_data(pairs[0], pairs[1], args),
    }


def train_network(
    network: UperNet,
    pairs: list[Pair],
    layout: Layout,
    config: ModelConfig,
    settings: UpernetSettings,
    *,
    seed: int,
    workers: int,
) -> list[float]:
    """Train on labelled images and return the loss of each step."""
    device = next(network.parameters()).device
    groups = parameter_groups(
        network,
        network.pyramid.backbone,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        layer_decay=settings.layer_decay,
    )

    def losses(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        pixels, labels = (torch.stack(part).to(device) for part in zip(*samples, strict=True))
        with autocast(device, settings.amp):
            return network.losses(pixels, labels)

    def rate(step: int) -> float:
        return warm_up(step, settings.warmup, 1e-6) * (1 - step / settings.iterations)

    return train(
        losses,
        Stream(
            len(pairs), settings.iterations * settings.batch_size, partial(_load, pairs, layout, config, settings), seed
        ),
        torch.optim.AdamW(groups, betas=(0.9, 0.999)),
        rate,
        batch_size=settings.batch_size,
        accumulate=settings.accumulate,
        workers=workers,
        description="UperNet",
    )


def _load(
    pairs: list[Pair], layout: Layout, config: ModelConfig, settings: UpernetSettings, number: int
) -> tuple[Tensor, Tensor]:
    return augment(*read_pair(pairs[number], layout), config, settings)


def read_pair(pair: Pair, layout: Layout) -> tuple[Tensor, Tensor]:
    """Return (3, H, W) uint8 RGB and (H, W) uint8 classes of a pair that has been checked."""
    return v2.functional.pil_to_tensor(open_image(pair.image)), torch.from_numpy(layout.read(pair.label))


def fitted_size(size: tuple[int, ...], longer: float, shorter: float) -> list[int]:
    """Return the largest (height, width) of a size's aspect ratio that fits (longer, shorter)."""
    factor = min(longer / max(size), shorter / min(size))
    return [max(round(side * factor), 1) for side in size]


def augment(image: Tensor, labels: Tensor, config: ModelConfig, settings: UpernetSettings) -> tuple[Tensor, Tensor]:
    """Scale, crop, flip, distort and normalise at random.

    Args:
        image: (3, H, W) uint8.
        labels: (H, W) uint8.
        config: mean and deviation.
        settings: sizes.

    Returns:
        (3, crop, crop) float32 and (crop, crop) uint8; what lies beyond the image is 0, and void.
    """
    factor = float(torch.empty(1).uniform_(*settings.scale))
    size = fitted_size(labels.shape, *(side * factor for side in settings.image_size))
    pair = (tv_tensors.Image(image), tv_tensors.Mask(labels[None]))
    image, mask = v2.Resize(size, antialias=True)(*pair)
    top, left = choose_crop(mask[0], settings.crop, settings.max_class_share)
    image, mask = (part[..., top : top + settings.crop, left : left + settings.crop] for part in (image, mask))
    image, mask = v2.RandomHorizontalFlip()(tv_tensors.Image(image), tv_tensors.Mask(mask))
    pixels = normalise(_photometric()(image), config)
    margin = (0, settings.crop - pixels.shape[-1], 0, settings.crop - pixels.shape[-2])
    return F.pad(pixels, margin), F.pad(mask.as_subclass(Tensor)[0], margin, value=VOID)


def choose_crop(labels: Tensor, side: int, max_share: float) -> tuple[int, int]:
    """Return top and left of a crop of (H, W) labels in which no class has more than a share of the labelled pixels."""
    height, width = labels.shape
    top = left = 0
    for _ in range(10):
        top = int(torch.randint(max(height - side, 0) + 1, ()))
        left = int(torch.randint(max(width - side, 0) + 1, ()))
        crop = labels[top : top + side, left : left + side]
        counts = torch.bincount(crop[crop != VOID].flatten().long())
        if (counts > 0).sum() > 1 and counts.max() < max_share * counts.sum():
            break
    return top, left


def _photometric() -> v2.Transform:
    """Brightness, contrast, saturation, hue, each in half of the images (mmsegmentation's ranges)."""
    ranges = ({"brightness": 0.125}, {"contrast": 0.5}, {"saturation": 0.5}, {"hue": 0.1})
    return v2.Compose([v2.RandomApply([v2.ColorJitter(**one)], p=0.5) for one in ranges])


def normalise(image: Tensor, config: ModelConfig) -> Tensor:
    """(3, H, W) uint8 -> float32 with the encoder's mean and deviation."""
    pixels = image.as_subclass(Tensor).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    return (pixels - mean) / std


@torch.no_grad()
def score(
    network: UperNet, pairs: list[Pair], layout: Layout, config: ModelConfig, settings: UpernetSettings
) -> Iterator[np.ndarray]:
    """Yield the (classes, classes) confusion matrix of each labelled image: pixels by label and prediction."""
    network.eval()
    device = next(network.parameters()).device
    for pair in tqdm(pairs, desc="score", unit="image", dynamic_ncols=True):
        image, labels = read_pair(pair, layout)
        size = fitted_size(labels.shape, *settings.image_size)
        pixels = normalise(v2.functional.resize(image, size, antialias=True), config)[None].to(device)
        with autocast(device, settings.amp):
            logits = slide(network, pixels, settings.window, settings.stride)
        prediction = F.interpolate(logits.float(), labels.shape, mode="bilinear").argmax(1)[0]
        yield confusion_matrix(prediction.cpu(), labels, network.classes)


def slide(network: Callable[[Tensor], Tensor], pixels: Tensor, window: int, stride: int) -> Tensor:
    """Predict by windows and average where they overlap.

    Args:
        network: (B, 3, h, w) -> (B, K, h, w) logits.
        pixels: (B, 3, H, W).
        window: side of a window; one covers the image if it fits.
        stride: from window to window; the last ones are moved back into the image.

    Returns:
        (B, K, H, W) logits.
    """
    total, count = None, torch.zeros_like(pixels[:1, :1])
    for top in _starts(pixels.shape[-2], window, stride):
        for left in _starts(pixels.shape[-1], window, stride):
            place = (..., slice(top, top + window), slice(left, left + window))
            logits = network(pixels[place])
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], *pixels.shape[-2:])
            total[place] += logits
            count[place] += 1
    assert total is not None
    return total / count


def _starts(length: int, window: int, stride: int) -> list[int]:
    last = max(length - window, 0)
    return sorted({min(start, last) for start in range(0, last + stride, stride)})
