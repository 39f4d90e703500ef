"""Each format in every command that reads recordings, and what is said of each when it is damaged.

Two cameras see two episodes, whose pictures are all different; each is written by the packages that the formats have.
"""

import base64
import io
import json
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from training import report
from training.data.extraction import extract_all
from training.data.frame_store import ExtractConfig, open_stores
from video_distilled_encoder import encode
from video_distilled_encoder.errors import InputError, InputWarning
from video_distilled_encoder.sources import find_sources
from video_distilled_encoder.sources.mcap_files import McapTopic
from video_distilled_encoder.sources.source import Asked
from video_distilled_encoder.video import write_video

FPS, LENGTH = 8, 12
CAMERAS = ("front", "wrist")
ALL = [(camera, episode) for camera in CAMERAS for episode in range(2)]
ASKED = Asked(fps=FPS)
START = 1_700_000_000 * 10**9


def images(camera, episode):
    """Return (LENGTH, 48, 64, 3) pictures that H.264 keeps well."""
    rng = np.random.default_rng([CAMERAS.index(camera), episode])
    return np.kron(rng.integers(0, 255, (LENGTH, 3, 4, 3)), np.ones((1, 16, 16, 1))).astype(np.uint8)


def in_file(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def stamp_of(number):
    return START + number * 10**9 // FPS


def write_videos(root):
    for camera, episode in ALL:
        (root / camera).mkdir(parents=True, exist_ok=True)
        write_video(root / camera / f"{episode}.mp4", images(camera, episode), FPS)


def write_folders(root):
    for camera, episode in ALL:
        folder = root / f"{camera}_{episode}"
        folder.mkdir(parents=True)
        for number, image in enumerate(images(camera, episode)):
            (folder / f"{number}.png").write_bytes(in_file(image))


def write_lerobot(root, version, kind="video"):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    feature = {"dtype": kind, "shape": [48, 64, 3], "names": ["height", "width", "channels"]}
    place = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    if version == "v2.1":
        place = "chunk-{episode_chunk:03d}/episode_{episode_index:06d}"
    info = {"codebase_version": version, "fps": FPS, "features": dict.fromkeys(CAMERAS, feature)}
    info |= {"video_path": f"videos/{{video_key}}/{place}.mp4", "data_path": f"data/{place}.parquet"}
    info |= {"chunks_size": 1000, "total_episodes": 2}
    rows = [{"episode_index": episode, "length": LENGTH, "tasks": ["fold"]} for episode in range(2)]
    table = [
        {"episode_index": episode, "timestamp": number / FPS}
        | {
            camera: {"bytes": in_file(images(camera, episode)[number]), "path": None}
            for camera in CAMERAS * (kind == "image")
        }
        for episode in range(2)
        for number in range(LENGTH)
    ]
    where = {"chunk_index": 0, "file_index": 0, "episode_chunk": 0}

    def put(path, rows):
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(arrow.Table.from_pylist(rows), path)

    def film(path, pictures):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, pictures, FPS)

    for episode, row in enumerate(rows):
        for key in [f"videos/{camera}" for camera in CAMERAS] + ["data"]:
            row |= {f"{key}/chunk_index": 0, f"{key}/file_index": 0}
            row |= {
                f"{key}/from_timestamp": episode * LENGTH / FPS,
                f"{key}/to_timestamp": (episode + 1) * LENGTH / FPS,
            }
        if version == "v2.1":
            put(root / info["data_path"].format(**where, episode_index=episode), table[episode * LENGTH :][:LENGTH])
            for camera in CAMERAS * (kind == "video"):
                film(
                    root / info["video_path"].format(**where, episode_index=episode, video_key=camera),
                    images(camera, episode),
                )
    (root / "meta").mkdir(parents=True, exist_ok=True)
    (root / "meta" / "info.json").write_text(json.dumps(info))
    if version == "v2.1":
        told = [json.dumps({key: row[key] for key in ("episode_index", "length", "tasks")}) for row in rows]
        (root / "meta" / "episodes.jsonl").write_text("\n".join(told))
        return
    put(root / "meta/episodes/chunk-000/file-000.parquet", rows)
    put(root / info["data_path"].format(**where), table)
    for camera in CAMERAS * (kind == "video"):
        film(
            root / info["video_path"].format(**where, video_key=camera),
            [image for episode in range(2) for image in images(camera, episode)],
        )


