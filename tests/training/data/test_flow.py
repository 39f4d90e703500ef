"""Optical flow against motions that are known, SciPy and torchvision; and its cache."""

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import scipy.ndimage
import torch
from safetensors.torch import save_file
from torchvision.models.optical_flow import raft_large, raft_small
from torchvision.transforms._presets import OpticalFlow

from training.data import flow
from training.data.box import Box
from training.data.flow import FlowConfig, Flows, Motion, correspond, load_raft, occluded
from training.data.frame_store import ExtractConfig, FrameStore, extract_source
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.sources.video_files import VideoFile
from video_distilled_encoder.video import write_video

LIMITS = (0.1, 0.5)
SMALL = FlowConfig(side=128, coarseness=4)


def texture(seed, height, width, sigma=2):
    noise = np.random.default_rng(seed).random((height, width, 3))
    smooth = scipy.ndimage.gaussian_filter(noise, (sigma, sigma, 0))
    return ((smooth - smooth.min()) / (smooth.max() - smooth.min()) * 255).astype(np.uint8)


class Frames:
    """Stands where a store does, for frames that are made up."""

    def __init__(self, folder, *frames):
        self.frames, self.path, self.reads = frames, folder / "made-up.zip", 0
        self.size = frames[0].shape[1], frames[0].shape[0]

    def read(self, number):
        self.reads += 1
        return self.frames[number]

    def __str__(self):
        return "made-up frames"


def found(folder, one, other, **settings):
    config = FlowConfig(**{"side": 10_000, "coarseness": 1, **settings})
    return Flows(config).between(Frames(folder, one, other), 0, 1)


@pytest.fixture(scope="module")
def store(clip, tmp_path_factory):
    config = ExtractConfig(fps=10, short_side=128)
    return FrameStore(extract_source(VideoFile(clip), tmp_path_factory.mktemp("frames"), config))


def test_a_translation_is_found_there_and_back(tmp_path):
    wide = texture(0, 140, 180)
    motion = found(tmp_path, wide[10:130, 10:170], wide[13:133, 5:165])  # what is at x comes to x + 5, y - 3
    inner = (slice(None), slice(16, -16), slice(16, -16))
    there, back = motion.there[inner], motion.back[inner]
    for field, x, y in ((there, 5, -3), (back, -5, 3)):
        assert abs(np.median(field[0]) - x) < 0.05
        assert abs(np.median(field[1]) - y) < 0.05
        assert np.abs(field - np.array([x, y])[:, None, None]).mean() < 0.1


def test_a_zoom_is_found(tmp_path):
    wide = texture(1, 160, 160)
    grown = cv2.warpAffine(wide, np.array([[1.06, 0, -0.06 * 79.5], [0, 1.06, -0.06 * 79.5]]), (160, 160))
    motion = found(tmp_path, wide, grown)
    y, x = np.mgrid[:160, :160]
    expected = 0.06 * (np.stack([x, y]) - 79.5)
    inner = (slice(None), slice(20, -20), slice(20, -20))
    assert np.abs(motion.there - expected)[inner].mean() < 0.1


def test_what_a_moving_square_hides_is_found(tmp_path):
    ground, square = texture(2, 128, 128, 3), texture(3, 40, 40, 3)
    frames = [ground.copy(), ground.copy()]
    frames[0][40:80, 30:70] = square
    frames[1][40:80, 38:78] = square
    motion = found(tmp_path, *frames)
    seen = correspond(motion, Box(0, 0, 128, 128), 128, 128, LIMITS)
    hidden = np.zeros((128, 128), dtype=bool)
    hidden[40:80, 70:78] = True
    assert seen.occluded[hidden].mean() > 0.7
    assert seen.occluded[~scipy.ndimage.binary_dilation(hidden, iterations=6)].mean() < 0.02


def test_of_a_square_whose_motion_is_known_exactly_what_it_hides_is_occluded():
    there, back = np.zeros((2, 2, 32, 32))
    there[0, 8:16, 6:14] = 5
    back[0, 8:16, 11:19] = -5
    seen = correspond(Motion(there, back, (32, 32)), Box(0, 0, 32, 32), 32, 32, LIMITS)
    expected = np.zeros((32, 32), dtype=bool)
    expected[8:16, 14:19] = True
    assert np.array_equal(seen.occluded, expected)
    assert seen.inside.all()
    back_again = correspond(Motion(there, back, (32, 32)).reversed(), Box(0, 0, 32, 32), 32, 32, LIMITS)
    expected = np.zeros((32, 32), dtype=bool)
    expected[8:16, 6:11] = True
    assert np.array_equal(back_again.occluded, expected)


