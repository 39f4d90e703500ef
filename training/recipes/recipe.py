"""Recipes: every setting of a run, as dataclasses kept beside what they configure, read from one YAML file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import yaml

from training.common.machine import has_bf16_units
from training.common.yaml_files import find_file, names_in, read_mapping
from training.data.clips import ClipsConfig
from training.data.frame_store import ExtractConfig
from training.data.photometric import PhotometricConfig
from training.data.views import ViewsConfig
from training.methods import load_method
from training.methods.method import Objective, Spec
from training.models.backbone import BackboneConfig
from training.nn.optimizer import OptimizerConfig
from training.recipes import number_lists
from video_distilled_encoder.errors import InputError, import_extra

RECIPES = Path(__file__).parent
DEFAULT = "vfd-vits16"
_FIRST_WITH_BF16 = (8, 0)
"""Compute capability of NVIDIA's first GPUs with units for bf16; others emulate it."""
_MOVED = ("teacher_momentum", "freeze_last_layer")
"""Settings that were once the optimiser's and are the objective's."""


def has_bf16(device: str) -> bool:
    """Tell whether a device of type "cuda" or "cpu" multiplies bf16 matrices itself; of GPUs, if none is here, yes."""
    if device == "cuda":
        return not torch.cuda.is_available() or torch.cuda.get_device_capability() >= _FIRST_WITH_BF16
    return has_bf16_units()


@dataclass(frozen=True)
class RunConfig:
    """Length, batch and machine of a run."""

    epochs: float = 100.0
    """Passes over all start frames of the videos."""
    init_from: str | None = None
    """Weights to start from: a run, whose heads are taken too; a model directory, a release or a Hub name
    (`timm/vit_small_patch16_224.dino` is one); or a .safetensors file with timm's names."""
    steps: int | None = None
    """Length of the run in steps, in place of `epochs`."""
    batch_size: int = 256
    """Clips per step, of all processes together."""
    accumulate: int = 1
    """Parts that each process's share of the batch is computed in, one after the other, to save memory; balancing of
    the targets then sees one part at a time."""
    seed: int = 0
    """Of weights, data order and augmentation."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where to train; auto takes CUDA if it is there."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the matrix products; auto takes bf16 on GPUs and processors that have units for it, else fp32. On CUDA fp32
    is never TF32; beside bf16, what stays float32 is."""
    compile: bool = False
    """Compile the blocks and heads with torch.compile, once for each size of views."""
    workers: int | None = None
    """Processes that load and crop for each GPU; its share of the processors, less one, at most 16, if not given."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""
    log_every: int = 10
    """Steps between writes of the log; every step is in it."""
    wandb: str | None = None
    """A wandb project to report to as well."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "checkpoint_every", "keep_checkpoints", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"run.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("seed", "workers"):
            if (getattr(self, name) or 0) < 0:
                raise InputError(f"run.{name} must be at least 0, got {getattr(self, name)}")
        if self.epochs <= 0 or (self.steps is not None and self.steps < 1):
            raise InputError("run.epochs must be positive and run.steps at least 1")

    def uses_bf16(self, device: str) -> bool:
        """Tell whether matrix products are bf16 on a device of type "cuda" or "cpu"."""
        return self.precision == "bf16" or (self.precision == "auto" and has_bf16(device))

    def precision_on(self, device: str) -> str:
        """Name the precision on a device of that type, and why, where the processor has a say in it."""
        bf16 = self.uses_bf16(device)
        name = "bf16" if bf16 else "fp32"
        if device == "cuda" or self.precision == "fp32":
            return name
        slow = ", on which fp32 is several times faster" * bf16
        return f"{name} (the processor has {'bf16 units' if has_bf16_units() else f'no bf16 units{slow}'})"

    def total_steps(self, clips: int) -> int:
        """Return the length of a run over so many clips."""
        return self.steps or max(1, round(self.epochs * clips / self.batch_size))


@dataclass(frozen=True)
class Recipe:
    """Every setting of a run."""

    method: str
    """Name of a file in training/methods."""
    extract: ExtractConfig
    clips: ClipsConfig
    views: ViewsConfig
    photometric: PhotometricConfig
    backbone: BackboneConfig
    objective: Objective
    """The method's own settings."""
    optimizer: OptimizerConfig
    run: RunConfig

    def __post_init__(self) -> None:
        self.views.check_sizes(self.backbone.patch)

    @property
    def spec(self) -> Spec:
        """What the method is told."""
        return Spec(self.objective, self.clips, self.views, self.backbone.patch, self.backbone.config)

    def phases(self) -> list[float]:
        """Return where in the run, by its progress, its steps begin to cost something else, its end last."""
        ends = {*self.views.phases(), *self.objective.phases()}
        return [*sorted(ends - {0.0, 1.0}), 1.0]

    def trains_like(self, other: Recipe) -> bool:
        """Tell whether the two give the same weights: all settings are equal but those of loading and logging."""
        free = ("workers", "checkpoint_every", "keep_checkpoints", "log_every", "wandb")
        run = replace(other.run, **{name: getattr(self.run, name) for name in free})
        ours, theirs = self.clips.in_memory, other.clips.in_memory
        alike = (ours == "device") == (theirs == "device")  # a device cuts views to a rounding
        alike &= not self.clips.reduced or bool(ours) == bool(theirs)
        clips = replace(other.clips, in_memory=ours if alike else theirs)
        return self == replace(other, run=run, clips=clips)

    def to_yaml(self) -> str:
        """Return the recipe as YAML that `--recipe` reads."""
        return str(yaml.safe_dump(_plain(asdict(self)), sort_keys=False))


