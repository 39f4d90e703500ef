"""Data sets in LeRobot's published layout, two cameras, three episodes; the pixels tell camera, episode and frame."""

import io
import json
import shutil
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from video_distilled_encoder.errors import InputError, InputWarning
from video_distilled_encoder.sources import find_sources
from video_distilled_encoder.sources.source import Asked

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

FPS = 10
LENGTHS = (12, 9, 15)
CAMERAS = ("observation.images.top", "observation.images.wrist")


def picture(camera, episode, frame):
    """Return a picture of one colour, which is (camera, episode, frame)."""
    return np.full((48, 64, 3), (40 + 120 * camera, 40 + 60 * episode, 30 + 12 * frame), np.uint8)


def told(image):
    """Return (camera, episode, frame) of a picture that was compressed."""
    red, green, blue = image.reshape(-1, 3).mean(0)
    return round((red - 40) / 120), round((green - 40) / 60), round((blue - 30) / 12)


def write_mp4(path, pictures):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libsvtav1", rate=Fraction(FPS), options={"crf": "30", "g": "2", "preset": "12"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for image in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def write_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=10)


def write_info(root, version, dtype="video", **more):
    feature = {"dtype": dtype, "shape": [48, 64, 3], "names": ["height", "width", "channels"]}
    features = {camera: dict(feature) for camera in CAMERAS} | {"action": {"dtype": "float32", "shape": [2]}}
    features["observation.depth"] = feature | {"dtype": "video", "info": {"video.is_depth_map": True}}
    (root / "meta").mkdir(parents=True, exist_ok=True)
    info = {"codebase_version": version, "fps": FPS, "chunks_size": 1000, "features": features, **more}
    (root / "meta" / "info.json").write_text(json.dumps(info))


ORDER = (2, 0, 1)
"""Of the episodes in the files of v3: an edited data set. Between two of them stands a stretch that was deleted."""
DELETED = 5


@pytest.fixture(scope="module")
def version_3(tmp_path_factory):
    root = tmp_path_factory.mktemp("v3") / "push"
    write_info(
        root,
        "v3.0",
        data_path="data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        video_path="videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    )
    rows = [{"episode_index": n, "tasks": ["push"], "length": length} for n, length in enumerate(LENGTHS)]
    for number, camera in enumerate(CAMERAS):
        pictures = []
        for episode in ORDER:
            key = f"videos/{camera}/"
            begin = len(pictures) / FPS
            rows[episode] |= {f"{key}chunk_index": 0, f"{key}file_index": 0, f"{key}from_timestamp": begin}
            pictures += [picture(number, episode, frame) for frame in range(LENGTHS[episode])]
            rows[episode][f"{key}to_timestamp"] = len(pictures) / FPS
            pictures += [picture(number, 3, 0)] * DELETED
        write_mp4(root / "videos" / camera / "chunk-000" / "file-000.mp4", pictures)
    write_table(root / "meta" / "episodes" / "chunk-000" / "file-000.parquet", rows)
    return root


@pytest.fixture(scope="module")
def version_2(tmp_path_factory):
    root = tmp_path_factory.mktemp("v2") / "push"
    write_info(
        root,
        "v2.1",
        data_path="data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        video_path="videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    )
    lines = [json.dumps({"episode_index": n, "tasks": ["push"], "length": length}) for n, length in enumerate(LENGTHS)]
    (root / "meta" / "episodes.jsonl").write_text("\n".join(lines) + "\n")
    for number, camera in enumerate(CAMERAS):
        for episode, length in enumerate(LENGTHS):
            path = root / "videos" / "chunk-000" / camera / f"episode_{episode:06d}.mp4"
            write_mp4(path, (picture(number, episode, frame) for frame in range(length)))
    return root