def write_mcap(root):
    ros2 = pytest.importorskip("mcap_ros2.writer")
    header = "================\nMSG: std_msgs/Header\nbuiltin_interfaces/Time stamp\nstring frame_id\n"
    root.mkdir()
    for episode in range(2):
        with (root / f"{episode}.mcap").open("wb") as file, ros2.Writer(file, chunk_size=20_000) as out:
            kind = out.register_msgdef(
                "sensor_msgs/msg/CompressedImage", f"std_msgs/Header header\nstring format\nuint8[] data\n{header}"
            )
            for number in range(LENGTH):
                moment = stamp_of(number)
                stamp = {"stamp": {"sec": moment // 10**9, "nanosec": moment % 10**9}, "frame_id": ""}
                for camera in CAMERAS:
                    said = {"header": stamp, "format": "png", "data": in_file(images(camera, episode)[number])}
                    out.write_message(f"/{camera}", kind, said, log_time=moment, publish_time=moment)


def write_bags(root, kind):
    pytest.importorskip("rosbags.rosbag1")
    from rosbags import rosbag1, rosbag2
    from rosbags.typesys import Stores, get_typestore

    root.mkdir()
    store = get_typestore(Stores.ROS1_NOETIC if kind == "ros1" else Stores.ROS2_HUMBLE)
    name, types = "sensor_msgs/msg/CompressedImage", store.types
    for episode in range(2):
        bag = (
            rosbag1.Writer(root / f"{episode}.bag")
            if kind == "ros1"
            else rosbag2.Writer(root / str(episode), version=9, storage_plugin=rosbag2.StoragePlugin[kind.upper()])
        )
        with bag:
            channels = {camera: bag.add_connection(f"/{camera}", name, typestore=store) for camera in CAMERAS}
            for number in range(LENGTH):
                moment = stamp_of(number)
                stamp = types["builtin_interfaces/msg/Time"](sec=moment // 10**9, nanosec=moment % 10**9)
                sequence = {"seq": number} if kind == "ros1" else {}
                header = types["std_msgs/msg/Header"](stamp=stamp, frame_id="", **sequence)
                for camera in CAMERAS:
                    data = np.frombuffer(in_file(images(camera, episode)[number]), np.uint8)
                    said = types[name](header=header, format="png", data=data)
                    write = store.serialize_ros1 if kind == "ros1" else store.serialize_cdr
                    bag.write(channels[camera], moment, write(said, name))


def write_aloha(root):
    h5py = pytest.importorskip("h5py")
    root.mkdir()
    for episode in range(2):
        with h5py.File(root / f"episode_{episode}.hdf5", "w") as file:
            for camera in CAMERAS:
                seen = images(camera, episode)
                file.create_dataset(f"observations/images/{camera}", data=seen, chunks=(1, 48, 64, 3), compression=1)


def write_robomimic(root):
    h5py = pytest.importorskip("h5py")
    root.mkdir()
    with h5py.File(root / "demos.hdf5", "w") as file:
        for camera, episode in ALL:
            file.create_dataset(f"data/demo_{episode}/obs/{camera}", data=images(camera, episode), compression=1)
        for demo in file["data"].values():
            demo.attrs["num_samples"] = LENGTH


def write_zarr(root, kind):
    zarr = pytest.importorskip("zarr", "3")
    root.mkdir()
    path = root / ("set.zarr.zip" if kind == "zip" else "set.zarr")
    store = zarr.storage.ZipStore(path, mode="w") if kind == "zip" else str(path)
    group = zarr.open_group(store, mode="w", zarr_format=3 if kind == "v3" else 2)
    group.create_group("meta").create_array("episode_ends", data=np.array([LENGTH, 2 * LENGTH]))
    data = group.create_group("data")
    for camera in CAMERAS:
        seen = np.concatenate([images(camera, episode) for episode in range(2)])
        data.create_array(camera, data=seen, chunks=(4, 48, 64, 3))
    if kind == "zip":
        store.close()


def write_rlds(root):
    tfrecord = pytest.importorskip("tfrecord")
    root.mkdir()
    image = {"image": {"shape": {"dimensions": ["48", "64", "3"]}, "dtype": "uint8"}}
    step = {
        "featuresDict": {"features": {"observation": {"featuresDict": {"features": dict.fromkeys(CAMERAS, image)}}}}
    }
    features = {"featuresDict": {"features": {"steps": {"sequence": {"feature": step}}}}}
    (root / "features.json").write_text(json.dumps(features))
    facts = {"name": "toy", "splits": [{"name": "train", "shardLengths": ["1", "1"]}]}
    (root / "dataset_info.json").write_text(json.dumps(facts))
    for episode in range(2):
        out = tfrecord.TFRecordWriter(str(root / f"toy-train.tfrecord-0000{episode}-of-00002"))
        seen = {
            f"steps/observation/{camera}": (list(map(in_file, images(camera, episode))), "byte") for camera in CAMERAS
        }
        out.write({**seen, "steps/is_first": ([1] + [0] * (LENGTH - 1), "int")})
        out.close()


FORMATS = {
    "videos": write_videos,
    "lerobot-v2": lambda root: write_lerobot(root, "v2.1"),
    "lerobot-v3": lambda root: write_lerobot(root, "v3.0"),
    "lerobot-v3-pictures": lambda root: write_lerobot(root, "v3.0", "image"),
    "mcap": write_mcap,
    "ros1": lambda root: write_bags(root, "ros1"),
    "ros2-sqlite": lambda root: write_bags(root, "sqlite3"),
    "ros2-mcap": lambda root: write_bags(root, "mcap"),
    "aloha": write_aloha,
    "robomimic": write_robomimic,
    "zarr-v2": lambda root: write_zarr(root, "v2"),
    "zarr-v3": lambda root: write_zarr(root, "v3"),
    "zarr-zip": lambda root: write_zarr(root, "zip"),
    "rlds": write_rlds,
    "folders": write_folders,
}
"""What writes two episodes of both cameras into a folder."""
LOSSY = ("videos", "lerobot-v2", "lerobot-v3")


def which(name):
    """Return camera and episode that a recording's name tells."""
    return re.search("front|wrist", name)[0], int(re.findall(r"\d+", name.replace(".mp4", ""))[-1])


@pytest.fixture(scope="module", params=FORMATS)
def form(request):
    return request.param


@pytest.fixture(scope="module")
def whole(form, tmp_path_factory):
    root = tmp_path_factory.mktemp(form.translate({ord(digit): None for digit in "0123456789"})) / "set"
    FORMATS[form](root)
    return root


@pytest.mark.filterwarnings("ignore:of what is in")
def test_features_are_those_of_each_camera_episode_and_frame(form, whole, run_command, tiny, tiny_directory, tmp_path):
    if form == "folders":
        pytest.skip("vde-encode takes each for a picture of its own")
    arrow = pytest.importorskip("pyarrow.parquet")
    for kind in ("safetensors", "npy", "parquet"):
        options = ["--model", tiny_directory, "--size", "32", "--dtype", "float32", "--no-pictures", "--format", kind]
        assert run_command(encode.main, whole, "--out", tmp_path / kind, *options, "--source-fps", FPS) is None
    places = [path.relative_to(tmp_path / "safetensors") for path in (tmp_path / "safetensors").rglob("*.safetensors")]
    assert sorted(which(str(place.with_suffix(""))) for place in places) == ALL
    for place in places:
        stored = load_file(tmp_path / "safetensors" / place)
        camera, episode = which(str(place.with_suffix("")))
        expected = tiny.encode(list(images(camera, episode)), size=32, crop_mode="whole")
        if form in LOSSY:
            alike = torch.cosine_similarity(stored["patches"].flatten(1)[:, None], expected.patches.flatten(1), dim=2)
            assert alike.argmax(1).tolist() == list(range(LENGTH))
        else:
            assert torch.allclose(stored["patches"], expected.patches, atol=1e-4)
        assert torch.allclose(stored["times"], torch.arange(LENGTH) / FPS, atol=1e-6)
        for key in ("cls", "patches", "times"):
            file = tmp_path / "npy" / place.with_name(f"{place.stem}.{key}.npy")
            assert np.array_equal(np.load(file), stored[key])
        table = arrow.read_table(tmp_path / "parquet" / place.with_suffix(".parquet"))
        numbered = table.column_names[0] == "episode_index"
        assert not numbered or table["episode_index"].to_pylist() == [episode] * LENGTH
        assert numbered == (form not in ("videos", "folders", "mcap", "ros1", "ros2-sqlite", "ros2-mcap"))
        assert table["frame_index"].to_pylist() == list(range(LENGTH))
        assert np.array_equal(table["timestamp"].to_numpy(), stored["times"])
        for key in ("cls", "patches"):
            assert np.array_equal(np.array(table[key].to_pylist(), np.float32), stored[key])
        assert table.schema.metadata[b"grid"] == b"2x3"


@pytest.mark.filterwarnings("ignore:of what is in")
def test_a_report_takes_a_recording_of_each(form, whole, run_command, tmp_path):
    (source,) = (
        source for source in find_sources([whole], ASKED) if which(f"{source.group}/{source.name}") == ("wrist", 1)
    )
    chosen = ["--cameras", source.camera] if source.camera else []
    chosen += ["--episodes", "1:2"] if source.episode is not None else []
    options = ["--models", "pixels", "--fps", FPS, "--source-fps", FPS, "--cache", tmp_path / "cache"]
    page = tmp_path / "report.html"
    assert run_command(report.main, source.path, *chosen, *options, "--out", page) is None
    text = page.read_text()
    assert f"<figcaption>{source.name}</figcaption>" in text
    films, times = re.search(r"const frames = (.*), times = (.*);", text).groups()
    assert np.allclose(json.loads(times), np.arange(LENGTH) / FPS, atol=1e-3)
    shown = [base64.b64decode(address.partition("base64,")[2]) for address in json.loads(films)[0]]
    shown = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB"), float) for file in shown])
    assert np.abs(shown - images("wrist", 1)).mean((1, 2, 3)).max() < 16  # JPEG's


@pytest.mark.filterwarnings("ignore:of what is in")
def test_all_topics_of_a_recording_are_encoded_in_one_pass_and_a_damaged_one_stops_no_other(
    run_command, tiny_directory, tmp_path, monkeypatch
):
    bad = in_file(images("wrist", 1)[5])
    monkeypatch.setitem(
        globals(), "in_file", lambda image, file=in_file: file(image)[: -200 * (file(image) == bad) or None]
    )
    write_mcap(tmp_path / "set")
    passes = []
    recorded = McapTopic.recorded
    monkeypatch.setattr(McapTopic, "recorded", lambda *of: passes.append((of[0].path.name, *of[1])) or recorded(*of))
    options = ["--model", tiny_directory, "--size", "32", "--out", tmp_path / "out"]
    for more, count in (["--no-pictures"], 1), ([], 2):
        passes.clear()
        error = run_command(encode.main, tmp_path / "set", *options, *more)
        assert re.search(r"1 of 4 inputs could not be encoded.*\n.*1\.mcap, /wrist, message 5: ", error)
        first = [(f"{episode}.mcap", "/front", "/wrist") for episode in range(2) for _ in range(count)]
        assert passes == (first if count == 1 else [*first[:3], ("1.mcap", "/front")])
        assert len(list((tmp_path / "out").rglob("*.safetensors"))) == 3
    assert len(list((tmp_path / "out").rglob("*.pca.mp4"))) == 3


def extracted(root, tmp_path, capsys):
    """Return the stores of what can be read, by camera and episode, and all that was said of the rest."""
    frames = tmp_path / "frames"
    shutil.rmtree(frames, ignore_errors=True)
    stores, said = {}, ""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            stores = extract_all([root], frames, ExtractConfig(), asked=ASKED, workers=1, skip_unreadable=True)
        except InputError as error:
            said = str(error)
    found = {which(f"{store.folder}/{store.source}"): store for store in open_stores(stores)}
    assert len(found) == len(stores)
    for key, store in found.items():
        assert np.allclose(store.times, np.arange(LENGTH) / FPS, atol=1e-3)
        shown = np.stack([store.read(number) for number in range(LENGTH)])
        assert np.abs(shown.astype(float) - images(*key)).mean((1, 2, 3)).max() < 16
    return set(found), "\n".join([said, capsys.readouterr().err, *(str(warning.message) for warning in warned)])


IN_A_FILE = {"videos": 1, "lerobot-v2": 1, "zarr-v2": 1, "zarr-v3": 1, "folders": 1}
IN_A_FILE |= {"robomimic": 4, "zarr-zip": 4, "lerobot-v3-pictures": 4}
"""Recordings that lie in the largest file of the formats; 2 in that of others."""


def test_recordings_in_a_damaged_file_are_named_and_all_others_are_extracted(form, whole, tmp_path, capsys):
    root = Path(shutil.copytree(whole, tmp_path / "set"))
    files = [file for file in root.rglob("*") if file.is_file() and not file.name.startswith((".z", "zarr.json"))]
    file = max(files, key=lambda file: (file.stat().st_size, file))
    content = file.read_bytes()
    third = len(content) // 3
    zeroed = content[:third] + bytes(third) + content[2 * third :]
    for damage in (b"", content[:8], content[: 2 * third], zeroed, content[:-1]):
        file.write_bytes(damage)
        found, said = extracted(root, tmp_path, capsys)
        lost = set(ALL) - found
        assert len(lost) <= IN_A_FILE.get(form, 2)
        assert lost or damage == content[:-1]  # where there is nothing but padding, or a checksum
        assert not lost or any(str(place) in said for place in (file, *file.parents) if root in place.parents)
        assert "object at" not in said
        assert "attribute" not in said


def change_table(root, change):
    parquet, path = (
        pytest.importorskip("pyarrow.parquet"),
        root / "meta" / "episodes" / "chunk-000" / "file-000.parquet",
    )
    rows = parquet.read_table(path).to_pylist()
    change(rows)
    parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), path)


def cut_to_a_line(root):
    path = root / "meta" / "episodes.jsonl"
    path.write_text(path.read_text().splitlines()[0])


def shorter_than_its_video(root):
    path = root / "meta" / "episodes.jsonl"
    path.write_text(path.read_text().replace(str(LENGTH), "10", 1))


def overlap(rows):
    rows[1] |= {"videos/front/from_timestamp": 1.25, "videos/front/to_timestamp": 2.75}


def damage_a_frame(root):
    path = root / "wrist" / "1.mp4"
    content, half = path.read_bytes(), path.stat().st_size // 2
    path.write_bytes(content[:half] + bytes(64) + content[half + 64 :])


INCONSISTENT = {
    "an episode less than are told": ("lerobot-v2", cut_to_a_line, 2, "meta names 1 episodes, and info.json tells 2"),
    "a row less than are told": (
        "lerobot-v3",
        lambda root: change_table(root, list.pop),
        2,
        "meta names 1 episodes, and info.json tells 2",
    ),
    "a length that is not that of the times": (
        "lerobot-v3",
        lambda root: change_table(root, lambda rows: rows[0].update(length=14)),
        2,
        "of episode 0 that it has 14 frames, and that wrist shows it for 1.5 s, which are 12 frames",
    ),
    "episodes that overlap": (
        "lerobot-v3",
        lambda root: change_table(root, overlap),
        3,
        "front, episode 1 begins before episode 0 ends in .*front/chunk-000/file-000.mp4",
    ),
    "a file that is not there": (
        "lerobot-v3",
        lambda root: change_table(root, lambda rows: rows[1].update({"videos/front/file_index": 7})),
        3,
        "front, episode 1 of .*front/chunk-000/file-007.mp4 does not exist",
    ),
    "half of a description": (
        "rlds",
        lambda root: (root / "dataset_info.json").unlink(),
        0,
        "set/dataset_info.json does not exist",
    ),
    "an empty Zarr beside one that is whole": (
        "zarr-zip",
        lambda root: (root / "other.zarr.zip").touch(),
        4,
        "other.zarr.zip is empty",
    ),
}


@pytest.mark.parametrize("what", INCONSISTENT)
def test_what_does_not_fit_together_is_named_and_all_else_is_extracted(what, tmp_path, capsys):
    form, damage, left, sentence = INCONSISTENT[what]
    FORMATS[form](tmp_path / "set")
    damage(tmp_path / "set")
    found, said = extracted(tmp_path / "set", tmp_path, capsys)
    assert len(found) == left
    assert re.search(sentence, said)


def test_frames_that_are_made_up_or_left_out_are_counted(tmp_path):
    write_videos(tmp_path / "videos")
    damage_a_frame(tmp_path / "videos")
    (source,) = find_sources([tmp_path / "videos" / "wrist" / "1.mp4"])
    with pytest.warns(InputWarning, match=r"wrist/1\.mp4 [1-9] frames are damaged; what is missing .* is made up"):
        assert len(list(source.frames())) == LENGTH
    write_lerobot(tmp_path / "set", "v2.1")
    shorter_than_its_video(tmp_path / "set")
    first = find_sources([tmp_path / "set"])[0]
    with pytest.warns(InputWarning, match=r"front, episode 0: the last 2 frames of .*mp4 are left out"):
        assert len(list(first.frames())) == 10
