import gc
import multiprocessing
import os
import signal
import time
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import _utils

from training.common import sharing
from training.common.distributed import World
from training.data.batch import augment, collate, split
from training.data.box import Box
from training.data.clips import ClipIndex, ClipsConfig, ClipSpec
from training.data.frame_store import ExtractConfig, FrameStore, extract_source
from training.data.loading import ClipViews, Place, load_batches
from training.data.photometric import PhotometricConfig
from training.data.views import View, ViewsConfig, random_box
from training.engine.assembly import clip_views
from training.engine.plan import Plan
from training.engine.schedule import Schedule
from training.recipes.recipe import read_recipe
from video_distilled_encoder.errors import InputError, InputWarning
from video_distilled_encoder.sources.video_files import VideoFile


@pytest.fixture(scope="module")
def store(clip, tmp_path_factory):
    return FrameStore(
        extract_source(VideoFile(clip), tmp_path_factory.mktemp("frames"), ExtractConfig(fps=10, short_side=128))
    )


def batches(store, recipe, rank=0, size=1, start=0, steps=3):
    index = ClipIndex([store], recipe.clips, recipe.run.seed)
    world = World(rank, size, rank, torch.device("cpu"))
    schedule = Schedule(recipe, Plan.of(steps), start, world)
    return list(load_batches(clip_views(recipe, index), schedule, world, recipe.run.workers))


def equal(one, other):
    return all(torch.equal(one[group][name], other[group][name]) for group in one for name in one[group])


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
        joined = torch.cat([share[step]["global"]["pixels"] for share in shares])
        assert torch.equal(joined, whole[step]["global"]["pixels"])


def test_the_positions_of_a_run_are_made_as_they_are_asked_for():
    world = World(0, 1, 0, torch.device("cpu"))
    first = next(iter(Schedule(read_recipe("smoke"), Plan.of(10**15), 10**14, world)))
    assert [place.position for place in first] == [4 * 10**14 + number for number in range(4)]


def test_a_run_may_begin_at_half_resolution(store):
    recipe = read_recipe("smoke", ["--views.low_resolution=0.5", "--objective.patch_share=0.5", "--run.batch_size=2"])
    first, second = batches(store, recipe, steps=2)
    assert first["global"]["pixels"].shape == (2, 3, 3, 32, 32)
    assert first["local"]["pixels"].shape[-1] == 16
    assert second["global"]["pixels"].shape == (2, 3, 3, 64, 64)
    assert first["global"]["mask"].sum(-1).unique().tolist() == [2]
    assert second["global"]["mask"].sum(-1).unique().tolist() == [8]


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
    assert sample["global"]["pixels"].dtype == torch.uint8
    assert sample["global"]["photometric"].dtype == torch.float32
    assert np.all(sample["global"]["photometric"][..., :4].sum(-1).numpy() == 6)


def plan_pair(rng, size, config):
    """Return views of two groups of a method's own, of other shapes, one without colours and with arrays beside it."""
    box = random_box(rng, Box(0, 0, *size), (0.3, 0.6))
    wide = [View("wide", 0, box, False, (32, 64), None, {"place": np.arange(4.0) + n}) for n in range(2)]
    return [*wide, View("small", 1, box, True, (16, 16), "view1")]


def test_groups_shapes_and_arrays_are_the_methods_and_no_style_leaves_colours(store):
    index = ClipIndex([store], ClipsConfig(2, 0.5), 0)
    clips = ClipViews(index, plan_pair, ViewsConfig(), PhotometricConfig(), seed=0)
    sample = clips[Place(0, 0.0)]
    assert sample["wide"]["pixels"].shape == (2, 3, 32, 64)
    assert sample["small"]["pixels"].shape == (1, 3, 16, 16)
    assert sample["wide"]["place"].tolist() == [[0, 1, 2, 3], [1, 2, 3, 4]]
    augmented = augment(collate([sample]), torch.zeros(3), torch.ones(3))
    assert torch.allclose(augmented["wide"]["pixels"][0] * 255, sample["wide"]["pixels"].float(), atol=1e-3)
    assert not torch.allclose(augmented["small"]["pixels"][0] * 255, sample["small"]["pixels"].float(), atol=1.0)
    parts = split(collate([sample, clips[Place(1, 0.0)]]), 2)
    assert equal(parts[0], collate([sample]))


def test_samples_of_one_clip_are_cut_from_frames_that_are_read_once(store, monkeypatch):
    reads, read = [], FrameStore.read
    monkeypatch.setattr(FrameStore, "read", lambda *where: reads.append(where[1]) or read(*where))
    index = ClipIndex([store], ClipsConfig(2, 0.5), 0, ClipSpec((0.0, 0.5), draws=2))
    clips = ClipViews(index, plan_pair, ViewsConfig(), PhotometricConfig(), seed=0)
    places = [Place(position, 0.0) for position in range(6)]
    together = clips.__getitems__(places)
    assert len(reads) == 3 * 2
    for one, other in zip(together, [clips[place] for place in places], strict=True):
        assert torch.equal(one["small"]["photometric"], other["small"]["photometric"])
        # a larger region of the frame is decoded: to a grey level or two the same
        assert (one["wide"]["pixels"].int() - other["wide"]["pixels"].int()).abs().float().mean() < 1
    assert not torch.equal(together[0]["wide"]["pixels"], together[1]["wide"]["pixels"])


