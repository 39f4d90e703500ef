"""RLDS in TFDS's published layout; the records are written by the package `tfrecord`, which has its own protobuf."""

import io
import json
import pickle
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from video_distilled_encoder.errors import InputError
from video_distilled_encoder.sources import find_sources, look_for_sources, tfrecords
from video_distilled_encoder.sources.source import Asked

tfrecord = pytest.importorskip("tfrecord")
pytest.importorskip("google_crc32c")

FPS = 5
SHARDS = {"train": [2, 0], "val": [1]}
"""Episodes in each file."""


def in_file(image, kind):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


def feature(name, **said):
    return {"pythonClassName": f"tensorflow_datasets.core.features.{name}", **said}


def image(channels=3, dtype="uint8"):
    shape = {"dimensions": ["48", "64", str(channels)]}
    return feature("image_feature.Image", image={"shape": shape, "dtype": dtype, "encodingFormat": "png"})


def features_dict(**features):
    return feature("features_dict.FeaturesDict", featuresDict={"features": features})


def write(root, coded):
    """Write a data set: pictures of the first camera as JPEGs, those of the second as PNGs."""
    root.mkdir(parents=True)
    observation = features_dict(
        left=image(), right=image(), depth=image(1, "uint16"), state=feature("tensor_feature.Tensor")
    )
    step = features_dict(observation=observation, is_first=feature("scalar.Scalar"))
    steps = feature("dataset_feature.Dataset", sequence={"feature": step})
    metadata = features_dict(picture=image())
    (root / "features.json").write_text(json.dumps(features_dict(steps=steps, episode_metadata=metadata)))
    splits = [{"name": name, "shardLengths": list(map(str, lengths))} for name, lengths in SHARDS.items()]
    (root / "dataset_info.json").write_text(json.dumps({"name": "toy", "version": "1.0.0", "splits": splits}))
    episode = 0
    for split, shards in SHARDS.items():
        for shard, count in enumerate(shards):
            out = tfrecord.TFRecordWriter(str(root / f"toy-{split}.tfrecord-{shard:05d}-of-{len(shards):05d}"))
            for _ in range(count):
                out.write(example(coded, episode))
                episode += 1
            out.close()
    return root


def example(coded, episode):
    length = coded.lengths[episode]
    views = {
        f"steps/observation/{name}": (
            [in_file(coded.picture(camera, episode, frame), ("JPEG", "PNG")[camera]) for frame in range(length)],
            "byte",
        )
        for camera, name in enumerate(coded.cameras)
    }
    first = np.arange(length) == 0
    return {
        "episode_metadata/picture": ([in_file(coded.picture(1, 2, 0), "PNG")], "byte"),
        **views,
        "steps/is_first": (first.astype(int).tolist(), "int"),
        "steps/observation/state": ([0.5] * 7 * length, "float"),
    }


def test_every_frame_is_of_its_camera_episode_and_time(coded, tmp_path):
    root = write(tmp_path / "toy" / "1.0.0", coded)
    found = look_for_sources([tmp_path / "toy"], Asked(fps=FPS))
    assert found.left_out == [f"{root}, steps/observation/depth: uint16 in 1 channels, no picture in colour"]
    sources = pickle.loads(pickle.dumps(found.sources))
    assert [(source.camera, source.episode) for source in sources] == [(c, e) for e in range(3) for c in coded.cameras]
    assert {source.group for source in sources} == {f"{root}/{camera}" for camera in coded.cameras}
    assert len({source.identity() for source in sources}) == 6
    for source in sources:
        coded.check(source, coded.cameras.index(source.camera), source.episode, 1 / FPS)


def test_a_rate_is_demanded(coded, tmp_path):
    root = write(tmp_path / "1.0.0", coded)
    with pytest.raises(InputError, match=r"steps/observation/left, .*right without a clock; .*--source-fps"):
        find_sources([root])


@pytest.mark.filterwarnings("ignore:left out")
def test_damage_is_named_with_its_episode(coded, tmp_path):
    root = write(tmp_path / "1.0.0", coded)
    train, val = root / "toy-train.tfrecord-00000-of-00002", root / "toy-val.tfrecord-00000-of-00001"
    whole = train.read_bytes()
    train.write_bytes(whole[:-10])
    val.unlink()
    first, second, third = find_sources([root], Asked("left", fps=FPS))
    coded.check(first, 0, 0, 1 / FPS)
    with pytest.raises(InputError, match=r"toy-train\.tfrecord-00000-of-00002 is cut within a record"):
        list(second.frames())
    with pytest.raises(InputError, match=r"val\.tfrecord-00000-of-00001 is missing, and with it the episodes 2 to 2"):
        list(third.frames())
    train.write_bytes(whole[:9] + b"x" + whole[10:])
    for source in find_sources([root], Asked("left", fps=FPS))[:2]:
        with pytest.raises(InputError, match=r"toy-train\.tfrecord-00000-of-00002 is damaged from byte 0 on"):
            source.identity()
    half = len(whole) // 4
    train.write_bytes(whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :])
    with pytest.raises(InputError, match=r"left, episode 0: its record .* is damaged: the checksum is another"):
        list(find_sources([root], Asked("left", fps=FPS))[0].frames())
    (root / "dataset_info.json").write_text("{}")
    with pytest.raises(InputError, match=r"features\.json or dataset_info\.json is malformed"):
        find_sources([root], Asked(fps=FPS))


@pytest.mark.filterwarnings("ignore:left out")
def test_a_record_without_the_camera_is_named(coded, tmp_path):
    root = write(tmp_path / "1.0.0", coded)
    out = tfrecord.TFRecordWriter(str(root / "toy-val.tfrecord-00000-of-00001"))
    out.write({name: value for name, value in example(coded, 2).items() if "left" not in name})
    out.close()
    with pytest.raises(InputError, match=r"left, episode 2: its record holds no steps/observation/left"):
        list(find_sources([root], Asked("left", fps=FPS))[2].frames())


@pytest.mark.filterwarnings("ignore:left out")
def test_more_episodes_than_are_told_are_not_silently_left_out(coded, tmp_path):
    root = write(tmp_path / "1.0.0", coded)
    shutil.copy(root / "toy-train.tfrecord-00000-of-00002", root / "toy-train.tfrecord-00001-of-00002")
    (other,) = (source for source in find_sources([root], Asked("left", fps=FPS)) if not source.camera)
    with pytest.raises(InputError, match=r"00001-of-00002 holds 2 episodes, and dataset_info\.json tells 0"):
        other.identity()
    facts = json.loads((root / "dataset_info.json").read_text())
    (root / "dataset_info.json").write_text(json.dumps(facts | {"fileFormat": "array_record"}))
    with pytest.raises(InputError, match="holds array_record files, and tfrecord files are read"):
        find_sources([root], Asked(fps=FPS))


def test_the_checksum_is_castagnolis():
    assert tfrecords._crc32c(b"123456789") == 0xE3069283  # RFC 3720, appendix B.4's check value


@pytest.mark.filterwarnings("ignore:left out")
def test_without_the_package_for_checksums_the_extra_is_named(coded, tmp_path, monkeypatch):
    root = write(tmp_path / "1.0.0", coded)
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    with pytest.raises(InputError, match=r"google_crc32c is not installed.*\[robot\]"):
        list(find_sources([root], Asked(fps=FPS))[0].frames())
