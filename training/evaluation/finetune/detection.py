"""Mask R-CNN and Cascade Mask R-CNN on a vision transformer's pyramid, and the COCO data they are trained on."""

from __future__ import annotations

import contextlib
import io
import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.transforms import v2

from training.evaluation.data.coco import read_instances
from training.evaluation.finetune.backbone import MULTIPLE, VitPyramid
from training.evaluation.finetune.cascade import CascadeRoIHeads
from training.evaluation.finetune.training import autocast
from video_distilled_encoder.errors import InputError, import_extra, warn
from video_distilled_encoder.image_files import open_image
from video_distilled_encoder.model_config import ModelConfig

CHANNELS = 256
HEAD_WIDTH = 1024
LAYOUT = "annotations/instances_SPLIT.json and SPLIT/*.jpg"
FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


@dataclass(frozen=True)
class DetectionSettings:
    """Settings of the protocol (defaults: iBOT's for COCO, with 12 epochs)."""

    heads: Literal["mask-rcnn", "cascade"] = "mask-rcnn"
    """What stands on the pyramid."""
    box_head: Literal["2fc", "4conv1fc"] = "2fc"
    """Two linear layers, or four convolutions with BatchNorm and one linear layer."""
    box_loss: Literal["smooth-l1", "giou"] = "smooth-l1"
    """Of the cascade's boxes; Mask R-CNN knows smooth-l1 only."""
    epochs: float = 12.0
    """Passes over the training images that have objects."""
    iterations: int | None = None
    """Length in steps, in place of `epochs`."""
    decay_at: tuple[float, ...] = (8.0, 11.0)
    """Epochs after which the learning rate is divided by ten."""
    batch_size: int = 16
    """Images in a step."""
    accumulate: int = 1
    """Parts that a batch is computed in, to save memory."""
    short_sides: tuple[int, ...] = tuple(range(480, 801, 32))
    """Shorter side of a training image in pixels, one of these at random; of a test image, the last."""
    longest: int = 1333
    """Longer side at most."""
    crop: int | None = None
    """Side of a random crop of the training images, if any."""
    learning_rate: float = 1e-4
    """Of the heads; see layer_decay."""
    weight_decay: float = 0.05
    """AdamW's, of matrices and kernels."""
    layer_decay: float = 0.8
    """Factor on the learning rate from a block to the one before it."""
    warmup: int = 500
    """Steps of linear warm-up, from a thousandth."""
    drop_path: float = 0.1
    """Stochastic depth of the last block."""
    normed: bool = True
    """Pass the tokens of each of the four blocks through the final norm."""
    sampled_boxes: int = 512
    """Boxes of an image that a box head is trained on."""
    proposals: tuple[int, int] = (2000, 1000)
    """Boxes of an image that go to the heads, in training and at the test."""
    amp: bool = True
    """bfloat16 matrix products on CUDA, in the backbone."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "longest", "sampled_boxes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.short_sides:
            raise InputError("short_sides must name at least one size in pixels")
        if self.epochs <= 0 or (self.iterations is not None and self.iterations < 1):
            raise InputError("epochs must be positive and iterations at least 1")
        if self.batch_size % self.accumulate:
            raise InputError(f"batch_size {self.batch_size} must be a multiple of accumulate {self.accumulate}")
        if self.heads == "mask-rcnn" and self.box_loss != "smooth-l1":
            raise InputError(f"box_loss {self.box_loss} is of heads=cascade only; leave it at smooth-l1")


class DetectionBackbone(nn.Module):
    """The vision transformer's pyramid with an FPN of 256 channels, as torchvision's detectors take it.

    Args:
        pyramid: of the vision transformer.
        amp: compute its matrix products in bfloat16 on CUDA; the heads stay in float32.
    """

    out_channels = CHANNELS

    def __init__(self, pyramid: VitPyramid, amp: bool = False) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.amp = amp
        self.fpn = FeaturePyramidNetwork([pyramid.width] * 4, CHANNELS, extra_blocks=LastLevelMaxPool())

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> maps "0" to "3" and "pool" of 256 channels and strides 4, 8, 16, 32 and 64."""
        with autocast(pixels.device, self.amp):
            levels = self.pyramid(pixels)
        return self.fpn(OrderedDict((str(number), level.float()) for number, level in enumerate(levels)))


