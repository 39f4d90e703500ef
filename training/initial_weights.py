"""Starting a run from weights that exist: of a run with its heads, of an encoder, or of a timm ViT."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from training import checkpoint
from training.methods.base import Method
from video_distilled_encoder import Encoder, model_directory
from video_distilled_encoder.errors import InputError


def start_from(name: str, method: Method) -> None:
    """Take weights in place of random ones, in float32.

    Args:
        name: a run directory, whose heads and centres are taken too if the method has the same; a model directory, a
            release or a Hub name, `timm/vit_small_patch16_224.dino` among them; or a .safetensors file with timm's
            names.
        method: student and teacher that receive them.

    Raises:
        InputError: there are no such weights, or they are of another architecture.
    """
    run = Path(name)
    saved = checkpoint.load_newest(run / "checkpoints")
    if saved is not None and saved.model.keys() == method.state_dict().keys():
        model_directory.load_strictly(method, saved.model, run / "checkpoints")
        return
    state = read_backbone(run / "encoder" if saved is not None else run)
    model_directory.load_strictly(method.student.backbone, state, name)
    method.start_teacher()


def read_backbone(name: Path) -> dict[str, Tensor]:
    """Return a ViT's weights under timm's names, in float32, without a classifier."""
    if name.is_file():
        if name.suffix != ".safetensors":
            raise InputError(f"{name} is not a .safetensors file; nothing else is read, since a pickle can run code")
        try:
            state = model_directory.without_classifier(load_file(name))
        except SafetensorError as error:
            raise InputError(f"{name} is damaged ({error})") from error
    else:
        state = Encoder.from_pretrained(name).backbone.state_dict()
    return {key: tensor.float() for key, tensor in state.items()}