def test_occlusion_begins_where_the_paper_says():
    there = np.random.default_rng(0).normal(0, 20, (100, 2))
    assert not occluded(there, -there).any()
    edge = np.sqrt(0.5 / 0.9)
    lengths = np.array([0.0, 0.74, edge - 1e-9, edge + 1e-9, 0.75, 30.0])
    assert edge == pytest.approx(0.745, abs=5e-4)
    along = np.stack([0.6 * lengths, -0.8 * lengths], axis=-1)
    assert occluded(along, np.zeros_like(along)).tolist() == [False] * 3 + [True] * 3


def test_a_constant_flow_leaves_the_view_at_one_border():
    there = np.broadcast_to(np.array([3.0, -2.0])[:, None, None], (2, 10, 20))
    seen = correspond(Motion(there, -there, (20, 10)), Box(0, 0, 10, 10), 10, 10, LIMITS)
    expected = np.ones((10, 10), dtype=bool)
    expected[:, 7:] = False
    expected[:2] = False
    assert np.array_equal(seen.inside, expected)
    assert not seen.occluded.any()
    assert np.allclose(seen.flow, np.array([3.0, -2.0])[:, None, None])


def test_flow_is_read_between_its_places_as_scipy_does():
    rng = np.random.default_rng(0)
    motion = Motion(rng.normal(size=(2, 7, 11)), rng.normal(size=(2, 7, 11)), (88, 63))
    points = rng.uniform(-10, 100, (5, 40, 2))
    rows, columns = points[..., 1] * 7 / 63 - 0.5, points[..., 0] * 11 / 88 - 0.5
    for read, field in ((motion.at, motion.there), (motion.returning, motion.back)):
        expected = [scipy.ndimage.map_coordinates(part, [rows, columns], order=1, mode="nearest") for part in field]
        assert np.allclose(read(points), np.stack(expected, axis=-1), atol=1e-12)
    one = Motion(np.full((2, 1, 1), 2.0), np.zeros((2, 1, 1)), (8, 8))
    assert np.allclose(one.at(points), 2.0)


def test_points_of_a_view_are_found_point_by_point():
    rng = np.random.default_rng(1)
    there, back = rng.normal(0, 4, (2, 2, 6, 9))
    motion, box, side, points = Motion(there, back, (90, 60)), Box(13, 7, 40, 30), 64, 8
    seen = correspond(motion, box, side, points, LIMITS)
    for row in range(points):
        for column in range(points):
            x, y = 13 + 40 * (column + 0.5) / points, 7 + 30 * (row + 0.5) / points
            dx, dy = motion.at(np.array([x, y]))
            ex, ey = motion.returning(np.array([x + dx, y + dy]))
            f, b = (dx * 64 / 40, dy * 64 / 30), (ex * 64 / 40, ey * 64 / 30)
            assert seen.flow[:, row, column] == pytest.approx(f, rel=1e-6)
            assert seen.inside[row, column] == (13 <= x + dx <= 53 and 7 <= y + dy <= 37)
            missed = (f[0] + b[0]) ** 2 + (f[1] + b[1]) ** 2
            assert seen.occluded[row, column] == (missed > 0.1 * (f[0] ** 2 + f[1] ** 2 + b[0] ** 2 + b[1] ** 2) + 0.5)