def read_recipe(name: str | Sequence[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or path, or several on top of one another, and settings ("--run.steps=10") on top.

    Raises:
        InputError: there is no such recipe, or a setting is impossible.
    """
    names = [name] if isinstance(name, str) else name
    return _parse(["--recipe", *names, *overrides], _parser_alone)[1]


def parse_settings(
    argv: Sequence[str], add_arguments: Callable[[Any], None] = lambda parser: None, **options: Any
) -> tuple[Any, Recipe]:
    """Parse a command line that names recipes and may set any of their settings.

    Args:
        argv: the arguments.
        add_arguments: adds the arguments that come before the settings.
        **options: of the parser (prog, usage, description).

    Returns:
        All arguments, and the recipe.

    Raises:
        InputError: there is no such recipe, or a setting is impossible.
    """
    return _parse(argv, partial(_parser, add_arguments=add_arguments, **options))


def _parse(argv: Sequence[str], parser_of: Callable[[str], Any]) -> tuple[Any, Recipe]:
    """Parse a command line with the parser of its method."""
    choice = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    choice.add_argument("--recipe", nargs="+", default=[DEFAULT])
    paths = [find_file(name, RECIPES, "recipe") for name in choice.parse_known_args(argv)[0].recipe]
    content = _merge([_read_layer(path) for path in paths])
    sections = _sections(content["method"])
    lists = number_lists.settings(sections)
    number_lists.check(content, lists)
    argv = number_lists.on_command_line(argv, lists)
    parser = parser_of(content["method"])
    with TemporaryDirectory() as folder:
        merged = Path(folder) / "merged.yaml"
        merged.write_text(yaml.safe_dump(content), encoding="utf-8")
        # a recipe alone is read from its own file, which --help and errors then name
        parser.default_config_files = [str(paths[0] if len(paths) == 1 else merged)]
        settings = parser.parse_args(argv)
    built = parser.instantiate(settings)
    return settings, Recipe(method=settings.method, **{name: built[name] for name in sections})


def _parser(method: str, add_arguments: Callable[[Any], None] = lambda parser: None, **options: Any) -> Any:
    """Return what parses a method's command line."""
    jsonargparse = import_extra("jsonargparse", "train")
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(formatter_class=_help_formatter(jsonargparse), **options)
    add_arguments(parser)
    known = f"YAML files, each on top of those before it, or any of: {', '.join(names_in(RECIPES))}"
    parser.add_argument("--recipe", nargs="+", default=[DEFAULT], help=known)
    parser.add_argument("--method", help="set by the recipe")
    for name, config in _sections(method).items():
        parser.add_class_arguments(config, name)
    return parser


@cache
def _parser_alone(method: str) -> Any:
    """Return the same for recipes that are read in code: to put it together takes most of the time."""
    return _parser(method)


def _help_formatter(jsonargparse: Any) -> type[argparse.HelpFormatter]:
    """Return what formats --help, without the types whose names are Python's alone, such as <class 'Path'>."""

    class Formatter(jsonargparse.DefaultHelpFormatter):
        def _get_type_str(self, action: argparse.Action) -> str | None:
            name: str | None = super()._get_type_str(action)
            return None if name is None or name.startswith("<") else name

    return Formatter


def options(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as on a command line; without spaces, by which argparse tells values from options."""
    return [
        f"--{key}={value if isinstance(value, str) else json.dumps(value, separators=(',', ':'))}"
        for key, value in settings.items()
    ]


def _read_layer(path: Path) -> dict[str, Any]:
    content = read_mapping(path, "recipe")
    if "method" not in content:
        raise InputError(f"{path} is not a recipe: it names no `method`")
    return _with_moved_settings(content)


def _with_moved_settings(content: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe, perhaps an older one, with the settings of the teacher where they are now."""
    optimizer, objective = (dict(content.get(section) or {}) for section in ("optimizer", "objective"))
    moved = {name: optimizer.pop(name) for name in _MOVED if name in optimizer}
    return content | {"optimizer": optimizer, "objective": moved | objective} if moved else content


def _merge(layers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Lay recipes over one another; of another method's objective, only what the last one has too stays."""
    method = layers[-1]["method"]
    common = {field.name for field in fields(load_method(method).Objective)}
    merged: dict[str, Any] = {}
    for layer in layers:
        if layer["method"] != method and "objective" in layer:
            kept = {name: value for name, value in layer["objective"].items() if name in common}
            layer = layer | {"objective": kept}
        merged = _overlay(merged, layer)
    return merged


def _overlay(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return `below` with the entries of `above`, nested ones one by one."""
    nested = {name: _overlay(below[name], value) for name, value in above.items() if _both_nested(below, name, value)}
    return below | above | nested


def _both_nested(below: dict[str, Any], name: str, value: Any) -> bool:
    return isinstance(value, dict) and isinstance(below.get(name), dict)


def _sections(method: str) -> dict[str, type]:
    return {
        "extract": ExtractConfig,
        "clips": ClipsConfig,
        "views": ViewsConfig,
        "photometric": PhotometricConfig,
        "backbone": BackboneConfig,
        "objective": load_method(method).Objective,
        "optimizer": OptimizerConfig,
        "run": RunConfig,
    }


def _plain(value: Any) -> Any:
    """Turn tuples into lists, which YAML has."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
