import numpy as np
import pytest
import torch

from training.common.distributed import World
from training.data.clips import ClipIndex
from training.data.frame_store import ExtractConfig, FrameStore, extract_video
from training.data.loading import Place, load_batches
from training.engine.assembly import clip_views
from training.engine.plan import Plan
from training.engine.schedule import Schedule
from training.recipes.recipe import read_recipe
from video_distilled_encoder.errors import InputError


@pytest.fixture(scope="module")
def store(clip, tmp_path_factory):
    return FrameStore(extract_video(clip, tmp_path_factory.mktemp("frames"), ExtractConfig(fps=10, short_side=128)))


def batches(store, recipe, rank=0, size=1, start=0, steps=3):
    index = ClipIndex([store], recipe.clips, recipe.run.seed)
    world = World(rank, size, rank, torch.device("cpu"))
    schedule = Schedule(recipe, Plan.of(steps), start, world)
    return list(load_batches(clip_views(recipe, index), schedule, world, recipe.run.workers))


def equal(one, other):
    return all(
        torch.equal(one[kind][group], other[kind][group]) for kind in ("views", "photometric") for group in one[kind]
    )


def test_a_sample_is_a_function_of_seed_and_place_alone(store):
    recipe = read_recipe("smoke")
    index = ClipIndex([store], recipe.clips, recipe.run.seed)
    clips = clip_views(recipe, index)
    forward = [clips[Place(position, 0.5)] for position in range(6)]
    backward = [clips[Place(position, 0.5)] for position in reversed(range(6))][::-1]
    assert all(equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert not equal(forward[0], clips[Place(len(index), 0.5)])  # the same index in the next epoch


def test_workers_starts_and_ranks_change_nothing(store):
    recipe = read_recipe("smoke", ["--run.batch_size=4"])
    whole = batches(store, recipe)
    assert len(whole) == 3
    with_workers = batches(store, read_recipe("smoke", ["--run.batch_size=4", "--run.workers=2"]))
    assert all(equal(a, b) for a, b in zip(whole, with_workers, strict=True))
    assert equal(batches(store, recipe, start=2)[0], whole[2])
    shares = [batches(store, recipe, rank=rank, size=2) for rank in (0, 1)]
    for step in range(3):
        joined = torch.cat([share[step]["views"]["global"] for share in shares])
        assert torch.equal(joined, whole[step]["views"]["global"])


def test_a_run_may_begin_at_half_resolution(store):
    recipe = read_recipe("smoke", ["--views.low_resolution=0.5", "--objective.patch_share=0.5", "--run.batch_size=2"])
    first, second = batches(store, recipe, steps=2)
    assert first["views"]["global"].shape == (2, 3, 3, 32, 32)
    assert first["views"]["local"].shape[-1] == 16
    assert second["views"]["global"].shape == (2, 3, 3, 64, 64)
    assert first["masks"]["global"].sum(-1).unique().tolist() == [2]
    assert second["masks"]["global"].sum(-1).unique().tolist() == [8]


@pytest.mark.parametrize("setting", ["--views.global_size=100", "--views.local_size=16 --views.low_resolution=0.1"])
def test_sizes_that_no_patch_fits_are_refused(setting):
    with pytest.raises(InputError, match="must be a multiple of"):
        read_recipe("smoke", setting.split())


def test_an_unequal_share_is_refused(store):
    with pytest.raises(InputError, match=r"run\.batch_size 4 cannot be shared equally by 3 processes"):
        batches(store, read_recipe("smoke"), size=3)
    recipe = read_recipe("smoke", ["--run.accumulate=3"])
    with pytest.raises(InputError, match="make it a multiple of 3"):
        batches(store, recipe)


def test_parameters_and_pixels_keep_their_types(store):
    sample = batches(store, read_recipe("smoke"))[0]
    assert sample["views"]["global"].dtype == torch.uint8
    assert sample["photometric"]["global"].dtype == torch.float32
    assert np.all(sample["photometric"]["global"][..., :4].sum(-1).numpy() == 6)