def test_it_brings_frames_of_a_real_video_together(store):
    one, other = (store.read(number).astype(np.float32) for number in (4, 6))
    motion = Flows(SMALL).between(store, 4, 6)
    height, width = one.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    found = motion.at(np.stack([x, y], axis=-1) + 0.5).astype(np.float32)
    carried = cv2.remap(other, x + found[..., 0], y + found[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    assert np.abs(carried - one).mean() < 0.6 * np.abs(other - one).mean()


def test_it_is_computed_once_and_kept_under_a_name_that_says_how(tmp_path):
    wide = texture(0, 80, 100)
    frames = Frames(tmp_path, wide[:64, :96], wide[2:66, 3:99])
    flows = Flows(FlowConfig(coarseness=4))
    first = flows.between(frames, 0, 1)
    assert frames.reads == 2
    path = tmp_path / "made-up.flow" / "dis-medium-384px-4" / "000000-000001.npy"
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]
    again = flows.between(frames, 0, 1)
    assert frames.reads == 2
    assert np.array_equal(first.there, again.there)
    assert np.load(path).shape == (2, 2, 16, 24)
    backward = flows.between(frames, 1, 0)
    assert np.array_equal(backward.there, first.back)
    others = [FlowConfig(), FlowConfig(preset="fast"), FlowConfig(side=200)]
    assert len({flows.name, *(config.name() for config in others)}) == 4


def test_flow_of_reduced_frames_is_in_pixels_of_the_frames(tmp_path):
    wide = cv2.resize(texture(0, 100, 130), (520, 400), interpolation=cv2.INTER_CUBIC)
    frames = wide[20:380, 20:500], wide[32:392, 4:484]
    motion = found(tmp_path, *frames, side=90, coarseness=8)
    assert motion.there.shape == (2, 12, 15)
    inner = motion.there[:, 3:-3, 3:-3].reshape(2, -1)
    assert np.abs(np.median(inner, axis=1) - [16, -12]).max() < 0.5


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    def interrupted(file, array):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    frames = Frames(tmp_path, texture(0, 40, 60), texture(1, 40, 60))
    with monkeypatch.context() as patch:
        patch.setattr(flow.np, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Flows(SMALL).between(frames, 0, 1)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]
    assert np.isfinite(Flows(SMALL).between(frames, 0, 1).there).all()


def compute(store, number):
    torch.set_num_threads(1)
    store, flows = FrameStore(Path(store)), Flows(SMALL)
    ready = [store.path.with_name(f"{worker}.ready") for worker in range(2)]
    ready[int(number)].touch()
    while not all(file.exists() for file in ready):
        pass
    found = np.stack([flows.between(store, first, first + 2).there for first in range(6)])
    np.save(store.path.with_name(f"found{number}"), found)


def test_workers_share_it(store, tmp_path, start):
    store = copied(store, tmp_path)
    code = "import runpy, sys; runpy.run_path(sys.argv[1])['compute'](*sys.argv[2:])"
    workers = [start("-c", code, __file__, store.path, number) for number in range(2)]
    assert [worker.wait(120) for worker in workers] == [0, 0], [worker.err() for worker in workers]
    one, other = (tmp_path / f"found{number}.npy" for number in range(2))
    assert one.read_bytes() == other.read_bytes()
    one.unlink()
    other.unlink()
    files = [path.name for path in tmp_path.rglob("*.npy")]
    assert sorted(files) == [f"{first:06d}-{first + 2:06d}.npy" for first in range(6)]


def copied(store, folder):
    return FrameStore(shutil.copy(store.path, folder / store.path.name))


def test_a_frame_and_itself_need_no_flow(tmp_path):
    frames = Frames(tmp_path, texture(0, 40, 60))
    motion = Flows(SMALL).between(frames, 0, 0)
    assert not motion.at(np.random.default_rng(0).uniform(0, 40, (9, 2))).any()
    assert not list(tmp_path.iterdir())
    assert frames.reads == 0


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY rest is lost"])
def test_a_damaged_file_is_named(tmp_path, damage):
    frames = Frames(tmp_path, texture(0, 40, 60), texture(1, 40, 60))
    flows = Flows(SMALL)
    flows.between(frames, 0, 1)
    (path,) = tmp_path.rglob("*.npy")
    path.write_bytes(damage)
    with pytest.raises(InputError, match=r"000000-000001.npy cannot be read .*delete it, and it is made anew"):
        flows.between(frames, 0, 1)
    np.save(path, np.zeros((2, 3), dtype=np.float16))
    with pytest.raises(InputError, match="holds no flow; delete it"):
        flows.between(frames, 0, 1)


def test_without_opencv_one_is_told_how_to_install_it(monkeypatch):
    flow._estimator.cache_clear()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match=r"cv2 is not installed; install it with: .*\[flow\]"):
        Flows(SMALL)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of RAFT, random: what torchvision's are is not at hand."""
    folder = tmp_path_factory.mktemp("raft")
    torch.manual_seed(0)
    torch.save(raft_small(weights=None).state_dict(), folder / "small.pth")
    save_file(raft_large(weights=None).state_dict(), folder / "large.safetensors")
    return folder


