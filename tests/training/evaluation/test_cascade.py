import pytest
import torch
from torch import nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign, box_iou

from training.evaluation.finetune.cascade import BOX_WEIGHTS, CascadeRoIHeads, refine

SHAPES = [(64, 64), (48, 64)]


pytestmark = pytest.mark.usefixtures("one_thread")


def heads(**changes):
    torch.manual_seed(0)
    return CascadeRoIHeads(
        box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2),
        box_head=lambda: TwoMLPHead(8 * 49, 16),
        head_width=16,
        classes=4,
        mask_roi_pool=MultiScaleRoIAlign(["0"], 14, 2),
        mask_head=MaskRCNNHeads(8, [8], 1),
        mask_predictor=MaskRCNNPredictor(8, 8, 4),
        **changes,
    )


def scene():
    torch.manual_seed(1)
    features = {"0": torch.randn(2, 8, 16, 16)}
    truth = [torch.tensor([[8.0, 8, 28, 40], [30, 30, 60, 60]]), torch.tensor([[4.0, 4, 40, 44]])]
    proposals = [
        torch.cat([boxes + torch.randn(20, 1, 4) * 3 for boxes in part.split(1)], 1).flatten(0, 1) for part in truth
    ]
    targets = []
    for boxes in truth:
        masks = torch.zeros(len(boxes), 64, 64, dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
        targets.append({"boxes": boxes, "labels": torch.arange(len(boxes)) + 1, "masks": masks})
    return features, proposals, targets


@pytest.mark.parametrize("box_loss", ["smooth-l1", "giou"])
def test_losses_are_finite_and_reach_every_parameter(box_loss):
    network = heads(box_loss=box_loss).train()
    features, proposals, targets = scene()
    features["0"].requires_grad_()
    found, losses = network(features, proposals, SHAPES, targets)
    assert found == []
    names = {f"loss_{kind}_{stage}" for kind in ("classifier", "box") for stage in range(3)}
    assert losses.keys() == names | {"loss_mask"}
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert features["0"].grad is not None


def test_each_stage_has_its_own_threshold():
    network = heads(sampled_boxes=10_000).train()
    network.fg_bg_sampler.positive_fraction = 1.0
    truth = torch.tensor([[0.0, 0, 40, 40]])
    overlaps = torch.tensor([0.45, 0.55, 0.65, 0.75])
    proposals = torch.cat([torch.tensor([[0.0, 0, 40, 40 * share]]) for share in overlaps])
    assert torch.allclose(box_iou(truth, proposals)[0], overlaps)
    target = {"boxes": truth, "labels": torch.tensor([2]), "masks": torch.zeros(1, 64, 64, dtype=torch.uint8)}
    for number, threshold in enumerate((0.5, 0.6, 0.7)):
        boxes, _, labels, goals = network.sample(number, [proposals], [target])
        assert len(boxes[0]) == 5  # the true box is one of them
        assert torch.equal(labels[0] == 2, box_iou(truth, boxes[0])[0] >= threshold)
        heights = boxes[0][:, 3] - boxes[0][:, 1]
        expected = BOX_WEIGHTS[number][1] * (20 - heights / 2) / heights
        assert torch.allclose(goals[0][:, 1], expected, atol=1e-4)
        assert torch.allclose(
            network.stages[number].coder.decode_single(goals[0], boxes[0]), truth.expand(5, 4), atol=1e-3
        )


def test_a_stage_is_trained_on_what_the_one_before_refined(monkeypatch):
    network = heads().train()
    features, proposals, targets = scene()
    with torch.no_grad():
        for stage in network.stages:
            stage.regress.weight.zero_()
            stage.regress.bias.copy_(torch.tensor([1.0, 0, 0, 0]))  # to the right by a share of the width
    seen = []
    sample = network.sample

    def watched(number, proposals, targets):
        seen.append(proposals)
        drawn = sample(number, proposals, targets)
        seen.append(drawn[0])
        return drawn

    monkeypatch.setattr(network, "sample", watched)
    network(features, proposals, SHAPES, targets)
    drawn, refined = seen[1][0], seen[2][0]
    width = drawn[:, 2] - drawn[:, 0]
    assert torch.allclose(refined[:, 0], (drawn[:, 0] + width / 10).clamp(0, 64), atol=1e-4)
    width = seen[3][0][:, 2] - seen[3][0][:, 0]
    assert torch.allclose(seen[4][0][:, 0], (seen[3][0][:, 0] + width / 20).clamp(0, 64), atol=1e-4)


class Fixed(nn.Module):
    """Answers what it is told."""

    def __init__(self, logits, deltas, coder):
        super().__init__()
        self.logits, self.deltas, self.coder = logits, deltas, coder

    def forward(self, pooled):
        return self.logits.expand(len(pooled), -1), self.deltas.expand(len(pooled), -1)


def test_probabilities_are_averaged_and_boxes_are_the_last_stages():
    network = heads(score_threshold=0.01).eval()
    logits = [torch.tensor(values) for values in ([0.0, 2, 0, 0], [0.0, 0, 3, 0], [1.0, 1, 0, 0])]
    deltas = torch.tensor([0.0, 1.0, 0.0, 0.0])
    network.stages = nn.ModuleList(
        Fixed(logit, deltas, s.coder) for logit, s in zip(logits, network.stages, strict=True)
    )
    boxes = [torch.tensor([[10.0, 10, 30, 30]]), torch.zeros(0, 4)]
    features, _, _ = scene()
    found, losses = network(features, boxes, SHAPES)
    assert losses == {}
    wanted = torch.stack([logit.softmax(0) for logit in logits]).mean(0)[1:]
    order = wanted.argsort(descending=True)
    assert torch.equal(found[0]["labels"], order + 1)
    assert torch.allclose(found[0]["scores"], wanted[order], atol=1e-6)
    down = 20 / 10 + 20 / 20 + 20 / 30
    expected = torch.tensor([10, 10 + down, 30, 30 + down]).expand(3, 4)
    assert torch.allclose(found[0]["boxes"], expected, atol=1e-4)
    assert found[0]["masks"].shape == (3, 1, 28, 28)
    assert len(found[1]["boxes"]) == 0


def test_refined_boxes_stay_in_the_image_and_empty_ones_go():
    network = heads()
    coder = network.stages[0].coder
    boxes = [torch.tensor([[40.0, 10, 60, 30], [10, 10, 30, 30]])]
    deltas = torch.tensor([[100.0, 0, 0, 0], [-10.0, 0, 0, 0]])
    kept = refine(coder, deltas, boxes, [(64, 64)])
    assert torch.allclose(kept[0], torch.tensor([[0.0, 10, 10, 30]]), atol=1e-4)
    assert len(refine(coder, deltas, boxes, [(64, 64)], drop=False)[0]) == 2
