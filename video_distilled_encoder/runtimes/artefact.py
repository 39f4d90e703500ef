"""The facts of an exported encoder: the JSON beside it, written by `vde-export` and checked before anything is loaded.

An engine, a compiled package or a graph says little of what it is, and loading a damaged or foreign one may end the
process. So what is loaded must be what the JSON says, byte for byte, and made for such a machine.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from video_distilled_encoder.errors import InputError
from video_distilled_encoder.files import sha256, write_json
from video_distilled_encoder.model_config import CROP_MODES, PREPROCESSING, ModelConfig
from video_distilled_encoder.tokens import TokenLayout

PIXELS = "pixel_values"
FRAMES = "frames"
FEATURES = ("cls", "patches", "grid")
REGISTERS = "registers"
LAYER = "layer_"
"""Beginning of the name of a block's output; its number, counted from 0, follows."""
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "aoti": ".pt2", "tensorrt": ".engine"}
"""Of the files of each format."""
LAYOUTS = ("NHWC", "NCHW")
"""Of a camera's frames."""
_BEGINNINGS = {"onnx": b"\x08", "openvino": b"<", "aoti": b"PK", "tensorrt": b""}
"""First bytes of the files of each format: a protobuf's first field, XML, ZIP; NVIDIA does not say those of engines."""


SCHEMA = 1


@dataclass(frozen=True)
class Camera:
    """Input of raw frames: preprocessing is part of the export."""

    height: int
    width: int
    layout: str = "NHWC"
    """NHWC or NCHW; RGB, uint8."""
    crop_mode: str | None = None
    """center or squash, as of `Encoder.encode`; None, before the export is made: the model's own."""

    def shape(self, batch: int) -> tuple[int, ...]:
        """Return the shape of a batch of frames."""
        sides = (self.height, self.width)
        return (batch, *sides, 3) if self.layout == "NHWC" else (batch, 3, *sides)


