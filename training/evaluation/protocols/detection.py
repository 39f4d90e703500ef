"""Detection: Mask R-CNN or Cascade Mask R-CNN on COCO with the whole encoder fine-tuned.

The encoder's four-level pyramid (`training/evaluation/finetune/backbone.py`) and an FPN of 256 channels feed
torchvision's RPN and heads, or the three stages of Cascade R-CNN (`finetune/cascade.py`). The papers' text says Mask
R-CNN, their tables have numbers like iBOT's Cascade Mask R-CNN; so there are two presets, mask-rcnn-coco-12ep and
cascade-mask-rcnn-coco-12ep, with iBOT's AdamW 1e-4, weight decay .05, layer decay .8, linear warm-up of 500 steps,
batches of 16, drop path .1, and 12 epochs with the rate divided by ten after the 8th and 11th. The cascade has iBOT's
box heads (4 convolutions with BatchNorm, 1 linear layer) and box loss (GIoU x 10). Training images have a shorter side
of 480 to 800 pixels, at most 1333 of the longer, and are flipped; `crop` cuts random squares (the first paper: 512).
iBOT's second way of augmenting, a crop between two resizings, is not done. Images without objects and crowds are not
trained on. Test: shorter side 800, at most 100 detections of probability above .05, AP by pycocotools, boxes and masks,
crowds ignored; the weights after the last step, which lie in --cache before they are scored. Only an encoder of
this package and timm's vision transformers can be fine-tuned. Matrix products of the encoder are bfloat16 on CUDA.

Data: annotations/instances_SPLIT.json (polygons or RLE; what may be left out, see `training/evaluation/data/coco.py`)
and SPLIT/*.jpg. --preset detection-small is for trying out
on a CPU, as on the small set that `tests/training/evaluation/davis_as_coco.py` makes of DAVIS.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from tqdm import tqdm

from training.evaluation.finetune.backbone import VitPyramid, parameter_groups, trainable_backbone
from training.evaluation.finetune.detection import (
    CocoSplit,
    DetectionSettings,
    average_precision,
    build_detector,
    coco_results,
)
from training.evaluation.finetune.presets import add_preset_arguments, read_settings
from training.evaluation.finetune.training import Stream, ends, train, train_once, warm_up
from training.models.model import Model
from video_distilled_encoder.errors import InputError

Sample = tuple[Tensor, dict[str, Tensor]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the protocol's options."""
    parser.add_argument("--train-split", default="train2017", help="images it is trained on (%(default)s)")
    parser.add_argument("--test-split", default="val2017", help="images it is tested on (%(default)s)")
    add_preset_arguments(parser, "detection", "mask-rcnn-coco-12ep")


def evaluate(model: Model, args: argparse.Namespace) -> dict[str, object]:
    """Fine-tune on one split and score on the other."""
    settings = read_settings(DetectionSettings, "detection", args.preset, args.set)
    backbone = trainable_backbone(model)
    splits = [CocoSplit(args.data, name) for name in (args.train_split, args.test_split)]
    check_splits(*splits)
    torch.manual_seed(args.seed)
    pyramid = VitPyramid(backbone, settings.drop_path, settings.normed)
    network = build_detector(pyramid, len(splits[0].categories), model.config, settings).to(model.device)
    history = train_once(
        network,
        args.cache,
        {**model.identity, "detection": asdict(settings), "categories": splits[0].names, "seed": args.seed},
        splits[0].files(),
        lambda: train_network(network, splits[0], settings, seed=args.seed, workers=args.workers),
    )
    boxes, masks = score(network, splits[1])
    return {
        "figures": {"box_ap": boxes["ap"], "mask_ap": masks["ap"], "box": boxes, "mask": masks, "loss": ends(history)},
        "setting": asdict(settings),
        "data": describe(args, *splits),
    }


def check_splits(train: CocoSplit, test: CocoSplit) -> None:
    """Check what training, and the figures after it, need.

    Raises:
        InputError: the parts have different categories, or no object in one of them.
    """
    if train.names != test.names:
        raise InputError(f"{train.annotations} and {test.annotations} have different categories; mend them")
    for split in (train, test):
        if not split.with_objects():
            raise InputError(f"no image of {split.folder} has an object that is not a crowd; choose another split")


def describe(args: argparse.Namespace, train: CocoSplit, test: CocoSplit) -> dict[str, str]:
    """Return what a result says of the data."""
    parts = (("train", train), ("test", test))
    told = {name: f"{args.data.name}/{split.folder.name}, {len(split.images)} images" for name, split in parts}
    return told | {f"{name}_filled": split.filled for name, split in parts if split.filled}


def train_network(
    network: MaskRCNN, split: CocoSplit, settings: DetectionSettings, *, seed: int, workers: int
) -> list[float]:
    """Train on a split that has objects and return the loss of each step."""
    images = split.with_objects()
    device = next(network.parameters()).device
    groups = parameter_groups(
        network,
        network.backbone.pyramid.backbone,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        layer_decay=settings.layer_decay,
    )
    epoch = len(images) / settings.batch_size
    steps = settings.iterations or max(1, round(settings.epochs * epoch))

    def losses(samples: list[Sample]) -> dict[str, Tensor]:
        pixels = [image.to(device) for image, _ in samples]
        targets = [{name: value.to(device) for name, value in target.items()} for _, target in samples]
        return network(pixels, targets)

    def rate(step: int) -> float:
        return warm_up(step, settings.warmup, 1e-3) * 0.1 ** sum(step >= at * epoch for at in settings.decay_at)

    return train(
        losses,
        Stream(len(images), steps * settings.batch_size, partial(_load, split, images, settings), seed),
        torch.optim.AdamW(groups, betas=(0.9, 0.999)),
        rate,
        batch_size=settings.batch_size,
        accumulate=settings.accumulate,
        workers=workers,
        description=settings.heads,
    )


def _load(split: CocoSplit, images: list[int], settings: DetectionSettings, number: int) -> Sample:
    return split.augmented(settings, images[number])


@torch.no_grad()
def score(network: MaskRCNN, split: CocoSplit) -> tuple[dict[str, float], dict[str, float]]:
    """Return the figures of boxes and of masks on all images of a split."""
    network.eval()
    device = next(network.parameters()).device
    boxes, masks = [], []
    for image in tqdm(split.images, desc="score", unit="image", dynamic_ncols=True):
        pixels = split.read(image).to(device).float() / 255
        found = coco_results(split, image, network([pixels])[0])
        boxes += found[0]
        masks += found[1]
    return average_precision(split, boxes, "bbox"), average_precision(split, masks, "segm")
