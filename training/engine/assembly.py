"""The parts of a run, put together as its recipe says."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from training.data.clips import ClipIndex
from training.data.loading import ClipViews
from training.data.views import View, ViewsConfig
from training.methods import load_method
from training.methods.base import Method, Spec
from training.recipes.recipe import Recipe
from video_distilled_encoder.model_config import ModelConfig


def clip_views(recipe: Recipe, index: ClipIndex, *, resident: bool = False) -> ClipViews:
    """Return the samples of a run; `resident` ones leave cutting to the device."""
    plan_views = partial(_plan_views, load_method(recipe.method).plan_views, recipe.spec)
    return ClipViews(
        index,
        plan_views,
        recipe.views,
        recipe.photometric,
        recipe.run.seed,
        resident=resident,
        reduced=recipe.clips.reduced,
    )


def build_method(recipe: Recipe, config: ModelConfig) -> Method:
    """Build student and teacher with random weights; the teacher starts equal to the student."""
    student = config.build_backbone(drop_path_rate=recipe.backbone.drop_path)
    teacher = config.build_backbone()
    method: Method = load_method(recipe.method).Method(recipe.spec, student, teacher)
    return method


def _plan_views(
    plan: Callable[[np.random.Generator, tuple[int, int], Spec], list[View]],
    spec: Spec,
    rng: np.random.Generator,
    size: tuple[int, int],
    views: ViewsConfig,
) -> list[View]:
    return plan(rng, size, spec._replace(views=views))