@dataclass(frozen=True)
class Artefact:
    """What an export is."""

    format: str
    """onnx, openvino, aoti or tensorrt."""
    precision: str
    """fp32, fp16, bf16 or int8: of the network inside; inputs and outputs are float32 (or uint8 frames)."""
    size: tuple[int, int] | None
    """(height, width) of the network's input in pixels; None: any multiples of the patch size."""
    default_size: tuple[int, int]
    """Of `encode`, where the size is free."""
    batch: tuple[int, int, int]
    """Smallest, usual and largest batch."""
    camera: Camera | None
    """None: the input is normalised pixels."""
    outputs: tuple[str, ...]
    """Of cls (B, C), patches (B, N, C), grid (B, C, h, w), registers (B, R, C), layer_I (B, P + N, C): all tokens after
    block I; all after the final norm."""
    embed_dim: int
    patch_size: int
    mean: tuple[float, float, float]
    """Of the RGB channels, in [0, 1]."""
    std: tuple[float, float, float]
    """Of the RGB channels."""
    interpolation: str
    """bicubic or bilinear."""
    crop_pct: float
    """Share of the resized image's shorter side that a centre crop keeps."""
    crop_mode: str = "center"
    """Of `encode` where nothing else is asked for: center or squash."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Names and SHA-256 of the files of the export."""
    made_for: Mapping[str, str] = field(default_factory=dict)
    """What the machine must be like; see `machine`."""
    prefix: int = 1
    """P, tokens before those of the patches."""
    has_cls: bool = True
    """Whether the first of them is a class token."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """For the reader: source model, parity, latency, versions."""
    schema: int = SCHEMA
    """Of these facts: one that is higher than this package's was written by a later one."""

    def __post_init__(self) -> None:
        camera = (self.camera.height, self.camera.width) if self.camera else ()
        if min(*self.default_size, *(self.size or ()), *camera, self.embed_dim, self.patch_size) < 1:
            raise InputError("sizes are whole numbers of 1 or more")
        if not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2]:
            raise InputError(
                "a batch range is smallest:usual:largest, in this order and from 1; got {}:{}:{}".format(*self.batch)
            )
        if self.prefix < self.has_cls:
            raise InputError(f"its tokens before the patches are {self.prefix}")
        known = rf"{'|'.join(FEATURES)}|{REGISTERS}|{LAYER}\d+"
        if not self.outputs or not all(re.fullmatch(known, name) for name in self.outputs):
            features = ", ".join((*FEATURES, REGISTERS))
            raise InputError(
                f"outputs are one or more of {features}, {LAYER}0 …; got {', '.join(self.outputs) or 'none'}"
            )
        if self.camera and (self.camera.layout not in LAYOUTS or self.camera.crop_mode not in CROP_MODES):
            raise InputError(f"its frames are {self.camera.layout}, cut by {self.camera.crop_mode}")
        _ = self.config

    @property
    def input(self) -> str:
        """Name of the input."""
        return FRAMES if self.camera else PIXELS

    @property
    def config(self) -> ModelConfig:
        """What preprocessing must know."""
        return ModelConfig(**{name: getattr(self, name) for name in PREPROCESSING})

    @property
    def tokens(self) -> TokenLayout:
        """What its tokens are."""
        return TokenLayout(self.prefix, self.has_cls, self.patch_size, self.embed_dim, self.size)

    @property
    def device(self) -> str | None:
        """The kind of device that its code is compiled for, "cpu" or "cuda"; None if for none."""
        return "cuda" if self.format == "tensorrt" else self.made_for.get("device")

    def input_shape(self, batch: int, size: tuple[int, int]) -> tuple[int, ...]:
        """Return the input's shape for a network input of `size` pixels."""
        return self.camera.shape(batch) if self.camera else (batch, 3, *size)

    @property
    def input_shapes(self) -> list[tuple[int, ...]]:
        """Smallest, usual and largest shape of the input, at the usual size."""
        return [self.input_shape(batch, self.size or self.default_size) for batch in self.batch]

    def output_shape(self, name: str, batch: int, size: tuple[int, int]) -> tuple[int, ...]:
        """Return an output's shape for a network input of `size` pixels."""
        height, width = self.tokens.grid(size)
        if name == "cls":
            return batch, self.embed_dim
        if name == "grid":
            return batch, self.embed_dim, height, width
        if name == REGISTERS:
            return batch, self.tokens.registers, self.embed_dim
        return batch, height * width + (0 if name == "patches" else self.prefix), self.embed_dim

    def write(self, path: Path) -> None:
        """Write the facts as JSON."""
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def read(cls, path: Path) -> Artefact:
        """Read and check the facts of the export at `path`.

        Raises:
            InputError: there is no such export, its facts are missing, or its files are not the ones they speak of.
        """
        if not path.is_file():
            raise InputError(f"{path} does not exist; write it with vde-export")
        beside = sidecar(path)
        try:
            values = json.loads(beside.read_text(encoding="utf-8-sig"))
            newer = isinstance(values, dict) and values.get("schema", 0) > SCHEMA
            artefact = None if newer else fit(cls, values, "it")
        except FileNotFoundError as error:
            raise InputError(
                f"{beside} does not exist, so nothing is known of {path.name}; copy it along with the export, or "
                "write both with vde-export"
            ) from error
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise InputError(
                f"{beside} does not describe an export ({error}); write both anew with vde-export"
            ) from error
        if artefact is None:
            raise InputError(f"{beside} was written by a later version of this package; install that one")
        artefact._check_format(path)
        artefact = artefact._named_as(path)
        artefact._check_files(path)
        artefact._check_beginning(path)
        return artefact

    def _named_as(self, path: Path) -> Artefact:
        """Return the same facts of files that were renamed together: what they hold decides, not their names."""
        suffix = SUFFIXES[self.format]
        stem = next((name.removesuffix(suffix) for name in self.files if name.endswith(suffix)), path.stem)
        files = {path.stem + name.removeprefix(stem): digest for name, digest in self.files.items()}
        return dataclasses.replace(self, files=files)

    def _check_format(self, path: Path) -> None:
        """Two formats are native code: a name that a user takes for data must not start them."""
        if self.format not in SUFFIXES:
            raise InputError(
                f"{sidecar(path)} says that {path.name} is of the format {self.format}; known are {', '.join(SUFFIXES)}"
            )
        if path.suffix != SUFFIXES[self.format]:
            raise InputError(
                f"{sidecar(path)} says that {path.name} is of the format {self.format}, whose files end in "
                f"{SUFFIXES[self.format]}; take the two as vde-export wrote them"
            )

    def _check_beginning(self, path: Path) -> None:
        with path.open("rb") as file:
            beginning = file.read(8)
        if not beginning.startswith(_BEGINNINGS[self.format]):
            raise InputError(
                f"{path.name} does not begin as files of the format {self.format} do, so it is none; write it anew "
                "with vde-export"
            )

    def _check_files(self, path: Path) -> None:
        names = [path.name, *(name for name in self.files if name != path.name)]
        for name in names:
            file = path.with_name(name)
            if not file.is_file():
                raise InputError(f"{file} does not exist, but belongs to {path.name}; copy it along")
            if sha256(file) != self.files.get(name):
                raise InputError(
                    f"{file} is not the file that {sidecar(path).name} describes (another sha256): it is damaged, or "
                    "of another export; copy both again, or write them anew with vde-export"
                )


def sidecar(path: Path) -> Path:
    """Return where the facts of the export at `path` are written."""
    return path.with_name(f"{path.name}.json")


def machine(device: torch.device) -> dict[str, str]:
    """Return what this machine is like, as far as code that is compiled for a device depends on it."""
    facts = {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": ".".join(torch.__version__.split(".")[:2]),
        "device": device.type,
    }
    if device.type == "cuda":
        facts["compute_capability"] = "{}.{}".format(*torch.cuda.get_device_capability(device))
    return facts


def check_machine(path: Path, made_for: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Compare what an export was made for with what is here.

    Raises:
        InputError: they differ.
    """
    different = [
        f"{name} {value} (here {here.get(name) or 'none'})"
        for name, value in made_for.items()
        if here.get(name) != value
    ]
    if different:
        raise InputError(f"{path} was made for {', '.join(different)}; export it again on such a machine as this")


def fit(kind: Any, value: Any, what: str) -> Any:
    """Return a value of JSON as a type: a dataclass, str, int, float, a tuple, a mapping, any of these or None.

    Args:
        kind: the type.
        value: of JSON.
        what: it is called in the message.

    Raises:
        TypeError: it does not fit.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else fit(inner[0], value, what)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict):
        hints = typing.get_type_hints(kind)
        if unknown := sorted(value.keys() - hints.keys()):
            raise TypeError(f"{what} has an unknown {unknown[0]!r}")
        return kind(**{name: fit(hints[name], one, name) for name, one in value.items()})
    if origin is tuple and isinstance(value, list) and (inner[-1] is ... or len(value) == len(inner)):
        return tuple(fit(inner[0], one, what) for one in value)
    if origin is Mapping and isinstance(value, dict):
        return {name: one if inner[1] is Any else fit(inner[1], one, f"{what}.{name}") for name, one in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise TypeError(f"{what} is {value!r}")
