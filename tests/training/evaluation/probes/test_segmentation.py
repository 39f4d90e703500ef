import numpy as np
import pytest
import torch
from PIL import Image

from training.evaluation.data.labels import VOID
from training.evaluation.data.segmentation import LAYOUTS
from training.evaluation.probes import segmentation as probe

CLASSES = 11


def test_the_loss_equals_pixelwise_cross_entropy():
    torch.manual_seed(0)
    labels = torch.randint(0, CLASSES + 1, (2, 32, 48))
    labels[labels == CLASSES] = VOID
    logits = torch.randn(2, CLASSES, 2, 3)
    shares = torch.stack([probe.class_shares(image.to(torch.uint8), (2, 3), CLASSES) for image in labels])
    ours = -(shares * logits.log_softmax(1).movedim(1, -1)).sum() / shares.sum()
    upsampled = torch.nn.functional.interpolate(logits, (32, 48), mode="nearest")
    theirs = torch.nn.functional.cross_entropy(upsampled, labels, ignore_index=VOID)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_future_labels_share_the_features_of_the_present(tmp_path):
    """Frames of one grey level whose labels are one number each: features of frame n, label of frame n + 1."""
    for number in range(4):
        for folder, value in (("train", 40 * number), ("trainannot", number)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(np.full((32, 32), value, np.uint8)).save(tmp_path / folder / f"a_{number}.png")
    pairs = LAYOUTS["camvid"].find(tmp_path, "train")
    features = torch.arange(4.0).view(4, 1, 1, 1)
    ahead = probe.look_ahead(probe.Split(features, pairs, LAYOUTS["camvid"]), 1 / 30)
    assert ahead.features.flatten().tolist() == [0, 1, 2]
    assert [int(ahead.labels(number)[0, 0]) for number in range(3)] == [1, 2, 3]


def test_the_layer_is_trained_on_the_device(coloured_set, tmp_path):
    pairs = LAYOUTS["camvid"].pairs(coloured_set(tmp_path / "data", train=3, test=1), "train")
    split = probe.Split(torch.randn(3, 4, 6, 8).half(), pairs, LAYOUTS["camvid"])
    with pytest.MonkeyPatch.context() as patch:
        devices = set()
        forward = probe.StandardizedLinear.forward
        patch.setattr(
            probe.StandardizedLinear, "forward", lambda self, t: devices.add(t.device.type) or forward(self, t)
        )
        layer = probe.train_layer(split, steps=2, seed=0, device="meta")
    assert devices == {"meta"}
    assert {tensor.device.type for tensor in layer.state_dict().values()} == {"meta"}