def build_detector(pyramid: VitPyramid, categories: int, config: ModelConfig, settings: DetectionSettings) -> MaskRCNN:
    """Return the detector: images as (3, H, W) in [0, 1]; training images are taken at the size they have.

    Args:
        pyramid: of the vision transformer.
        categories: without the background.
        config: mean and deviation.
        settings: heads and sizes.
    """
    classes = categories + 1
    cascade = settings.heads == "cascade"
    network = MaskRCNN(
        DetectionBackbone(pyramid, settings.amp),
        min_size=settings.short_sides[-1],
        max_size=settings.longest,
        image_mean=list(config.mean),
        image_std=list(config.std),
        rpn_post_nms_top_n_train=settings.proposals[0],
        rpn_post_nms_top_n_test=settings.proposals[1],
        rpn_pre_nms_top_n_test=settings.proposals[1],
        rpn_pre_nms_top_n_train=settings.proposals[0],
        box_head=nn.Identity() if cascade else box_head(settings.box_head),
        box_predictor=nn.Identity() if cascade else FastRCNNPredictor(HEAD_WIDTH, classes),
        box_batch_size_per_image=settings.sampled_boxes,
        mask_predictor=MaskRCNNPredictor(CHANNELS, CHANNELS, classes),
        size_divisible=MULTIPLE,
        _skip_resize=True,
    )
    if cascade:
        plain = network.roi_heads
        assert isinstance(plain.box_roi_pool, MultiScaleRoIAlign)
        network.roi_heads = CascadeRoIHeads(
            box_roi_pool=plain.box_roi_pool,
            box_head=lambda: box_head(settings.box_head),
            head_width=HEAD_WIDTH,
            classes=classes,
            mask_roi_pool=plain.mask_roi_pool,
            mask_head=plain.mask_head,
            mask_predictor=plain.mask_predictor,
            box_loss=settings.box_loss,
            sampled_boxes=settings.sampled_boxes,
        )
    return network


def box_head(kind: str) -> nn.Module:
    """Return a box head, (R, 256, 7, 7) -> (R, 1024)."""
    if kind == "2fc":
        return TwoMLPHead(CHANNELS * 7 * 7, HEAD_WIDTH)
    return FastRCNNConvFCHead((CHANNELS, 7, 7), [CHANNELS] * 4, [HEAD_WIDTH], norm_layer=nn.BatchNorm2d)


