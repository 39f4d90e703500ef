"""What an export is made from: the encoder, real images, and what is the same for every precision tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from video_distilled_encoder import Encoder
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.files import IMAGE_SUFFIXES, find_files
from video_distilled_encoder.image_files import open_image
from video_distilled_encoder.runtimes.artefact import Artefact, Camera
from video_distilled_encoder.runtimes.tensorrt import BuildOptions

PARITY_IMAGES = 8
CALIBRATION_IMAGES = 512


@dataclass(frozen=True)
class Job:
    """What an export is made from."""

    name: str
    """Of the model."""
    encoder: Encoder
    """In fp32, on the device the export is for."""
    weights_sha256: str
    images: list[Path]
    """Real photographs, for parity and calibration, none of which is used for both."""
    precisions: Mapping[str, torch.dtype]
    """Of the format asked for: what each is computed in."""
    scratch: Path
    """A folder for what several exports are cut from."""
    device: str = "cpu"
    layer_parity: bool = True
    """Compare every block too."""
    engine: BuildOptions = field(default_factory=BuildOptions)
    """How TensorRT builds."""
    progress: Callable[[str], None] = lambda line: None
    """Told what is being done."""

    def judging(self, precision: str) -> list[Path]:
        """Return the images that an export is compared with torch on: a quarter where others give it its ranges."""
        return self.images[1::4] if precision == "int8" else self.images

    def calibrating(self) -> list[Path]:
        """Return the images that give int8 its ranges: all that do not judge them.

        Raises:
            InputError: there is but one image.
        """
        if len(self.images) < 2:
            raise InputError(
                f"int8 takes its ranges from some images and is compared with torch on others, and {self.images[0]} is "
                "the only one; give a folder of some hundreds (--calibration)"
            )
        return [image for number, image in enumerate(self.images) if number % 4 != 1]

    def photographs(self, artefact: Artefact) -> list[Tensor]:
        """Return judging images, spread evenly over all, (3, H, W) uint8, of the camera's size if there is one."""
        return list(_open(self.judging(artefact.precision), artefact.camera, PARITY_IMAGES))

    def calibration_inputs(self, artefact: Artefact) -> Iterator[Tensor]:
        """Yield inputs of the export's smallest batch, of real images; the last is filled up with its last image."""
        images = _open(self.calibrating(), artefact.camera, CALIBRATION_IMAGES)
        least = artefact.batch[0]
        while batch := list(islice(images, least)):
            yield torch.cat([self._input(image, artefact) for image in batch + batch[-1:] * (least - len(batch))])

    def _input(self, image: Tensor, artefact: Artefact) -> Tensor:
        """Return an input of one image."""
        if artefact.camera is None:
            return self.encoder.preprocess(image, size=artefact.size or artefact.default_size)
        return (image.movedim(0, -1).contiguous() if artefact.camera.layout == "NHWC" else image)[None]


def _open(images: Sequence[Path], camera: Camera | None, limit: int) -> Iterator[Tensor]:
    """Yield at most so many images, spread evenly over all."""
    count = min(limit, len(images))
    for number in range(count):
        image = open_image(images[number * len(images) // count])
        if camera:
            image = image.resize((camera.width, camera.height))
        yield torch.from_numpy(np.array(image)).permute(2, 0, 1)


def find_images(folder: Path) -> list[Path]:
    """Return the images in a folder and the folders in it.

    Raises:
        InputError: there are none.
    """
    images = find_files(folder, IMAGE_SUFFIXES) if folder.is_dir() else []
    if not images:
        raise InputError(f"{folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}); give a folder of real ones")
    return images
