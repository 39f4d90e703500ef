"""Recipes: every setting of a run, as dataclasses kept beside what they configure, read from one YAML file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from training.clips import ClipsConfig
from training.frame_store import ExtractConfig
from training.methods import load_method
from training.photometric import PhotometricConfig
from training.views import ViewsConfig
from video_distilled_encoder.errors import InputError, MissingExtra

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class BackboneConfig:
    """The encoder that is trained."""

    architecture: str = "vit_small_patch16_224"
    """A timm vision transformer."""
    drop_path: float = 0.1
    """Stochastic depth of the student (DINO)."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, its schedules, and the teacher's momentum (defaults: DINO's; shares are of the run)."""

    learning_rate: float = 5e-4
    """Peak, for a batch of 256; scaled linearly with the batch."""
    learning_rate_end: float = 1e-6
    """At the end of the cosine; not scaled."""
    learning_rate_batch: Literal["clips", "frames"] = "clips"
    """What the batch counts for that scaling: clips, or clips times frames (the papers' "batch 256" says neither)."""
    warmup: float = 0.1
    """Share of linear warm-up (10 of 100 epochs)."""
    weight_decay: tuple[float, float] = (0.04, 0.4)
    """At the start and at the end of a cosine; biases and norms are exempt."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's running averages."""
    clip_grad: float | None = 3.0
    """Largest norm of the gradient of each parameter tensor."""
    freeze_last_layer: float = 0.01
    """Share of the run during which the prototypes stay as they are (1 of 100 epochs)."""
    teacher_momentum: tuple[float, float] = (0.996, 1.0)
    """Of the teacher's moving average, at the start and at the end of a cosine."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.learning_rate_end < 0:
            raise InputError("optimizer.learning_rate must be positive and .learning_rate_end not negative")
        if not 0 <= self.warmup < 1:
            raise InputError(f"optimizer.warmup is a share of the run in [0, 1), got {self.warmup}")
        if self.clip_grad is not None and self.clip_grad <= 0:
            raise InputError("optimizer.clip_grad must be positive, or null for none")
        if not all(0 <= momentum <= 1 for momentum in self.teacher_momentum):
            raise InputError(f"optimizer.teacher_momentum must lie in [0, 1], got {list(self.teacher_momentum)}")


@dataclass(frozen=True)
class RunConfig:
    """Length, batch and machine of a run."""

    epochs: float = 100.0
    """Passes over all start frames of the videos."""
    init_from: str | None = None
    """Weights to start from: a release, a model directory, a Hub name, or a run, whose heads are taken too."""
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
    """Of the matrix products; auto takes bf16 on CUDA and fp32 on the CPU."""
    compile: bool = False
    """Compile the backbones with torch.compile."""
    workers: int | None = None
    """Processes that load and crop for each GPU; one per processor, less one, at most 16, if not given."""
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
        if self.epochs <= 0 or (self.steps is not None and self.steps < 1):
            raise InputError("run.epochs must be positive and run.steps at least 1")


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
    objective: Any
    """The method's own settings, its `Objective`."""
    optimizer: OptimizerConfig
    run: RunConfig

    def trains_like(self, other: Recipe) -> bool:
        """Tell whether the two give the same weights: all settings are equal but those of loading and logging."""
        free = ("workers", "checkpoint_every", "keep_checkpoints", "log_every", "wandb")
        run = replace(other.run, **{name: getattr(self.run, name) for name in free})
        return self == replace(other, run=run)

    def save(self, path: Path) -> None:
        """Write the recipe as YAML that `--recipe` reads."""
        path.write_text(yaml.safe_dump(_plain(asdict(self)), sort_keys=False), encoding="utf-8")


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """Return the file of a recipe, given its name or a path.

    Raises:
        InputError: there is none.
    """
    for path in (RECIPES / f"{name}.yaml", Path(name)):
        if path.is_file():
            return path
    raise InputError(f"there is no recipe {name!r}; give a YAML file or one of: {', '.join(recipe_names())}")


def recipe_parser(path: Path, add_arguments: Callable[[Any], None] = lambda parser: None, **options: Any) -> Any:
    """Return a jsonargparse parser with an option for every setting, whose defaults are those of the recipe file.

    Args:
        path: the recipe file.
        add_arguments: adds the arguments that come before the settings.
        **options: of the parser.

    Raises:
        InputError: the file is not YAML or names no method.
    """
    try:
        from jsonargparse import ArgumentParser, set_parsing_settings
    except ImportError as error:
        raise MissingExtra("jsonargparse", "train") from error
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError) as error:
        raise InputError(f"{path} cannot be read as a recipe: {error}") from error
    if not isinstance(content, dict) or "method" not in content:
        raise InputError(f"{path} is not a recipe: it names no `method`")
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="python -m training.pretrain", default_config_files=[str(path)], **options)
    add_arguments(parser)
    parser.add_argument("--method", help="set by the recipe")
    for name, config in _sections(content["method"]).items():
        parser.add_class_arguments(config, name)
    return parser


def build_recipe(parser: Any, settings: Any) -> Recipe:
    """Turn the parsed settings into a recipe."""
    built = parser.instantiate(settings)
    return Recipe(method=settings.method, **{name: built[name] for name in _sections(settings.method)})


def read_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or path, with settings such as "--run.steps=10" on top."""
    parser = recipe_parser(find_recipe(name))
    return build_recipe(parser, parser.parse_args(list(overrides)))


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