class CocoSplit:
    """One part of a data set in COCO's layout.

    Args:
        root: the folder that holds annotations/instances_SPLIT.json and SPLIT/*.jpg.
        split: train2017, val2017 or another.

    Raises:
        InputError: files are missing or annotations cannot be used, see `training/evaluation/data/coco.py`.
        MissingExtra: pycocotools is not installed.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.folder = root / split
        annotations = root / "annotations" / f"instances_{split}.json"
        for path in (annotations, self.folder):
            if not path.exists():
                raise InputError(f"{path} does not exist; expected {LAYOUT.replace('SPLIT', split)} in {root}")
        content, self.filled = read_instances(annotations, self.folder)
        if self.filled:
            warn(f"{annotations} leaves something out, which is filled in: {self.filled} annotations")
        self.annotations = annotations
        self.coco = _index(content)
        self.categories = sorted(self.coco.getCatIds())
        self.images = sorted(self.coco.getImgIds())

    @property
    def names(self) -> dict[int, str | None]:
        """Names of the categories by their ids."""
        return {number: self.coco.cats[number].get("name") for number in self.categories}

    def with_objects(self) -> list[int]:
        """Return the ids of the images that have an object that is not a crowd."""
        return [image for image in self.images if self.objects(image)]

    def objects(self, image: int) -> list[dict[str, Any]]:
        """Return an image's annotations, but for crowds and boxes of less than a pixel."""
        found = self.coco.loadAnns(self.coco.getAnnIds(imgIds=[image], iscrowd=False))
        return [one for one in found if min(one["bbox"][2:]) >= 1]

    def files(self) -> list[Path]:
        """Return the annotations' file and those of the images that have an object."""
        return [self.annotations, *(self.folder / self.coco.imgs[image]["file_name"] for image in self.with_objects())]

    def read(self, image: int) -> Tensor:
        """Return (3, H, W) uint8.

        Raises:
            InputError: the file is missing, or not of the size that the annotations tell.
        """
        entry = self.coco.imgs[image]
        path = self.folder / entry["file_name"]
        pixels = v2.functional.pil_to_tensor(open_image(path))
        if tuple(pixels.shape[1:]) != (entry["height"], entry["width"]):
            size = " x ".join(map(str, pixels.shape[1:]))
            raise InputError(f"{path} is {size}, not {entry['height']} x {entry['width']} as its annotations say")
        return pixels

    def target(self, image: int) -> dict[str, Tensor]:
        """Return boxes (n, 4) as x1 y1 x2 y2, labels (n,) from 1, masks (n, H, W)."""
        entry, objects = self.coco.imgs[image], self.objects(image)
        size = (entry["height"], entry["width"])
        boxes = torch.tensor([one["bbox"] for one in objects]).view(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = [torch.from_numpy(self.coco.annToMask(one)) for one in objects]
        limits = torch.tensor([size[1], size[0]] * 2)
        return {
            "boxes": tv_tensors.BoundingBoxes(
                boxes.float().clamp(min=0).minimum(limits), format="XYXY", canvas_size=size
            ),
            "labels": torch.tensor([self.categories.index(one["category_id"]) + 1 for one in objects]).long(),
            "masks": tv_tensors.Mask(torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.uint8)),
        }

    def augmented(self, settings: DetectionSettings, image: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return an image in [0, 1] and its target, resized, flipped and cropped at random.

        Objects of which less than a pixel is left go.
        """
        steps: list[nn.Module] = [
            v2.RandomShortestSize(list(settings.short_sides), settings.longest, antialias=True),
            v2.RandomHorizontalFlip(),
        ]
        if settings.crop:
            steps.append(v2.RandomCrop(settings.crop, pad_if_needed=True))
        transform = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True)])
        pixels, target = transform(tv_tensors.Image(self.read(image)), self.target(image))
        boxes = target["boxes"].as_subclass(Tensor)
        masks = target["masks"].as_subclass(Tensor).to(torch.uint8)
        kept = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1) & masks.flatten(1).bool().any(1)
        return pixels.as_subclass(Tensor), {
            "boxes": boxes[kept],
            "labels": target["labels"][kept],
            "masks": masks[kept],
        }


def _index(content: dict[str, Any]) -> Any:
    """Return pycocotools' index of annotations."""
    coco = import_extra("pycocotools.coco", "evaluation").COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def coco_results(
    split: CocoSplit, image: int, detections: dict[str, Tensor]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return one image's detections in COCO's result format, boxes and masks.

    Args:
        split: the images' part.
        image: the image's id.
        detections: boxes (n, 4), labels (n,), scores (n,), masks (n, 1, H, W) in [0, 1], as torchvision gives them.
    """
    from pycocotools import mask as rle

    boxes, masks = [], []
    found = {name: value.cpu() for name, value in detections.items()}
    for box, label, score, mask in zip(*(found[name] for name in ("boxes", "labels", "scores", "masks")), strict=True):
        common = {"image_id": image, "category_id": split.categories[int(label) - 1], "score": float(score)}
        left, top, right, bottom = box.tolist()
        code = rle.encode(np.asfortranarray((mask[0] > 0.5).numpy().astype(np.uint8)))
        boxes.append({**common, "bbox": [left, top, right - left, bottom - top]})
        masks.append({**common, "segmentation": {**code, "counts": code["counts"].decode()}})
    return boxes, masks


def average_precision(
    split: CocoSplit, results: list[dict[str, Any]], kind: Literal["bbox", "segm"]
) -> dict[str, float]:
    """Return pycocotools' AP of all images of a split, in percent; figures of sizes that do not occur are left out.

    Args:
        split: the truth.
        results: in COCO's result format.
        kind: of boxes or of masks.
    """
    from pycocotools.cocoeval import COCOeval

    if not results:
        return dict.fromkeys(FIGURES[:3], 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(split.coco, split.coco.loadRes(json.loads(json.dumps(results))), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {
        name: round(100 * float(value), 2) for name, value in zip(FIGURES, evaluation.stats, strict=False) if value >= 0
    }
