"""Networks of every origin, ready to be timed: alone, and from frames as a camera gives them.

End to end is what a user of each would write: `encode` of this package; timm's own transform on a PIL image;
transformers' own image processor.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from export.benchmark.rows import DTYPES, Row
from video_distilled_encoder import Encoder, load_runtime
from video_distilled_encoder.errors import InputError, first_line, import_extra
from video_distilled_encoder.image_files import bundled_photographs, open_image
from video_distilled_encoder.runtimes.artefact import Artefact


class Subject(NamedTuple):
    """A network, loaded."""

    network: Callable[[], object]
    """The network alone, on pixels that are already normalised and on its device."""
    end_to_end: Callable[[], object]
    """From uint8 frames in memory."""
    facts: dict[str, Any]
    """Of `Result`: what is known without measuring."""


def open_subject(row: Row, frame: tuple[int, int], device: str, threads: int) -> Subject:
    """Load what a row speaks of.

    Args:
        row: the row.
        frame: (height, width) of a camera frame; an export that takes frames has its own.
        device: "cpu" or "cuda".
        threads: of the CPU.

    Raises:
        InputError: there is no such network, or it does not run on the device.
    """
    known: dict[str, Callable[[Row, np.ndarray, str], Subject]] = {
        "torch": _open_encoder,
        "torch-compile": _open_encoder,
        "timm": _open_timm,
        "transformers": _open_transformers,
    }
    if row.kind in known:
        return known[row.kind](row, make_frames(frame, row.batch), device)
    return _open_export(row, frame, device, threads)


def make_frames(frame: tuple[int, int], batch: int) -> np.ndarray:
    """Return a batch of one photograph as (batch, height, width, 3) uint8."""
    image = open_image(bundled_photographs()[0]).resize((frame[1], frame[0]))
    return np.stack([np.asarray(image)] * batch)


def _open_encoder(row: Row, frames: np.ndarray, device: str) -> Subject:
    encoder = Encoder.from_pretrained(row.source, device=device, dtype=DTYPES[row.precision])
    pixels = encoder.preprocess(frames, size=row.size)
    if row.kind == "torch":
        return Subject(lambda: encoder(pixels), lambda: encoder.encode(frames, size=row.size), {})
    network = torch.compile(encoder)
    return Subject(lambda: network(pixels), lambda: network(encoder.preprocess(frames, size=row.size)), {})


def _open_export(row: Row, frame: tuple[int, int], device: str, threads: int) -> Subject:
    path = Path(row.source)
    camera = Artefact.read(path).camera
    frames = make_frames((camera.height, camera.width) if camera else frame, row.batch)
    runtime = load_runtime(path, device, threads=threads)
    inputs, _ = runtime.preprocess(frames, size=row.size)
    cosines = [figures["min_cosine"] for figures in runtime.artefact.facts.get("parity", {}).values()]
    facts = {"min_cosine": min(cosines, default=None), "preprocessing_inside": camera is not None}
    return Subject(lambda: runtime.run(inputs), lambda: runtime.encode(frames, size=row.size), facts)


def _open_timm(row: Row, frames: np.ndarray, device: str) -> Subject:
    """Random weights: latency does not depend on them."""
    try:
        model: Any = timm.create_model(row.source, pretrained=False, num_classes=0, img_size=row.size)
    except TypeError:  # not a vision transformer: it takes any size
        model = timm.create_model(row.source, pretrained=False, num_classes=0)
    settings = resolve_data_config({"input_size": (3, *row.size)}, model=model)
    transform: Any = create_transform(**settings, is_training=False)

    def prepare() -> Tensor:
        return torch.stack([transform(Image.fromarray(frame)) for frame in frames])

    return _subject(model, lambda pixels: model.forward_features(pixels), prepare, row, device)


def _open_transformers(row: Row, frames: np.ndarray, device: str) -> Subject:
    """Random weights, of the published configuration: only its JSON must be at hand."""
    config = transformers_config(row.source)
    config.image_size = row.size[0] if row.size[0] == row.size[1] else list(row.size)
    model = import_extra("transformers", "transformers").AutoModel.from_config(config)
    processor, options = _processor(row.source, row.size)

    def prepare() -> Tensor:
        pixels: Tensor = processor(list(frames), return_tensors="pt", **options)["pixel_values"]
        return pixels

    return _subject(model, model, prepare, row, device)


def _subject(
    model: nn.Module, call: Callable[[Tensor], object], prepare: Callable[[], Tensor], row: Row, device: str
) -> Subject:
    dtype = DTYPES[row.precision]
    model.to(device, dtype).eval()
    pixels = prepare().to(device, dtype)
    if pixels.shape[-2:] != row.size:
        raise InputError(f"{row.label} makes pixels of {tuple(pixels.shape[-2:])}, not of {row.size}")
    return Subject(lambda: call(pixels), lambda: call(prepare().to(device, dtype)), {"load_seconds": None})


def transformers_config(name: str) -> Any:
    """Return the configuration of a vision model, or of the vision half of one.

    The network is asked only for what is not on this machine.

    Raises:
        InputError: transformers is not installed, or there is no such configuration.
    """
    load = import_extra("transformers", "transformers").AutoConfig.from_pretrained
    config = _local_first(load, name)
    config = getattr(config, "vision_config", config)
    if not hasattr(config, "image_size"):
        raise InputError(f"transformers' {name} is not a vision model with an image_size; name another")
    return config


def _processor(name: str, size: tuple[int, int]) -> tuple[Any, dict[str, Any]]:
    """Return the model's own image processor, or a usual one if it has none, and what makes its result of `size`."""
    transformers = import_extra("transformers", "transformers")
    try:
        processor = _local_first(transformers.AutoImageProcessor.from_pretrained, name)
    except InputError:
        processor = transformers.BitImageProcessor()
    height, width = size
    exact = {"height": height, "width": width}
    crop = getattr(processor, "crop_size", None)
    if not getattr(processor, "do_center_crop", False) or not crop:
        return processor, {"size": exact}
    shortest = dict(processor.size).get("shortest_edge") or crop["height"]
    scale = shortest / crop["height"]
    return processor, {"size": {"shortest_edge": round(max(size) * scale)}, "crop_size": exact}


def _local_first(load: Callable[..., Any], name: str) -> Any:
    try:
        return load(name, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        pass
    try:
        return load(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"transformers cannot load {name}: {first_line(error)}") from error
