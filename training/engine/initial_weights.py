"""Starting a run from weights that exist: of a run with its heads, of an encoder, or of a timm ViT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from torch import Tensor

from training.common.yaml_files import read_mapping
from training.engine import checkpoint, handover
from training.methods.method import Method
from video_distilled_encoder import Encoder, model_directory
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.files import read_tensors


class Start(NamedTuple):
    """What a run began with."""

    text: str
    """In words."""
    runs: list[dict[str, Any]]
    """The runs that led there, as far as is known."""


def start_from(name: str, method: Method) -> Start:
    """Take weights in place of random ones, in float32.

    Args:
        name: a run directory, or the `handover/` of one, whose heads and centres are taken too if the method has the
            same; a model directory, a release or a Hub name, `timm/vit_small_patch16_224.dino` among them; or a
            .safetensors file with timm's names.
        method: that receives them.

    Raises:
        InputError: there are no such weights, or they are of another architecture.
    """
    found = _read_run(Path(name))
    if found is None:
        backbone = read_backbone(Path(name))
        method.start_from(backbone, name)
        return Start(f"starting from {name}: the backbone", [])
    state, runs = found
    different = _first_difference(state, method.state_dict())
    if different is None:
        method.go_on_from(state, name)
        return Start(f"starting from {name}: all that its run learnt", runs)
    method.start_from(handover.backbone_of(state), name)
    return Start(f"starting from {name}: the backbone alone, for {different} is another here", runs)


def _read_run(folder: Path) -> tuple[Mapping[str, Tensor], list[dict[str, Any]]] | None:
    """Return a method's state from a run's newest checkpoint, or from what it left for the next run, and its past."""
    saved = checkpoint.load_newest(folder / "checkpoints")
    if saved is not None:
        recipe = read_mapping(folder / "recipe.yaml", "recipe")
        past = handover.past_of(folder)
        return saved.model, [*past.runs, handover.facts_of(saved.step, saved.plan, recipe, past.provenance)]
    left = next((path for path in (folder, folder / handover.FOLDER) if handover.is_handover(path)), None)
    if left is None:
        return None
    found = handover.read(left)
    return found.state, found.runs


def _first_difference(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """Return the name of a tensor that only one of two has, or that has another shape."""
    names = [*expected, *state]
    return next((n for n in names if n not in state or n not in expected or state[n].shape != expected[n].shape), None)


def read_backbone(name: Path) -> dict[str, Tensor]:
    """Return a ViT's weights under timm's names, in float32, without a classifier."""
    if name.is_file():
        if name.suffix != ".safetensors":
            raise InputError(f"{name} is not a .safetensors file; nothing else is read, since a pickle can run code")
        try:
            state = model_directory.without_classifier(read_tensors(name))
        except SafetensorError as error:
            raise InputError(f"{name} is damaged ({error})") from error
    else:
        state = Encoder.from_pretrained(name).backbone.state_dict()
    return {key: tensor.float() for key, tensor in state.items()}
