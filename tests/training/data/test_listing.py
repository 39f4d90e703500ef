import base64
import io
import json
import os
import re
import shlex
import shutil
import time
from argparse import ArgumentTypeError
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.common.spread import spread
from training.data.clips import ClipIndex, ClipsConfig
from training.data.frame_store import FrameStore
from training.data.listing import describe
from training.extract import main
from video_distilled_encoder.sources import look_for_sources
from video_distilled_encoder.sources.options import parse_range
from video_distilled_encoder.sources.source import Asked
from video_distilled_encoder.video import probe


@pytest.fixture
def recordings(tmp_path, make_video):
    """A LeRobot data set of v2 with two cameras and three episodes, videos beside it, and a folder of pictures."""
    feature = {"dtype": "video", "shape": [48, 64, 3], "names": ["height", "width", "channels"]}
    features = {"top": feature, "wrist": feature, "depth": feature | {"info": {"video.is_depth_map": True}}}
    root = tmp_path / "all" / "push"
    (root / "meta").mkdir(parents=True)
    info = {
        "codebase_version": "v2.0",
        "fps": 10,
        "features": features,
        "video_path": "{video_key}/{episode_index}.mp4",
    }
    (root / "meta" / "info.json").write_text(json.dumps(info))
    lines = [json.dumps({"episode_index": number, "length": 12 + 2 * number}) for number in range(3)]
    (root / "meta" / "episodes.jsonl").write_text("\n".join(lines))
    for number, seconds in enumerate((1.2, 1.4, 1.6)):
        for camera, size in (("top", (64, 48)), ("wrist", (64, 64))):
            make_video(f"all/push/{camera}/{number}.mp4", seconds, size=size)
    make_video("all/dog.mp4", 3)
    (tmp_path / "all" / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "all" / "frames").mkdir()
    for number in range(4):
        Image.fromarray(np.full((32, 48, 3), number, np.uint8)).save(tmp_path / "all" / "frames" / f"{number}.png")
    return tmp_path / "all"


def test_the_list_names_groups_and_what_is_left_out_and_decodes_nothing(run_command, recordings, capsys, monkeypatch):
    for reader in ("lerobot", "video_files"):
        monkeypatch.setattr(f"video_distilled_encoder.sources.{reader}.read_frames", None)
    assert run_command(main, recordings, "--list") is None
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    assert rows[f"{recordings}/push/top"] == ["3", "0", "to", "2", "0.00", "10", "64x48"]
    assert rows[str(recordings)] == ["1", "-", "0.00", "10", "64x48"]
    assert "7 recordings in 3 groups, 0.00 hours" in lines
    assert f"left out: {recordings}/push, depth: depth" in lines
    assert any(line.startswith("left out") and "4 pictures without a clock" in line for line in lines)
    assert any(line.startswith("cannot be read") and "bad.mp4" in line for line in lines)
    assert not list(recordings.rglob("*.zip"))


@pytest.mark.filterwarnings("ignore:left out", "ignore:of what is in")
def test_what_is_asked_for_is_extracted_and_no_clip_leaves_its_episode(run_command, recordings, tmp_path, capsys):
    chosen = "--cameras", "t*", "--episodes", "1:", "--source-fps", "8", "--frames", tmp_path / "stores"
    assert run_command(main, recordings / "push", recordings / "frames", *chosen, "--workers", 1) is None
    stores = {store.source: store for store in map(FrameStore, (tmp_path / "stores").rglob("*.zip"))}
    assert {name: len(store) for name, store in stores.items()} == {
        "push/top/episode_000001": 14,
        "push/top/episode_000002": 16,
        "frames": 4,
    }
    assert np.allclose(stores["frames"].times, np.arange(4) / 8)
    episodes = [store for name, store in stores.items() if name != "frames"]
    assert len(ClipIndex(episodes, ClipsConfig(3, 0.5), 0).frames) == 14 + 16 - 2 * 10
    assert "3 frame stores" in capsys.readouterr().out
    assert "must be positive" in run_command(main, recordings, "--source-fps", 0)


@pytest.fixture
def one_of_each(make_video, lerobot, aloha, tmp_path):
    """Return a recording of each row of README's table, by a word of the row, and how many stores its command makes."""
    make_video("my-videos/a.mp4")
    (tmp_path / "recordings").mkdir()
    with (tmp_path / "recordings" / "x.mcap").open("wb") as file:
        out = pytest.importorskip("mcap.writer").Writer(file)
        out.start()
        schema = out.register_schema("foxglove.CompressedImage", "jsonschema", b"{}")
        for camera in ("/wrist/image", "/front/image"):
            channel = out.register_channel(camera, "json", schema)
            for number in range(3):
                said = {"timestamp": {"sec": 1000 + number, "nsec": 0}, "format": "png"}
                said["data"] = base64.b64encode(picture(number)).decode()
                out.add_message(channel, number, json.dumps(said).encode(), number)
        out.finish()
    root = tmp_path / "bridge" / "1.0.0"
    root.mkdir(parents=True)
    image = {"image": {"shape": {"dimensions": ["32", "48", "3"]}, "dtype": "uint8"}}
    step = {"featuresDict": {"features": {"observation": {"featuresDict": {"features": {"top": image}}}}}}
    features = {"featuresDict": {"features": {"steps": {"sequence": {"feature": step}}}}}
    (root / "features.json").write_text(json.dumps(features))
    facts = {"name": "bridge", "splits": [{"name": "train", "shardLengths": ["1"]}]}
    (root / "dataset_info.json").write_text(json.dumps(facts))
    out = pytest.importorskip("tfrecord").TFRecordWriter(str(root / "bridge-train.tfrecord-00000-of-00001"))
    out.write({"steps/observation/top": ([picture(number) for number in range(3)], "byte")})
    out.close()
    (tmp_path / "my-frames").mkdir()
    for number in range(4):
        (tmp_path / "my-frames" / f"{number}.png").write_bytes(picture(number))
    return {
        "my-videos/": (tmp_path / "my-videos", 1),
        "my-dataset/": (lerobot, 3),
        "recordings/": (tmp_path / "recordings", 1),
        "episodes/": (aloha, 6),
        "bridge/1.0.0/": (root, 1),
        "my-frames/": (tmp_path / "my-frames", 1),
    }


