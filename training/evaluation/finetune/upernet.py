"""UPerNet (Xiao et al. 2018) on a vision transformer's pyramid, with an auxiliary FCN head, as iBOT configures it.

Norms are BatchNorm (the source has SyncBN on 8 GPUs of 2 images each; here all images of a batch, or of a part of it
with `accumulate`, are on one device). Layers and names of losses are mmsegmentation's; all resizing is bilinear.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.evaluation.data.segmentation import VOID
from training.evaluation.finetune.backbone import MULTIPLE, VitPyramid

POOL_SCALES = (1, 2, 3, 6)
AUXILIARY_LEVEL = 2
"""Block 7 of 12, stride 16."""


def conv_norm_relu(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Convolution that keeps the size, BatchNorm, ReLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def resize(maps: Tensor, size: tuple[int, ...] | torch.Size) -> Tensor:
    """(B, C, h, w) -> (B, C, *size), bilinear."""
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


class Classifier(nn.Sequential):
    """Dropout of .1 and a 1x1 convolution."""

    def __init__(self, inputs: int, classes: int) -> None:
        convolution = nn.Conv2d(inputs, classes, 1)
        nn.init.normal_(convolution.weight, std=0.01)
        assert convolution.bias is not None
        nn.init.zeros_(convolution.bias)
        super().__init__(nn.Dropout2d(0.1), convolution)


class PyramidPooling(nn.Module):
    """Pyramid pooling module of the coarsest level (Zhao et al. 2017)."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), conv_norm_relu(inputs, channels, 1)) for scale in POOL_SCALES
        )
        self.bottleneck = conv_norm_relu(inputs + len(POOL_SCALES) * channels, channels, 3)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, channels, h, w)."""
        pooled = [resize(pool(maps), maps.shape[-2:]) for pool in self.pools]
        return self.bottleneck(torch.cat([maps, *pooled], dim=1))


class UPerHead(nn.Module):
    """Pyramid pooling, top-down pyramid, fusion at the finest level.

    Args:
        inputs: channels of each of the four levels.
        channels: of the head.
        classes: outputs.
    """

    def __init__(self, inputs: int, channels: int, classes: int) -> None:
        super().__init__()
        self.pooling = PyramidPooling(inputs, channels)
        self.laterals = nn.ModuleList(conv_norm_relu(inputs, channels, 1) for _ in range(3))
        self.smooth = nn.ModuleList(conv_norm_relu(channels, channels, 3) for _ in range(3))
        self.fuse = conv_norm_relu(4 * channels, channels, 3)
        self.classify = Classifier(channels, classes)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Four maps (B, inputs, h_i, w_i), finest first -> (B, classes, h_0, w_0) logits."""
        maps = [lateral(level) for lateral, level in zip(self.laterals, levels[:3], strict=True)]
        maps.append(self.pooling(levels[3]))
        for number in (2, 1, 0):
            maps[number] = maps[number] + resize(maps[number + 1], maps[number].shape[-2:])
        maps[:3] = [smooth(level) for smooth, level in zip(self.smooth, maps[:3], strict=True)]
        return self.classify(self.fuse(torch.cat([resize(level, maps[0].shape[-2:]) for level in maps], dim=1)))


class FCNHead(nn.Sequential):
    """One 3x3 convolution and the classifier."""

    def __init__(self, inputs: int, channels: int, classes: int) -> None:
        super().__init__(conv_norm_relu(inputs, channels, 3), Classifier(channels, classes))


class UperNet(nn.Module):
    """Pyramid, head and auxiliary head.

    Args:
        pyramid: the backbone.
        classes: outputs.
        channels: of the head.
        auxiliary_channels: of the auxiliary head.
    """

    def __init__(self, pyramid: VitPyramid, classes: int, channels: int = 384, auxiliary_channels: int = 256) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.classes = classes
        self.head = UPerHead(pyramid.width, channels, classes)
        self.auxiliary = FCNHead(pyramid.width, auxiliary_channels, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) normalised pixels -> (B, classes, H, W) logits."""
        return self._upsample(self.head(self.pyramid(pixels)), pixels)

    def losses(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the two cross-entropies, weighted 1 and .4, of (B, 3, H, W) pixels and (B, H, W) labels.

        Void counts nothing, but is in the mean's divisor (mmsegmentation).
        """
        levels = self.pyramid(pixels)
        main = self._upsample(self.head(levels), pixels)
        auxiliary = self._upsample(self.auxiliary(levels[AUXILIARY_LEVEL]), pixels)
        return {"loss": pixel_loss(main, labels), "loss_auxiliary": 0.4 * pixel_loss(auxiliary, labels)}

    def _upsample(self, logits: Tensor, pixels: Tensor) -> Tensor:
        """Bring logits of the padded image to its pixels."""
        height, width = pixels.shape[-2:]
        padded = (height + -height % MULTIPLE, width + -width % MULTIPLE)
        return resize(logits.float(), padded)[..., :height, :width]


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of (B, K, H, W) logits and (B, H, W) labels: sum over labelled pixels / all pixels."""
    total = F.cross_entropy(logits, labels.long(), ignore_index=VOID, reduction="sum")
    return total / labels.numel()
