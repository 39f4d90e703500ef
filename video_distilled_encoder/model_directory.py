"""The model directory: one folder that timm, transformers and `Encoder.from_pretrained` load with the same numbers.

```
config.json         timm's architecture and preprocessing; transformers reads it by way of timm
model.safetensors   weights under timm's names
SHA256SUMS          checksums of the files above, as `sha256sum -c` reads them
README.md           the model card
```
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from video_distilled_encoder import from_transformers
from video_distilled_encoder.errors import InputError, warn
from video_distilled_encoder.files import atomic_directory, read_tensors, sha256, write_json
from video_distilled_encoder.model_config import ModelConfig

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PREPROCESSOR = "preprocessor_config.json"
"""Of directories that transformers wrote."""
CHECKSUMS = "SHA256SUMS"
CARD = "README.md"
FILES = (CONFIG, WEIGHTS, CHECKSUMS, CARD, PREPROCESSOR)
"""That are fetched."""

_CHECKSUM = re.compile(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)")
_COMPILED = "_orig_mod."
"""What torch.compile puts before the names of what it wraps."""


def read(directory: Path) -> tuple[nn.Module, ModelConfig]:
    """Load the backbone (in eval mode, its weights as stored) and the configuration of a model directory.

    Raises:
        InputError: a file is missing, damaged or does not match its checksum, or a tensor is missing, left over or of
            another shape.
    """
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise InputError(f"{directory} has no {name}; {_why_incomplete(directory)}")
    _verify(directory, (CONFIG, WEIGHTS))
    try:
        state = read_tensors(directory / WEIGHTS)
    except SafetensorError as error:
        raise InputError(f"{directory / WEIGHTS} is damaged ({error}); download or save it again") from error
    try:
        content = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        if from_transformers.is_known(content):
            config, state = from_transformers.convert(content, _processor(directory), state)
        else:
            config = ModelConfig.from_json(content)
        backbone = config.build_backbone()
    except (InputError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise InputError(f"{directory / CONFIG} is not a model's configuration: {error}") from error
    load_strictly(backbone, without_classifier(state), directory / WEIGHTS)
    return backbone.eval(), config


def _processor(directory: Path) -> dict[str, Any]:
    """Return transformers' image processor, if there is one."""
    path = directory / PREPROCESSOR
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def write(
    directory: Path,
    backbone: nn.Module,
    config: ModelConfig,
    *,
    card: str,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write `backbone` as a model directory; nothing is left behind if that fails.

    Args:
        directory: made if missing; files of the same names are replaced.
        backbone: as `ModelConfig.build_backbone` makes it.
        config: what the weights were trained with.
        card: the text of README.md.
        dtype: floating-point type of the stored weights.

    Raises:
        InputError: the backbone is not what `config` describes, is sharded, quantised or has LoRA layers, the type is
            not floating-point, or the place cannot be written.
    """
    check_dtype(dtype)
    backbone = _plain(backbone, config)
    state = {
        name.replace(_COMPILED, ""): tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in backbone.state_dict().items()
    }
    with atomic_directory(directory) as staging:
        write_json(staging / CONFIG, config.to_json(backbone))
        save_file(state, staging / WEIGHTS, metadata={"format": "pt"})
        sums = [f"{sha256(file)}  {file.name}\n" for file in sorted(staging.iterdir())]
        (staging / CHECKSUMS).write_text("".join(sums), encoding="utf-8")
        (staging / CARD).write_text(card, encoding="utf-8")


def check_dtype(dtype: object) -> None:
    """Refuse what no weights can be.

    Raises:
        InputError: it is no floating-point type of torch.
    """
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InputError(f"dtype is a floating-point type, such as torch.float16; got {dtype!r}")


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], where: Path | str) -> None:
    """Load `state` into `module`, keeping the stored floating-point type.

    Raises:
        InputError: a tensor is missing, left over or of another shape; the message names it and `where`.
    """
    expected = module.state_dict()
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or extra:
        parts = [
            f"{word} {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
            for word, names in (("lacks", missing), ("has the unexpected", extra))
            if names
        ]
        raise InputError(f"{where} {' and '.join(parts)}; it does not belong to this architecture")
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            raise InputError(f"{where}: {name} is {tuple(state[name].shape)}, expected {tuple(tensor.shape)}")
    module.load_state_dict(state, strict=True, assign=True)


def without_classifier(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors but those of the classifier that many of timm's ViTs carry."""
    return {name: tensor for name, tensor in state.items() if not name.startswith("head.")}


def _plain(backbone: nn.Module, config: ModelConfig) -> nn.Module:
    """Return a backbone without torch.compile's wrapper, if it is what a configuration describes.

    Raises:
        InputError: it is not.
    """
    plain: nn.Module = getattr(backbone, _COMPILED.removesuffix("."), backbone)
    state = plain.state_dict()
    if not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise InputError("the encoder is quantised by torch; save the one it was made of, and quantise what is loaded")
    if any(hasattr(tensor, "full_tensor") for tensor in state.values()):  # a DTensor
        raise InputError(
            "the encoder is sharded (FSDP2); gather its weights on one process, by get_model_state_dict of "
            "torch.distributed.checkpoint with full_state_dict=True, load them into an unsharded encoder and save that"
        )
    if any(".lora_" in name or ".base_layer." in name for name in state):
        raise InputError(
            "the encoder has LoRA layers; merge them, by peft's merge_and_unload(), and save what it gives"
        )
    with torch.device("meta"):
        described = config.build_backbone()
    if not isinstance(plain, type(described)):
        raise InputError(
            f"the backbone is timm's {type(plain).__name__}, not the {type(described).__name__} of its configuration "
            f"({config.architecture}); give Encoder(backbone, config) the ModelConfig that it was built with"
        )
    here, there = _facts(plain), _facts(described)
    if different := [name for name in {**there, **here} if here.get(name) != there.get(name)]:
        name = different[0]
        raise InputError(
            f"the backbone is not the {config.architecture} of its configuration: {name} is {here.get(name)}, not "
            f"{there.get(name)}; give Encoder(backbone, config) the ModelConfig that it was built with"
        )
    return plain


def _facts(backbone: nn.Module) -> dict[str, object]:
    """Return what makes a backbone's features besides the values of its weights."""
    blocks: Any = backbone.blocks
    return {
        **{name.replace(_COMPILED, ""): tuple(tensor.shape) for name, tensor in backbone.state_dict().items()},
        "the number of heads": [_part(block, "attn.num_heads") for block in blocks],
        "eps of the norms": [_part(block, "norm1.eps") for block in blocks],
        "the activation": [type(_part(block, "mlp.act")).__name__ for block in blocks],
    }


def _part(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def _why_incomplete(directory: Path) -> str:
    """Say why a directory may lack a file."""
    # Where huggingface_hub keeps the beginnings of files: in its cache, and in a directory of the user's.
    beginnings = (directory.parent.parent / "blobs", directory / ".cache" / "huggingface" / "download")
    if any(any(folder.glob("**/*.incomplete")) for folder in beginnings):
        return "its download was interrupted: fetch it again, as by `hf download`"
    if directory.parent.name == "snapshots":
        return "it was downloaded in part, or is no model of this kind: fetch it again, as by `hf download`"
    return f"a model directory holds {CONFIG} and {WEIGHTS}"


def _verify(directory: Path, names: tuple[str, ...]) -> None:
    """Compare files with their checksums; a directory without SHA256SUMS, another project's, only brings a warning."""
    if not (directory / CHECKSUMS).is_file():
        warnings.warn(f"{directory} has no {CHECKSUMS}: its weights are loaded unchecked", stacklevel=4)
        return
    sums = read_checksums(directory)
    for name in names:
        if name not in sums:
            raise InputError(f"{directory / CHECKSUMS} does not list {name}; download or save the directory again")
        if sha256(directory / name) != sums[name]:
            raise InputError(f"{directory / name} does not match its checksum in {CHECKSUMS}; fetch or save it again")


def read_checksums(directory: Path) -> dict[str, str]:
    """Return what a directory's SHA256SUMS says, by file name, as `sha256sum` writes it in either of its modes.

    Raises:
        InputError: it is not text, or a line is none of a digest and a name.
    """
    path = directory / CHECKSUMS
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8 ({error}); write it anew with sha256sum") from error
    sums: dict[str, str] = {}
    for line in filter(str.strip, lines):
        found = _CHECKSUM.fullmatch(line)
        if found is None:
            raise InputError(f"{path} has a line that is no SHA-256 and a file's name: {line!r}; write it anew")
        sums[found[2]] = found[1].lower()
    return sums


def read_card(directory: Path) -> str | None:
    """Return the text of a directory's model card; one that is not UTF-8 is read as Latin-1, and said so."""
    path = directory / CARD
    if not path.is_file():
        return None
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        warn(f"{path} is not text in UTF-8; its letters are read as Latin-1")
        return content.decode("latin-1")


def weights_sha256(directory: Path) -> str:
    """Return the SHA-256 of a model directory's weights, which identifies them in results."""
    return sha256(directory / WEIGHTS)