def test_raft_is_torchvisions(weights, store, tmp_path, one_thread):
    store = copied(store, tmp_path)
    config = FlowConfig("raft", str(weights / "small.pth"), iterations=2, side=128, coarseness=1)
    motion = Flows(config).between(store, 0, 2)
    network = raft_small(weights=None)
    network.load_state_dict(torch.load(weights / "small.pth", weights_only=True))
    width, height = store.size
    assert (height, width % 8 != 0) == (128, True)
    frames = [
        torch.nn.functional.interpolate(
            torch.from_numpy(store.read(n)).permute(2, 0, 1)[None], (128, round(width / 8) * 8), mode="bicubic",
            antialias=True,
        )
        for n in (0, 2)
    ]  # fmt: skip
    one, other = OpticalFlow()(*frames)
    with torch.no_grad():
        expected = network.eval()(one, other, num_flow_updates=2)[-1][0].numpy()
    expected[0] *= width / (round(width / 8) * 8)
    assert np.allclose(motion.there, expected, rtol=2e-3, atol=2e-3)
    with torch.no_grad():
        expected = network(other, one, num_flow_updates=2)[-1][0].numpy()
    assert np.allclose(motion.back[1], expected[1], rtol=2e-3, atol=2e-3)


def test_raft_is_known_by_its_weights(weights, tmp_path):
    assert sum(p.numel() for p in load_raft(weights / "small.pth").parameters()) == 990162
    large = load_raft(weights / "large.safetensors")
    assert sum(p.numel() for p in large.parameters()) == 5257536
    assert not large.training
    names = {FlowConfig("raft", str(weights / name)).name() for name in ("small.pth", "large.safetensors")}
    assert len(names) == 2
    before = torch.random.get_rng_state()
    load_raft(weights / "small.pth")
    assert torch.equal(torch.random.get_rng_state(), before)


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_what_is_no_raft_is_refused_and_no_code_is_run(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state": Harm()}, tmp_path / "harm.pth")
    (tmp_path / "text.pth").write_text("weights")
    torch.save([1, 2], tmp_path / "list.pth")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    for name in ("harm.pth", "text.pth", "list.pth", "other.safetensors"):
        with pytest.raises(InputError, match=rf"{name} does not hold the weights of torchvision's raft_small"):
            load_raft(tmp_path / name)
    assert not (tmp_path / "harm").exists()
    with pytest.raises(InputError, match=r"no\.pth does not exist"):
        Flows(FlowConfig("raft", "no.pth"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"estimator": "raft"}, "got raft and none"),
        ({"weights": "raft.pth"}, "got dis and raft.pth"),
        ({"side": 0}, "must be positive"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(InputError, match=message):
        FlowConfig(**settings)


def test_what_is_missing_is_computed_ahead(tmp_path, monkeypatch):
    frames = Frames(tmp_path, *(texture(number, 40, 60) for number in range(4)))
    flows = Flows(SMALL)
    flows.between(frames, 0, 1)
    flows.fill([(frames, 0, 1), (frames, 1, 2), (frames, 2, 2)], torch.device("cpu"))
    reads = frames.reads
    assert reads == 4
    flows.between(frames, 1, 2)
    assert frames.reads == reads
    monkeypatch.setattr(flow, "stop", SimpleNamespace(asked=lambda: True))
    with pytest.raises(InputError, match="stopped while optical flow was computed"):
        flows.fill([(frames, 2, 3)], torch.device("cpu"))


def test_a_video_of_few_pixels_will_do(tmp_path):
    path = tmp_path / "few.mp4"
    write_video(path, (texture(0, 48, 80)[:32, n : n + 32] for n in range(8)), 10)
    store = FrameStore(extract_source(VideoFile(path), tmp_path / "frames", ExtractConfig()))
    assert np.isfinite(Flows(FlowConfig()).between(store, 0, 3).there).all()
