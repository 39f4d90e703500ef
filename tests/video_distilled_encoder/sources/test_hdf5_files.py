"""HDF5 files in the layouts of ALOHA's record_episodes.py, of robomimic and of LIBERO, written with h5py."""

import io
import json
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from video_distilled_encoder.errors import InputError
from video_distilled_encoder.sources import find_sources, look_for_sources
from video_distilled_encoder.sources.source import Asked

h5py = pytest.importorskip("h5py")

FPS = 20


def in_file(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def padded(files):
    """Return the files as rows of one length, as ALOHA's compress_data.py does."""
    rows = np.zeros((len(files), max(map(len, files))), np.uint8)
    for row, file in zip(rows, files, strict=True):
        row[: len(file)] = np.frombuffer(file, np.uint8)
    return rows


def views(coded, episode):
    return {
        name: np.stack([coded.picture(camera, episode, frame) for frame in range(coded.lengths[episode])])
        for camera, name in enumerate(coded.cameras)
    }


def write_aloha(root, coded, compress):
    root.mkdir()
    for episode, length in enumerate(coded.lengths):
        with h5py.File(root / f"episode_{episode}.hdf5", "w") as file:
            file.attrs["sim"] = False
            file.attrs["compress"] = compress
            file["action"] = np.zeros((length, 14), np.float32)
            file["observations/qpos"] = np.zeros((length, 14), np.float32)
            for name, pictures in views(coded, episode).items():
                key = f"observations/images/{name}"
                if compress:
                    file[key] = padded([in_file(picture) for picture in pictures])
                else:
                    file.create_dataset(key, data=pictures, chunks=(1, *pictures.shape[1:]))
    return root


def write_robomimic(path, coded, suffix="_image", libero=False):
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        if libero:
            data.attrs["macros_image_convention"] = "opengl"
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": {"control_freq": FPS}})
        for episode, length in enumerate(coded.lengths):
            demo = data.create_group(f"demo_{episode}")
            demo.attrs["num_samples"] = length
            demo["actions"] = np.zeros((length, 7))
            for name, pictures in views(coded, episode).items():
                # as LIBERO draws: upside down
                stored = pictures[:, ::-1] if libero else pictures
                demo.create_dataset(f"obs/{name}{suffix}", data=stored, chunks=(5, *stored.shape[1:]), compression=1)
                demo[f"next_obs/{name}{suffix}"] = stored
            demo["obs/left_depth"] = np.zeros((length, 48, 64, 1), np.float32)
    return path


@pytest.mark.parametrize("compress", [False, True])
def test_every_frame_of_aloha_is_of_its_camera_episode_and_time(coded, tmp_path, compress):
    root = write_aloha(tmp_path / "fold", coded, compress)
    sources = pickle.loads(pickle.dumps(find_sources([root], Asked(fps=50))))
    assert [(source.camera, source.episode) for source in sources] == [
        (camera, episode) for episode in range(3) for camera in coded.cameras
    ]
    assert {source.group for source in sources} == {f"{root}/{camera}" for camera in coded.cameras}
    assert len({source.identity() for source in sources}) == 6
    for source in sources:
        coded.check(source, coded.cameras.index(source.camera), source.episode, 1 / 50)


@pytest.mark.parametrize("libero", [False, True])
def test_every_frame_of_robomimic_and_libero_is_of_its_camera_episode_and_time(coded, tmp_path, libero):
    suffix = "_rgb" if libero else "_image"
    path = write_robomimic(tmp_path / "demo.hdf5", coded, suffix, libero)
    found = look_for_sources([path], Asked(fps=99))  # the file knows better
    assert {line.split(", ", 1)[1] for line in found.left_out} == {
        f"next_obs/left{suffix}: the same pictures, a step later",
        f"next_obs/right{suffix}: the same pictures, a step later",
        "left_depth: float32 of 48x64x1, no pictures in colour",
    }
    cameras = [f"{camera}{suffix}" for camera in coded.cameras]
    assert [(source.camera, source.episode) for source in found.sources] == [(c, e) for e in range(3) for c in cameras]
    assert {source.group for source in found.sources} == {f"{path}/{camera}" for camera in cameras}
    assert len({source.identity() for source in found.sources}) == 6
    for source in found.sources:
        coded.check(source, cameras.index(source.camera), source.episode, 1 / FPS)


def test_a_rate_is_demanded_where_none_is_told(coded, tmp_path):
    root = write_aloha(tmp_path / "fold", coded, compress=True)
    with pytest.raises(InputError, match=r"episode_0\.hdf5: 2 arrays of pictures without a clock; .*--source-fps"):
        find_sources([root])


@pytest.mark.filterwarnings("ignore:left out")
def test_red_and_blue_are_swapped_on_demand_and_episodes_chosen(coded, tmp_path):
    path = write_robomimic(tmp_path / "demo.hdf5", coded)
    usual, swapped = (find_sources([path], Asked("left*", range(1, 2), bgr=bgr))[0] for bgr in (False, True))
    assert (usual.episode, usual.identity()) != (1, swapped.identity())
    for one, other in zip(usual.frames(), swapped.frames(), strict=True):
        assert np.array_equal(one.image, other.image[..., ::-1])


def test_damage_is_named_with_its_episode(coded, tmp_path):
    root = write_aloha(tmp_path / "fold", coded, compress=True)
    with h5py.File(root / "episode_1.hdf5", "a") as file:
        file["observations/images/left"][4, 300:] = 7
        length = len(file["observations/images/right"])
        del file["observations/images/right"]
        file["observations/images/right"] = padded([in_file(coded.picture(1, 1, 0))] * (length - 2))
    path = root / "episode_2.hdf5"
    path.write_bytes(path.read_bytes()[:-1000])
    sources = find_sources([root], Asked(fps=50))
    assert len(sources) == 5
    for source in sources[2:4]:
        with pytest.raises(InputError, match=r"episode_1\.hdf5, episode 1: its lengths differ: .*left 9, .*right 7"):
            list(source.frames())
    with pytest.raises(InputError, match=r"episode_2\.hdf5 is damaged, or was not written to its end"):
        sources[4].info()
    with h5py.File(root / "episode_0.hdf5", "a") as file:
        file["observations/images/left"][4, 300:] = 7
    with pytest.raises(InputError, match=r"episode_0\.hdf5, left, episode 0, frame 4: the picture is damaged"):
        list(sources[0].frames())


def test_other_arrays_are_no_pictures(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["poses"] = np.zeros((5, 4, 4))
        file["names"] = np.array([b"one", b"two"])
    with pytest.raises(InputError, match=r"x\.h5: no arrays of pictures"):
        find_sources([tmp_path / "x.h5"], Asked(fps=10))


def test_without_h5py_the_extra_is_named(coded, tmp_path, monkeypatch):
    path = write_robomimic(tmp_path / "demo.hdf5", coded)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"h5py is not installed.*\[robot\]"):
        find_sources([path])