@pytest.fixture(scope="module")
def pictures_in_tables(tmp_path_factory):
    root = tmp_path_factory.mktemp("images") / "push"
    write_info(root, "v3.0", "image", data_path="data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet")
    rows, episodes = [], []
    for episode, length in enumerate(LENGTHS):
        episodes.append({"episode_index": episode, "length": length, "data/chunk_index": 0, "data/file_index": 0})
        for frame in range(length):
            row = {"episode_index": episode, "timestamp": frame / FPS}
            for number, camera in enumerate(CAMERAS):
                buffer = io.BytesIO()
                Image.fromarray(picture(number, episode, frame)).save(buffer, "PNG")
                row[camera] = {"bytes": buffer.getvalue(), "path": None}
            rows.append(row)
    write_table(root / "data" / "chunk-000" / "file-000.parquet", rows)
    write_table(root / "meta" / "episodes" / "chunk-000" / "file-000.parquet", episodes)
    return root


@pytest.mark.parametrize("kind", ["version_2", "version_3", "pictures_in_tables"])
def test_every_frame_is_of_its_camera_episode_and_time(kind, request):
    root = request.getfixturevalue(kind)
    with pytest.warns(InputWarning, match=r"left out: .*observation\.depth: depth"):
        sources = find_sources([root])
    assert {(s.camera, s.episode) for s in sources} == {(c, e) for c in CAMERAS for e in range(3)}
    assert {source.group for source in sources} == {f"{root}/{camera}" for camera in CAMERAS}
    assert len({source.identity() for source in sources}) == 6
    for source in sources:
        frames = list(source.frames())
        number = CAMERAS.index(source.camera), source.episode
        assert [told(frame.image) for frame in frames] == [(*number, f) for f in range(LENGTHS[source.episode])]
        assert np.allclose([frame.time for frame in frames], np.arange(len(frames)) / FPS, atol=1e-3)
        assert not any(frame.new_shot for frame in frames)
        assert source.info().frames == len(frames)
        slower = list(source.frames(min_interval=0.2))
        assert [told(frame.image)[2] for frame in slower] == list(range(0, len(frames), 2))


def test_masks_are_left_out_by_their_name_unless_they_are_asked_for(version_2, tmp_path):
    root = damaged(version_2, tmp_path)
    info = json.loads((root / "meta" / "info.json").read_text())
    info["features"]["observation.images.top_mask"] = info["features"][CAMERAS[0]]
    (root / "meta" / "info.json").write_text(json.dumps(info))
    with pytest.warns(InputWarning, match=r"top_mask: its name says mask; --cameras takes it"):
        assert {source.camera for source in find_sources([root])} == set(CAMERAS)
    with pytest.warns(InputWarning, match=r"observation\.depth: depth"):
        sources = find_sources([root], Asked(cameras="*mask"))
    assert {source.camera for source in sources} == {"observation.images.top_mask"}


@pytest.mark.filterwarnings("ignore:left out")
def test_files_are_read_from_front_to_back(version_3):
    assert [source.episode for source in find_sources([version_3])] == [*ORDER, *ORDER]


@pytest.mark.filterwarnings("ignore:left out")
def test_a_data_set_is_found_in_a_folder_beside_videos(version_3, clip, tmp_path):
    shutil.copytree(version_3, tmp_path / "all" / "push")
    shutil.copy(clip, tmp_path / "all" / "dog.mp4")
    sources = find_sources([tmp_path / "all"])
    assert [source.name for source in sources if not source.camera] == ["dog.mp4"]
    assert len(sources) == 7


@pytest.mark.filterwarnings("ignore:left out")
def test_cameras_and_episodes_are_chosen(version_3):
    chosen = find_sources([version_3], Asked(cameras="*wrist", episodes=range(1, 3)))
    assert {(source.camera, source.episode) for source in chosen} == {(CAMERAS[1], 1), (CAMERAS[1], 2)}
    with pytest.raises(InputError, match=r"no camera of .* is called 'front'; there are: observation\.images\.top"):
        find_sources([version_3], Asked(cameras="front"))
    with pytest.raises(InputError, match="none of the episodes asked for; its episodes are 0 to 2"):
        find_sources([version_3], Asked(episodes=range(7, 9)))


def damaged(root, tmp_path):
    return Path(shutil.copytree(root, tmp_path / "damaged"))