def picture(number):
    buffer = io.BytesIO()
    Image.fromarray(np.full((32, 48, 3), 60 * number, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:of what is in")
def test_the_commands_of_the_readme_do_what_it_says(run_command, one_of_each, tmp_path, capsys):
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    table = readme.split("| recordings | command |", 1)[1].split("\n\n", 1)[0]
    commands = re.findall(r"`python -m training\.extract ([^`]*)`", table)
    assert [shlex.split(command)[0] for command in commands] == list(one_of_each)
    for command in commands:
        place, *options = shlex.split(command)
        path, count = one_of_each[place]
        frames = tmp_path / "stores" / place
        assert run_command(main, path, *options, "--frames", frames, "--workers", 1) is None
        assert f"{count} frame stores" in capsys.readouterr().out
        assert all(len(FrameStore(store)) for store in frames.rglob("*.zip"))


def test_many_files_are_looked_at_once_each_and_by_several_processes_alike(tmp_path, monkeypatch, make_video, aloha):
    rosbag1 = pytest.importorskip("rosbags.rosbag1")
    typesys = pytest.importorskip("rosbags.typesys")
    store = typesys.get_typestore(typesys.Stores.ROS1_NOETIC)
    kind = "sensor_msgs/msg/CompressedImage"
    with rosbag1.Writer(tmp_path / "0.bag") as bag:
        for topic in ("/left", "/right"):
            channel = bag.add_connection(topic, kind, typestore=store)
            for number in range(4):
                moment = store.types["builtin_interfaces/msg/Time"](sec=1000 + number, nanosec=0)
                header = store.types["std_msgs/msg/Header"](seq=number, stamp=moment, frame_id="")
                data = np.frombuffer(picture(number), np.uint8)
                said = store.types[kind](header=header, format="png", data=data)
                bag.write(channel, 10**12 + number, store.serialize_ros1(said, kind))
    video = make_video("0.mp4")
    for number in range(1, 30):
        shutil.copy(video, tmp_path / f"{number}.mp4")
        shutil.copy(tmp_path / "0.bag", tmp_path / f"{number}.bag")
        shutil.copy(aloha / "episode_0.hdf5", tmp_path / f"episode_{number}.hdf5")
    (tmp_path / "7.bag").write_bytes(b"#ROSBAG V2.0\n and no more")
    opened = []
    rosbag_open = rosbag1.Reader.open
    monkeypatch.setattr(rosbag1.Reader, "open", lambda bag: opened.append(bag.path) or rosbag_open(bag))
    text = describe(look_for_sources([tmp_path], Asked(fps=10)))
    assert len(opened) == len(set(opened)) == 30
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()}
    assert rows[str(tmp_path)][:5] == ["30", "-", "0.02", "10", "64x48"]
    assert rows[f"{tmp_path}/left"] == ["29", "-", "0.03", "1", "48x32"]
    assert rows[f"{tmp_path}/wrist"][:4] == ["29", "1", "to", "29"]
    assert "cannot be read: " in text
    monkeypatch.setattr("training.common.spread._PATIENCE", 0.0)
    each = partial(spread, workers=2)
    assert describe(look_for_sources([tmp_path], Asked(fps=10), each), each) == text


def test_headers_are_remembered_until_the_file_changes_and_progress_is_shown(
    run_command, make_video, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("VDE_CACHE", str(tmp_path / "cache"))
    video, _ = make_video("all/0.mp4", 1), make_video("all/1.mp4", 2)
    other = make_video("other.mp4", 1, size=(96, 64))
    for path in (video, video.with_name("1.mp4")):
        os.utime(path, (time.time() - 60,) * 2)
    opened = []
    monkeypatch.setattr(
        "video_distilled_encoder.sources.video_files.probe", lambda path: opened.append(path.name) or probe(path)
    )
    listed = []
    for expected in (["0.mp4", "1.mp4"], [], ["0.mp4"], ["0.mp4"]):
        opened.clear()
        assert run_command(main, tmp_path / "all", "--list") is None
        listed.append(capsys.readouterr())
        assert opened == expected
        if len(listed) == 2:  # another file, of another size, and too young to be remembered
            shutil.copy(other, video)
    assert listed[0].out == listed[1].out != listed[2].out == listed[3].out
    assert "64x48, 96x64" in listed[2].out
    assert "list" in listed[0].err
    assert "0/2" in listed[0].err
    assert "0.00 hours" in listed[0].out


def test_ranges():
    assert [parse_range(text)[:3] for text in ("2:4", ":2", "7:")] == [range(2, 4), range(2), range(7, 10)]
    for text in ("4", "4:4", "a:b", "-1:2"):
        with pytest.raises(ArgumentTypeError, match="a range is written A:B"):
            parse_range(text)
