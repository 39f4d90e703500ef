"""Zarr in diffusion policy's layout (`ReplayBuffer`), written with zarr: v2 and v3, shards, ZIP files, JPEG XL."""

import json
import pickle
import shutil
import sys

import numpy as np
import pytest

from video_distilled_encoder.errors import InputError
from video_distilled_encoder.sources import find_sources, look_for_sources
from video_distilled_encoder.sources.source import Asked

zarr = pytest.importorskip("zarr")
if int(zarr.__version__.split(".")[0]) < 3:
    pytest.skip("zarr before 3 writes no v3", allow_module_level=True)

FPS = 10


def write(path, coded, kind):
    """Write all episodes into an array a camera, whose chunks do not end where episodes do."""
    store = zarr.storage.ZipStore(path, mode="w") if kind.endswith("zip") else str(path)
    version = 3 if kind.startswith("v3") else 2
    root = zarr.open_group(store, mode="w", zarr_format=version)
    data, meta = root.create_group("data"), root.create_group("meta")
    ends = np.cumsum(coded.lengths)
    meta.create_array("episode_ends", data=ends)
    options = {"chunks": (5, 48, 64, 3)}
    if kind == "v3-shards":
        options = {"chunks": (1, 48, 64, 3), "shards": (4, 48, 64, 3)}
    if kind == "v2-jpegxl-zip":
        codecs = pytest.importorskip("imagecodecs.numcodecs")
        codecs.register_codecs(verbose=False)
        options = {"chunks": (1, 48, 64, 3), "compressors": codecs.Jpegxl(level=99, numthreads=1)}
    for camera, name in enumerate(coded.cameras):
        pictures = [coded.picture(camera, e, frame) for e in range(3) for frame in range(coded.lengths[e])]
        values = np.stack([*pictures, np.zeros_like(pictures[0])])
        if kind == "v2-float":
            values = values.astype(np.float32)
        if kind == "v3-float-planes":
            values, options = (values / 255).astype(np.float32).transpose(0, 3, 1, 2), {"chunks": (5, 3, 48, 64)}
        data.create_array(name, shape=values.shape, dtype=values.dtype, **options)[:] = values
    data.create_array("action", data=np.zeros((ends[-1], 2), np.float32))
    data.create_array("keypoint", data=np.zeros((ends[-1], 9, 2), np.float32))
    data.create_array("left_depth", data=np.zeros((ends[-1], 48, 64), np.uint16))
    if kind.endswith("zip"):
        store.close()
    return path


KINDS = ["v2", "v3", "v3-shards", "v2-zip", "v3-zip", "v2-float", "v3-float-planes", "v2-jpegxl-zip"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_is_of_its_camera_episode_and_time(kind, coded, tmp_path):
    path = write(tmp_path / "x", coded, kind)
    found = look_for_sources([path], Asked(fps=FPS))
    assert [line.split(", ", 1)[1] for line in found.left_out] == [
        "left_depth: uint16 of 48x64, no pictures in colour",
        "left: 1 pictures behind the last episode's end",
        "right: 1 pictures behind the last episode's end",
    ]
    sources = pickle.loads(pickle.dumps(found.sources))
    assert [(source.camera, source.episode) for source in sources] == [(c, e) for c in coded.cameras for e in range(3)]
    assert len({source.identity() for source in sources}) == 6
    for source in sources:
        coded.check(source, coded.cameras.index(source.camera), source.episode, 1 / FPS)


def test_a_rate_and_the_ends_of_episodes_are_demanded(coded, tmp_path):
    path = write(tmp_path / "x.zarr", coded, "v2")
    with pytest.raises(InputError, match=r"x\.zarr: 2 arrays of pictures without a clock; .*--source-fps"):
        find_sources([path])
    zarr.open_group(str(path), mode="a")["meta/episode_ends"][1] = 3
    with pytest.raises(InputError, match=r"x\.zarr: meta/episode_ends does not ascend"):
        find_sources([path], Asked(fps=FPS))
    shutil.rmtree(path / "meta")
    with pytest.raises(InputError, match=r"x\.zarr: a Zarr without meta/episode_ends"):
        find_sources([path], Asked(fps=FPS))


@pytest.mark.filterwarnings("ignore:left out")
def test_the_identity_is_of_the_chunks_that_hold_the_episode(coded, tmp_path):
    path = write(tmp_path / "x.zarr", coded, "v2")
    sources = find_sources([path], Asked("left", fps=FPS))
    before = [source.identity() for source in sources]
    zarr.open_group(str(path), mode="a")["data/left"][30] = 9
    assert [source.identity() == old for source, old in zip(sources, before, strict=True)] == [True, True, False]
    assert find_sources([path], Asked("left", fps=20))[0].identity() != before[0]


@pytest.mark.filterwarnings("ignore:left out")
@pytest.mark.parametrize(("kind", "chunk"), [("v2", "5.0.0.0"), ("v3", "c/5/0/0/0"), ("v3-shards", "c/6/0/0/0")])
def test_missing_and_damaged_chunks_are_named_with_their_episode(kind, chunk, coded, tmp_path):
    path = write(tmp_path / "x.zarr", coded, kind)
    first, second, third = find_sources([path], Asked("left", fps=FPS))
    (path / "data" / "left" / chunk).unlink()
    for read in (third.identity, lambda: list(third.frames())):
        with pytest.raises(InputError, match=rf"x\.zarr, left, episode 2.*data/left/{chunk} is missing"):
            read()
    (path / "data" / "left" / chunk).write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"x\.zarr, left, episode 2.*x\.zarr is damaged"):
        list(third.frames())
    coded.check(first, 0, 0, 1 / FPS)
    coded.check(second, 0, 1, 1 / FPS)


@pytest.mark.filterwarnings("ignore:left out")
def test_an_episode_beyond_the_pictures_and_a_cut_zip_are_named(coded, tmp_path):
    path = write(tmp_path / "x.zarr", coded, "v2")
    zarr.open_group(str(path), mode="a")["meta/episode_ends"][2] = 99
    third = find_sources([path], Asked("left", fps=FPS))[2]
    with pytest.raises(InputError, match=r"x\.zarr, episode 2: meta/episode_ends has it end at 99, and left holds 37"):
        list(third.frames())
    path = write(tmp_path / "y.zip", coded, "v2-zip")
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(InputError, match=r"y\.zip is damaged, or was not written to its end"):
        find_sources([path], Asked(fps=FPS))


def test_without_imagecodecs_the_extra_is_named(coded, tmp_path, monkeypatch):
    path = write(tmp_path / "x", coded, "v2")
    described = path / "data" / "left" / ".zarray"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"compressor": {"id": "imagecodecs_jpegxl"}}))
    registry = pytest.importorskip("numcodecs.registry")
    for known in (registry.codec_registry, registry.entries):
        monkeypatch.delitem(known, "imagecodecs_jpegxl", raising=False)
    for name in ("imagecodecs", "imagecodecs.numcodecs"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"that imagecodecs reads .*pip install 'video_distilled_encoder\[robot\]'"):
        find_sources([path], Asked(fps=FPS))


def test_without_zarr_the_extra_is_named(coded, tmp_path, monkeypatch):
    path = write(tmp_path / "x.zarr", coded, "v2")
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(InputError, match=r"zarr is not installed.*\[robot\]"):
        find_sources([path], Asked(fps=FPS))
