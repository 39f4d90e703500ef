"""The parts of a run, put together as its recipe says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from training.data.clips import ClipIndex
from training.data.flow import Flows, Motion
from training.data.frame_store import FrameStore
from training.data.loading import ClipViews
from training.data.views import View, ViewsConfig
from training.methods import load_method
from training.methods.method import Method, Spec
from training.recipes.recipe import Recipe


def clip_index(recipe: Recipe, stores: Sequence[FrameStore]) -> ClipIndex:
    """Return the clips that a run's method wants of some videos.

    Raises:
        InputError: no video is long enough.
    """
    wanted = getattr(load_method(recipe.method), "clip_spec", None)
    return ClipIndex(stores, recipe.clips, recipe.run.seed, wanted(recipe.spec) if wanted else None)


def clip_views(recipe: Recipe, index: ClipIndex, *, resident: bool = False) -> ClipViews:
    """Return the samples of a run; `resident` ones leave cutting to the device."""
    module = load_method(recipe.method)
    plan_views = partial(_plan_views, module.plan_views, recipe.spec)
    flow = getattr(module, "flow_config", None)
    return ClipViews(
        index,
        plan_views,
        recipe.views,
        recipe.photometric,
        recipe.run.seed,
        resident=resident,
        reduced=recipe.clips.reduced,
        flows=Flows(flow(recipe.spec)) if flow else None,
    )


def build_method(recipe: Recipe) -> Method:
    """Build what is trained, with random weights."""
    method: Method = load_method(recipe.method).Method(recipe.spec, recipe.backbone.build)
    return method


def _plan_views(
    plan: Callable[..., list[View]],
    spec: Spec,
    rng: np.random.Generator,
    size: tuple[int, int],
    views: ViewsConfig,
    *motion: Motion,
) -> list[View]:
    return plan(rng, size, spec._replace(views=views), *motion)
