import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from training.data import jpeg
from training.data.box import Box
from training.data.views import View, ViewsConfig, cut, cut_all, largest_scale, pre_crop, random_box
from training.methods.vfd import plan_views
from training.recipes.recipe import read_recipe
from video_distilled_encoder.errors import InputError


def coordinate_frames(width=240, height=180, count=3):
    """Frames whose red and green channels are the pixel's column and row, and whose blue is the frame's number."""
    rows, columns = np.mgrid[:height, :width]
    return [np.stack([columns, rows, np.full_like(rows, 100 * i)], -1).astype(np.uint8) for i in range(count)]


def reader(frames):
    """Return what reads regions of frames, and the regions that were read."""
    seen = []

    def read(number, box, scale):
        assert scale == 1
        seen.append(box)
        return frames[number][box.top : box.top + box.height, box.left : box.left + box.width]

    return read, seen


@pytest.mark.parametrize("seed", range(5))
def test_the_global_crop_is_the_same_region_in_all_frames(seed):
    recipe = read_recipe("smoke", ["--views.flip=1.0" if seed % 2 else "--views.flip=0.0"])
    frames = coordinate_frames()
    views = plan_views(np.random.default_rng(seed), (240, 180), recipe.spec)
    read, regions = reader(frames)
    crops = torch.stack(cut_all(read, views)[:3]).numpy()
    assert crops.shape == (3, 3, 64, 64)
    assert len(regions) == 3
    assert all(region.width * region.height < 240 * 180 for region in regions)
    for frame in (1, 2):
        assert np.array_equal(crops[0, :2], crops[frame, :2])
        assert (crops[frame, 2] == 100 * frame).all()
    box = views[0].box
    columns = crops[0, 0, 32][:: -1 if seed % 2 else 1]
    expected = box.left + (np.arange(64) + 0.5) * box.width / 64 - 0.5
    assert np.abs(columns - expected).max() < 1.5


def test_reduced_frames_give_the_same_views_to_a_few_grey_levels(photograph):
    image = Image.open(photograph).convert("RGB").resize((854, 480), Image.Resampling.BICUBIC)
    data = jpeg.encode(image, 95)
    rng = np.random.default_rng(0)
    scales = []

    def read(number, box, scale):
        scales.append(scale)
        return jpeg.decode(data, box, scale)

    for number in range(20):
        region = random_box(rng, Box(0, 0, 854, 480), (0.05, 1.0))
        views = [View("global", 0, region, bool(number % 2), (32, 32), "view1")]
        views += [View("local", 0, random_box(rng, region, (0.2, 0.4)), False, (16, 16), "local") for _ in range(2)]
        for crops, reduced in zip(cut_all(read, views), cut_all(read, views, reduced=True), strict=True):
            difference = (crops.int() - reduced.int()).abs().float()
            assert difference.mean() < 8
            # a view that is half a pixel elsewhere differs about as much; one that shows something else much more
            assert (crops.float() - crops.float().roll(1, -1)).abs().mean() > difference.mean()
    assert set(scales) >= {1, 2, 4}


@pytest.mark.parametrize(("side", "scale"), [(127, 1), (128, 2), (255, 2), (256, 4), (512, 8), (2000, 8)])
def test_views_keep_twice_their_pixels(side, scale):
    views = [
        View("global", 0, Box(0, 0, side, 3000), False, (32, 32), "view1"),
        View("wide", 0, Box(0, 0, 900, 900), False, (8, 16), None),
    ]
    assert largest_scale(views) == scale


def test_boxes_nest_and_have_the_areas_asked_for():
    recipe = read_recipe("vfd-vits16")
    width, height = 1920, 1080
    for seed in range(200):
        views = plan_views(np.random.default_rng(seed), (width, height), recipe.spec)
        region = views[0].box
        share = region.width * region.height / (width * height)
        assert 0.05 * 0.4 * 0.95 < share < 0.20 * 1.05
        assert [view.frame for view in views] == [0, 1, 2] + [1] * 5 + [2] * 5
        assert [view.group for view in views] == ["global"] * 3 + ["local"] * 10
        for view in views:
            left, top, w, h = view.box
            assert left >= 0
            assert top >= 0
            assert left + w <= width
            assert top + h <= height


def test_flip_is_shared_by_default_and_can_be_drawn_per_frame():
    recipe = read_recipe("vfd-vits16")
    flips = [[v.flip for v in plan_views(np.random.default_rng(s), (640, 360), recipe.spec)[:3]] for s in range(60)]
    assert all(len(set(row)) == 1 for row in flips)
    assert 10 < sum(row[0] for row in flips) < 50
    recipe = replace(recipe, views=replace(recipe.views, flip_shared=False))
    flips = [[v.flip for v in plan_views(np.random.default_rng(s), (640, 360), recipe.spec)[:3]] for s in range(60)]
    assert any(len(set(row)) == 2 for row in flips)


def test_teacher_frames_last_takes_locals_from_the_last_frame_only():
    recipe = read_recipe("vfd-vits16", ["--objective.teacher_frames=last"])
    views = plan_views(np.random.default_rng(0), (640, 360), recipe.spec)
    assert {view.frame for view in views if view.group == "local"} == {2}
    assert [view.frame for view in views if view.group == "global"] == [1, 2]  # and the first is not cut for nothing


@pytest.mark.parametrize(("area", "ratio"), [((0.05, 0.2), (3 / 4, 4 / 3)), ((0.4, 1.0), (3 / 4, 4 / 3))])
def test_random_boxes_are_distributed_like_torchvisions(area, ratio):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    image = torch.zeros(3, 180, 320)
    theirs = np.array([RandomResizedCrop.get_params(image, area, ratio) for _ in range(6000)])[:, [1, 0, 3, 2]]
    ours = np.array([random_box(rng, Box(0, 0, 320, 180), area, ratio) for _ in range(6000)])
    spread = theirs.std(0) / math.sqrt(len(theirs))
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 5 * spread).all()
    assert np.abs(ours.std(0) / theirs.std(0) - 1).max() < 0.06


def test_a_region_that_no_ratio_fits_gives_the_largest_centred_box():
    box = random_box(np.random.default_rng(0), Box(10, 20, 400, 20), (0.9, 1.0))
    assert box == Box(10 + 186, 20, 27, 20)


def test_cut_equals_pil_crop_and_resize():
    frame = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    expected = Image.fromarray(frame).crop((13, 7, 73, 57)).resize((32, 24), Image.Resampling.BICUBIC).transpose(0)
    pixels = cut(torch.from_numpy(frame), Box(13, 7, 60, 50), (24, 32), True).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(pixels - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("bad", [{"pre_crop_area": (0.5, 0.2)}, {"global_area": (0.0, 1.0)}, {"local_views": -1}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        ViewsConfig(**bad)


@pytest.mark.parametrize(("size", "least"), [((320, 180), 0.5625), ((1280, 720), 0.05), ((100, 90), 1.0)])
def test_the_pre_crop_of_a_small_frame_is_a_larger_share(size, least):
    config = ViewsConfig(pre_crop_area=(0.05, 0.2), pre_crop_side=180)
    rng = np.random.default_rng(0)
    areas = [box.width * box.height for _, box in (pre_crop(rng, size, config) for _ in range(300))]
    shares = np.array(areas) / (size[0] * size[1])
    if least == 1.0:
        assert shares.min() > 0.9 * min(4 / 3 / (size[0] / size[1]), 1)
    else:
        assert shares.min() > 0.97 * least
        assert np.quantile(shares, 0.95) < max(0.2, least) + 0.01  # where no box fits, the largest that does
