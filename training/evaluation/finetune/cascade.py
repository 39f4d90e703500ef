"""Cascade R-CNN (Cai and Vasconcelos 2018) out of torchvision's parts.

Three stages of box heads, each trained on the boxes that the one before it refined, with IoU .5, .6 and .7 as threshold
and box deltas on an ever finer scale. Deltas are the same for all classes (the paper's; iBOT's are by class). At
inference, class probabilities are the mean of the three stages', each on its own boxes; boxes are the last stage's. The
mask head belongs to the last stage (mmdetection has one in each). Losses of the stages weigh 1, .5 and .25.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference, maskrcnn_loss
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image, generalized_box_iou_loss, remove_small_boxes

IOU_THRESHOLDS = (0.5, 0.6, 0.7)
BOX_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
LOSS_WEIGHTS = (1.0, 0.5, 0.25)


class BoxStage(nn.Module):
    """One stage: box head, class logits, and one set of deltas.

    Args:
        head: (R, C, 7, 7) -> (R, width).
        width: of its output.
        classes: with the background, which is 0.
        iou: a box is a class's from this overlap on.
        weights: of the deltas x, y, w, h.
    """

    def __init__(self, head: nn.Module, width: int, classes: int, iou: float, weights: tuple[float, ...]) -> None:
        super().__init__()
        self.head = head
        self.classify = nn.Linear(width, classes)
        self.regress = nn.Linear(width, 4)
        self.matcher = Matcher(iou, iou, allow_low_quality_matches=False)
        self.coder = BoxCoder(weights)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """(R, C, 7, 7) -> class logits (R, classes) and deltas (R, 4)."""
        found = self.head(pooled)
        return self.classify(found), self.regress(found)


class CascadeRoIHeads(RoIHeads):
    """Three box stages and a mask head in place of torchvision's one.

    Args:
        box_roi_pool: pooling for the box heads.
        box_head: makes a box head.
        head_width: of a box head's output.
        classes: with the background.
        mask_roi_pool: pooling for the mask head.
        mask_head: (R, C, 14, 14) -> features.
        mask_predictor: features -> (R, classes, 28, 28).
        box_loss: "smooth-l1" of the deltas, or "giou" of the boxes, times 10.
        sampled_boxes: boxes of an image that a stage is trained on; at most a quarter are objects.
        score_threshold: least probability of a detection.
        nms_threshold: IoU from which of two boxes of a class the less probable goes.
        detections: most of an image.
    """

    stages: nn.ModuleList

    def __init__(
        self,
        *,
        box_roi_pool: MultiScaleRoIAlign,
        box_head: Callable[[], nn.Module],
        head_width: int,
        classes: int,
        mask_roi_pool: MultiScaleRoIAlign,
        mask_head: nn.Module,
        mask_predictor: nn.Module,
        box_loss: Literal["smooth-l1", "giou"] = "smooth-l1",
        sampled_boxes: int = 512,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections: int = 100,
    ) -> None:
        super().__init__(
            box_roi_pool=box_roi_pool,
            box_head=None,
            box_predictor=None,
            fg_iou_thresh=IOU_THRESHOLDS[0],
            bg_iou_thresh=IOU_THRESHOLDS[0],
            batch_size_per_image=sampled_boxes,
            positive_fraction=0.25,
            bbox_reg_weights=BOX_WEIGHTS[0],
            score_thresh=score_threshold,
            nms_thresh=nms_threshold,
            detections_per_img=detections,
            mask_roi_pool=mask_roi_pool,
            mask_head=mask_head,
            mask_predictor=mask_predictor,
        )
        self.stages = nn.ModuleList(
            BoxStage(box_head(), head_width, classes, iou, weights)
            for iou, weights in zip(IOU_THRESHOLDS, BOX_WEIGHTS, strict=True)
        )
        self.classes = classes
        self.box_loss = box_loss

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """As torchvision's: detections of each image in eval mode, losses in training.

        Args:
            features: the pyramid's maps by name.
            proposals: (P, 4) boxes of each image.
            image_shapes: (height, width) of each image.
            targets: boxes, labels and masks of each image, in training.
        """
        if self.training:
            assert targets is not None
            return [], self._losses(features, proposals, image_shapes, targets)
        return self._detect(features, proposals, image_shapes), {}

    def _losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for number, stage in enumerate(self.stages):
            samples, matched, labels, goals = self.sample(number, proposals, targets)
            logits, deltas = stage(self.box_roi_pool(features, samples, shapes))
            weight = LOSS_WEIGHTS[number]
            classes = torch.cat(labels)
            losses[f"loss_classifier_{number}"] = weight * F.cross_entropy(logits, classes)
            losses[f"loss_box_{number}"] = weight * self._box_loss(
                stage.coder, deltas, torch.cat(goals), torch.cat(samples), classes > 0
            )
            proposals = refine(stage.coder, deltas, samples, shapes)
        losses["loss_mask"] = self._mask_loss(features, samples, matched, labels, shapes, targets)
        return losses

    def sample(
        self, number: int, proposals: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Match proposals and true boxes to objects by a stage's threshold, and draw some.

        Returns:
            Of each image: boxes (S, 4), their objects' numbers (S,), their classes (S,) and wanted deltas (S, 4).
        """
        self.proposal_matcher = self.stages[number].matcher
        self.box_coder = self.stages[number].coder
        return self.select_training_samples(proposals, targets)

    def _box_loss(self, coder: BoxCoder, deltas: Tensor, goals: Tensor, boxes: Tensor, positive: Tensor) -> Tensor:
        """Return the loss of the objects' boxes, over the number of all boxes."""
        if self.box_loss == "smooth-l1":
            total = F.smooth_l1_loss(deltas[positive], goals[positive], beta=1.0, reduction="sum")
        else:
            decoded = [coder.decode_single(part[positive], boxes[positive]) for part in (deltas, goals)]
            total = 10 * generalized_box_iou_loss(*decoded, reduction="sum")
        return total / max(len(boxes), 1)

    def _mask_loss(
        self,
        features: dict[str, Tensor],
        samples: list[Tensor],
        matched: list[Tensor],
        labels: list[Tensor],
        shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> Tensor:
        positive = [classes > 0 for classes in labels]
        boxes = [part[chosen] for part, chosen in zip(samples, positive, strict=True)]
        objects = [part[chosen] for part, chosen in zip(matched, positive, strict=True)]
        logits = self._masks(features, boxes, shapes)
        masks = [target["masks"] for target in targets]
        return maskrcnn_loss(logits, boxes, masks, [target["labels"] for target in targets], objects)

    def _masks(self, features: dict[str, Tensor], boxes: list[Tensor], shapes: list[tuple[int, int]]) -> Tensor:
        pool: Any = self.mask_roi_pool
        head: Any = self.mask_head
        predict: Any = self.mask_predictor
        return predict(head(pool(features, boxes, shapes)))

    def _detect(
        self, features: dict[str, Tensor], proposals: list[Tensor], shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        probabilities = []
        for stage in self.stages:
            boxes = proposals
            logits, deltas = stage(self.box_roi_pool(features, boxes, shapes))
            probabilities.append(logits.softmax(-1))
            proposals = refine(stage.coder, deltas, boxes, shapes, drop=False)
        self.box_coder = self.stages[-1].coder
        logarithms = torch.stack(probabilities).mean(0).log()  # softmax of these gives the mean back
        found = self.postprocess_detections(logarithms, deltas.repeat(1, self.classes), boxes, shapes)
        masks = maskrcnn_inference(self._masks(features, found[0], shapes), found[2])
        names = ("boxes", "scores", "labels", "masks")
        return [dict(zip(names, image, strict=True)) for image in zip(*found, masks, strict=True)]


def refine(
    coder: BoxCoder, deltas: Tensor, boxes: list[Tensor], shapes: list[tuple[int, int]], drop: bool = True
) -> list[Tensor]:
    """Move each image's boxes by their deltas, clip them to the image, and drop those that are then empty.

    Args:
        coder: the stage's.
        deltas: (sum of S, 4) of all images together.
        boxes: (S, 4) of each image.
        shapes: (height, width) of each image.
        drop: leave empty boxes out.
    """
    moved = coder.decode_single(deltas.detach(), torch.cat(boxes)).split([len(part) for part in boxes])
    clipped = [clip_boxes_to_image(part, shape) for part, shape in zip(moved, shapes, strict=True)]
    return [part[remove_small_boxes(part, min_size=1e-2)] for part in clipped] if drop else clipped