@pytest.mark.filterwarnings("ignore:left out")
def test_a_missing_or_short_file_is_named_with_its_episode(version_2, version_3, tmp_path):
    root = damaged(version_2, tmp_path)
    folder = root / "videos" / "chunk-000" / CAMERAS[0]
    (folder / "episode_000000.mp4").unlink()
    shutil.copy(folder / "episode_000001.mp4", folder / "episode_000002.mp4")
    first, _, third = find_sources([root], Asked(cameras=CAMERAS[0]))
    with pytest.raises(InputError, match=r"top, episode 0 of .*episode_000000\.mp4 does not exist"):
        first.identity()
    with pytest.raises(InputError, match=r"top, episode 2 of .*episode_000002\.mp4 ends 0\.6. s before 1\.45 s"):
        list(third.frames())


@pytest.mark.filterwarnings("ignore:left out")
@pytest.mark.parametrize("change", [{f"videos/{CAMERAS[1]}/from_timestamp": None}, {"episode_index": "x"}])
def test_malformed_tables_are_refused(version_3, tmp_path, change):
    root = damaged(version_3, tmp_path)
    table = root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    rows = parquet.read_table(table).to_pylist()
    if "episode_index" in change:
        rows = [row | {"episode_index": str(row["episode_index"])} for row in rows]
    rows[2] |= change
    write_table(table, rows)
    with pytest.raises(InputError, match="are malformed"):
        find_sources([root])


def test_missing_and_cut_tables_are_refused(version_3, tmp_path):
    root = damaged(version_3, tmp_path)
    table = root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    table.write_bytes(table.read_bytes()[:-50])
    with pytest.raises(InputError, match=r"file-000\.parquet is damaged"):
        find_sources([root])
    table.unlink()
    with pytest.raises(InputError, match="holds no table of episodes"):
        find_sources([root])
    write_info(root, "v1.6")
    with pytest.raises(InputError, match=r"is a LeRobot data set of v1\.6"):
        find_sources([root])


@pytest.mark.parametrize("kind", ["version_2", "version_3"])
@pytest.mark.parametrize("content", [None, b"", b"[]", b"null", b"{}", bytes(40), b'{"codebase_version": "v3.0"}'])
def test_without_its_info_a_data_set_does_not_pass_for_plain_videos(kind, content, request, tmp_path):
    root = shutil.copytree(request.getfixturevalue(kind), tmp_path / "push")
    (root / "meta" / "info.json").unlink()
    if content is not None:
        (root / "meta" / "info.json").write_bytes(content)
    with pytest.raises(InputError, match=r"push/meta(/info\.json does not exist| are malformed)"):
        find_sources([root])


def test_a_rate_that_is_none_is_refused(version_3, tmp_path):
    root = shutil.copytree(version_3, tmp_path / "push")
    info = root / "meta" / "info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fps": -1}))
    with pytest.raises(InputError, match=r"info\.json tells -1 frames a second"):
        find_sources([root])


def test_an_mp4_that_is_cut_or_of_an_unknown_kind_is_one_sentence(version_3, tmp_path):
    root = shutil.copytree(version_3, tmp_path / "push")
    mp4 = root / "videos" / CAMERAS[1] / "chunk-000" / "file-000.mp4"
    whole = mp4.read_bytes()
    for content in (whole[:-100], whole[: whole.index(b"av01")] + b"zzzz" + whole[whole.index(b"av01") + 4 :]):
        mp4.write_bytes(content.replace(b"av01", b"zzzz") if b"zzzz" in content else content)
        for source in find_sources([root], Asked(cameras=CAMERAS[1])):
            with pytest.raises(InputError, match=rf"{CAMERAS[1]}, episode {source.episode} of .*file-000\.mp4"):
                list(source.frames())


def test_without_pyarrow_the_extra_is_named(version_3, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pyarrow is not installed.*\[robot\]"):
        find_sources([version_3])


def test_the_case_of_three_episodes():
    root = Path(__file__).parents[4] / "shared" / "cases" / "lerobot_v3"
    if not root.is_dir():
        pytest.skip("the shared cases are not here")
    assert [len(list(source.frames())) for source in find_sources([root])] == [20, 24, 16]