def test_the_last_part_of_a_run_takes_its_sizes_in_turn(store):
    settings = ["--views.end_sizes=[48,64,96]", "--views.end_share=0.5", "--views.low_resolution=0.25"]
    recipe = read_recipe("smoke", [*settings, "--objective.patch_share=0.5"])
    assert recipe.phases() == [0.25, 0.5, 1.0]
    found = batches(store, recipe, steps=12)
    sizes = [batch["global"]["pixels"].shape[-1] for batch in found]
    assert sizes == [32] * 3 + [64] * 3 + [48, 64, 96, 48, 64, 96]
    assert [batch["global"]["mask"].shape[-1] for batch in found[6:9]] == [9, 16, 36]
    assert all(batch["local"]["pixels"].shape[-1] == 32 for batch in found[3:])
    with pytest.raises(InputError, match=r"views\.end_sizes must be multiples of 16, got \[50\]"):
        read_recipe("smoke", ["--views.end_sizes=[50]"])
    with pytest.raises(InputError, match=r"views\.end_share is a share of what views\.low_resolution 0\.5 leaves"):
        read_recipe("smoke", ["--views.end_sizes=[64]", "--views.end_share=0.6", "--views.low_resolution=0.5"])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("free", [None, 10**12, 10**5])
def test_batches_for_which_shared_memory_has_no_room_go_as_messages(store, monkeypatch, free):
    recipe = read_recipe("smoke", ["--run.batch_size=4"])
    whole = batches(store, recipe)
    sharing._say.cache_clear()
    monkeypatch.setattr(sharing, "free_shared_memory", lambda: free)
    if free == 10**5:
        monkeypatch.setattr(torch.UntypedStorage, "_new_using_fd_cpu", lambda *_: os._exit(7))
    told = pytest.warns(InputWarning, match="/dev/shm has no room") if free == 10**5 else nullcontext()
    with told:
        with_workers = batches(store, read_recipe("smoke", ["--run.batch_size=4", "--run.workers=2"]))
    assert all(equal(a, b) for a, b in zip(whole, with_workers, strict=True))


class Stand:
    """Stands in for clips: a sample is its place, and where that is negative a worker does not come back."""

    resident, index = False, SimpleNamespace(stores=[])

    def __getitem__(self, place):
        if place < 0:
            time.sleep(600)
        return {"group": {"place": torch.tensor(place)}}


def test_a_signal_to_all_processes_does_not_end_workers_even_as_they_start():
    begun = []
    os.register_at_fork(after_in_child=lambda: begun and os.kill(os.getpid(), signal.SIGTERM))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    found = load_batches(Stand(), [[0, 1], [2, 3], [4, 5]], World(0, 1, 0, torch.device("cpu")), 2)
    begun.append(True)
    first = next(found)
    begun.clear()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    assert [batch["group"]["place"].tolist() for batch in (first, *found)] == [[0, 1], [2, 3], [4, 5]]


def test_a_worker_that_does_not_come_back_is_ended(monkeypatch):
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    found = load_batches(Stand(), [[0], [1], [-1], [-1]], World(0, 1, 0, torch.device("cpu")), 2)
    next(found)
    workers = set(multiprocessing.active_children())
    assert len(workers) == 2
    found.close()
    for worker in workers:
        worker.join(10)
        assert not worker.is_alive()


class Threaded:
    """Is garbage as soon as it is made, and must end in the process that made it."""

    def __init__(self, ended):
        self.itself, self.process, self.ended = self, os.getpid(), ended

    def __del__(self):
        if os.getpid() != self.process:
            self.ended.touch()


def test_a_worker_ends_nothing_of_the_process_that_it_was_forked_from(store, tmp_path, monkeypatch):
    recipe, world = read_recipe("smoke"), World(0, 1, 0, torch.device("cpu"))
    clips = clip_views(recipe, ClipIndex([store], recipe.clips, 0))
    sample = ClipViews.__getitems__

    def collecting(clips, places):
        gc.collect()
        return sample(clips, places)

    monkeypatch.setattr(ClipViews, "__getitems__", collecting)
    gc.disable()
    try:
        Threaded(tmp_path / "ended")
        assert len(list(load_batches(clips, Schedule(recipe, Plan.of(1), 0, world), world, 1))) == 1
    finally:
        gc.enable()
    assert not (tmp_path / "ended").exists()
