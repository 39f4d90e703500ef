import multiprocessing

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from training.common.distributed import World
from training.data.box import Box
from training.data.clips import ClipIndex
from training.data.frame_store import ExtractConfig, FrameStore, extract_source
from training.data.loading import load_batches
from training.data.resident import ResidentFrames, bicubic_weights
from training.data.views import ViewsConfig, cut
from training.engine.assembly import clip_views
from training.engine.plan import Plan
from training.engine.run import pretrain
from training.engine.schedule import Schedule
from training.recipes.recipe import read_recipe
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.sources.video_files import VideoFile

CPU = torch.device("cpu")


def store_of(clip, folder, **settings):
    return FrameStore(extract_source(VideoFile(clip), folder, ExtractConfig(fps=5, **settings)))


def test_frames_in_memory_are_the_same_and_need_no_file(clip, tmp_path):
    disk, memory, other = (store_of(clip, tmp_path, short_side=side) for side in (64, 64, 48))
    assert memory.bytes_in_memory() == 13 * 64 * 114 * 3
    ResidentFrames([other, memory], CPU)
    expected = [disk.read(number) for number in range(13)]
    disk.path.unlink()
    assert all(np.array_equal(memory.read(number), frame) for number, frame in enumerate(expected))
    assert (other.first_resident, memory.first_resident) == (0, 13)


def test_a_forked_worker_shares_them(clip, tmp_path):
    store = store_of(clip, tmp_path, short_side=64)
    ResidentFrames([store], CPU)
    context = multiprocessing.get_context("fork")
    # by numpy, for a forked process has none of the threads that torch would wait for
    worker = context.Process(target=lambda: store.pixels.numpy().fill(7))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    assert (store.read(5) == 7).all()


def test_frames_that_do_not_fit_are_refused(clip, tmp_path, monkeypatch):
    store = store_of(clip, tmp_path, short_side=64)
    monkeypatch.setattr(FrameStore, "bytes_in_memory", lambda self: 2**60)
    with pytest.raises(InputError, match=r"take 1073741824\.0 GiB decoded and .* leave clips\.in_memory out"):
        ResidentFrames([store], CPU)


@pytest.mark.parametrize(("length", "size"), [(64, 64), (200, 48), (37, 96), (16, 1), (3, 224)])
def test_weights_are_those_of_torchs_antialiased_bicubic(length, size):
    line = torch.eye(length, dtype=torch.float32)[None, None]  # each pixel alone
    expected = F.interpolate(line, (length, size), mode="bicubic", antialias=True, align_corners=False)[0, 0].T
    got = bicubic_weights(torch.tensor([length]), size, length + 5)[0]
    assert torch.allclose(got[:, :length], expected, atol=2e-5)
    assert (got[:, length:] == 0).all()


@pytest.mark.parametrize("size", [32, 112])
def test_crops_are_those_of_the_workers_to_a_grey_level(clip, tmp_path, size):
    generator = np.random.default_rng(0)
    stores = [store_of(clip, tmp_path, short_side=side) for side in (180, 96)]
    frames = ResidentFrames(stores, CPU)
    noise = torch.from_numpy(generator.integers(0, 256, stores[1].pixels.shape, dtype=np.uint8))
    stores[1].pixels.copy_(noise)
    rows, expected = [], []
    for number in range(30):
        store = stores[number % 2]
        width, height = store.size
        across, down = generator.integers(4, width + 1), generator.integers(4, height + 1)
        left, top = generator.integers(width - across + 1), generator.integers(height - down + 1)
        box, flip, frame = Box(left, top, across, down), bool(number % 3), number % 13
        rows.append((store.first_resident + frame, *box, flip, size, size // 2))
        expected.append(cut(store.pixels[frame], box, (size, size // 2), flip))
    got = frames.cut(torch.tensor(rows).view(5, 6, 8))
    difference = (got.flatten(0, 1).int() - torch.stack(expected).int()).abs()
    assert got.shape == (5, 6, 3, size, size // 2)
    assert difference.float().mean() < 0.5
    assert difference[::2].max() <= 3
    # where noise overshoots, the workers' 8-bit lines between the two passes are cut off at black and white, and how
    # they are rounded differs between processors
    assert (difference[1::2] > 3).float().mean() < 0.01


def test_views_and_colours_are_those_that_workers_cut(clip, tmp_path):
    batches = {}
    for where in ("false", "true", "device"):
        recipe = read_recipe("smoke", [f"--clips.in_memory={where}", "--run.workers=2", "--views.low_resolution=0.5"])
        store = FrameStore(extract_source(VideoFile(clip), tmp_path, recipe.extract))
        frames = ResidentFrames([store], CPU) if where != "false" else None
        world = World(0, 1, 0, CPU)
        schedule = Schedule(recipe, Plan.of(2), 0, world)
        clips = clip_views(recipe, ClipIndex([store], recipe.clips, 0), resident=where == "device")
        batches[where] = list(load_batches(clips, schedule, world, recipe.run.workers))
    for disk, memory, device in zip(*batches.values(), strict=True):
        for group, found in disk.items():
            assert torch.equal(memory[group]["pixels"], found["pixels"])
            difference = (frames.cut(device[group]["pixels"]).int() - found["pixels"].int()).abs().float()
            assert difference.mean() < 0.2
            assert torch.equal(device[group]["photometric"], found["photometric"])


def test_a_run_learns_the_same_from_frames_on_the_device(losses, clip, tmp_path):
    for where in ("true", "device"):
        recipe = read_recipe("smoke", [f"--clips.in_memory={where}", "--run.steps=4"])
        pretrain([clip], tmp_path / where, recipe, frames=tmp_path / "frames")
    one, other = losses(tmp_path / "true"), losses(tmp_path / "device")
    assert one == pytest.approx(other, rel=1e-2)
    assert one != other
    resumed = read_recipe("smoke", ["--clips.in_memory=true", "--run.steps=4"])
    with pytest.raises(InputError, match=r"clips\.in_memory was device, now True"):
        pretrain([clip], tmp_path / "device", resumed, frames=tmp_path / "frames", resume=True)


def test_blur_is_in_proportion_to_the_views(clip, tmp_path):
    config = ViewsConfig(low_resolution=0.5)
    assert config.at(0.2).global_size / config.global_size == 0.5
    recipe = read_recipe("smoke", ["--views.low_resolution=0.5", "--photometric.blur=[1.0,1.0,1.0]"])
    store = FrameStore(extract_source(VideoFile(clip), tmp_path, recipe.extract))
    world = World(0, 1, 0, CPU)
    schedule = Schedule(recipe, Plan.of(2), 0, world)
    clips = clip_views(recipe, ClipIndex([store], recipe.clips, 0))
    low, full = load_batches(clips, schedule, world, recipe.run.workers)
    widest = recipe.photometric.blur_sigma[1]
    assert 0 < low["local"]["photometric"][..., 9].max() <= widest / 2 < full["local"]["photometric"][..., 9].max()
