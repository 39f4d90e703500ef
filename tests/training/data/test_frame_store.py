import base64
import hashlib
import io
import json
import os
import re
import shutil
import signal
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data.clips import ClipIndex, ClipsConfig
from training.data.extraction import extract_all
from training.data.frame_store import ExtractConfig, FrameStore, extract_source, extract_sources, open_stores
from training.extract import main
from video_distilled_encoder.errors import InputError, InputWarning
from video_distilled_encoder.files import sha256
from video_distilled_encoder.sources import find_sources
from video_distilled_encoder.sources.source import Asked
from video_distilled_encoder.sources.video_files import VideoFile
from video_distilled_encoder.video import read_frames, write_video


def test_frames_and_times_survive(clip, tmp_path):
    store = FrameStore(extract_source(VideoFile(clip), tmp_path, ExtractConfig()))
    frames = list(read_frames(clip))
    assert len(store) == 60
    assert np.allclose(store.times, [frame.time for frame in frames])
    for number in (0, 17, 59):
        read = store.read(number).astype(int)
        assert np.abs(read - frames[number].image).mean() < 3
    with zipfile.ZipFile(store.path) as archive:
        assert archive.testzip() is None
        assert archive.read("000017.jpg")[:2] == b"\xff\xd8"


def test_rate_and_size(clip, tmp_path):
    store = FrameStore(extract_source(VideoFile(clip), tmp_path, ExtractConfig(fps=10, short_side=90)))
    assert len(store) == 25
    assert store.size == (160, 90)
    assert store.read(0).shape == (90, 160, 3)
    assert store.path.parent.name == "10fps-90px-q90"


def test_a_video_is_extracted_once_whatever_its_name(clip, tmp_path):
    copy = shutil.copy(clip, tmp_path / "renamed.mp4")
    config = ExtractConfig(fps=5)
    stores = extract_all([clip, tmp_path], tmp_path / "frames", config)
    ((store, folder),) = stores.items()
    assert folder == str(clip.parent)
    stamp = store.stat().st_mtime_ns
    assert extract_source(VideoFile(tmp_path / copy), tmp_path / "frames", config).stat().st_mtime_ns == stamp


def test_unreadable_videos_stop_or_are_left_out_and_leave_nothing(clip, tmp_path, make_video):
    good = make_video("videos/good.mp4")
    bad = tmp_path / "videos" / "bad.mp4"
    bad.write_bytes(clip.read_bytes()[:200_000])
    with pytest.raises(InputError, match=r"bad\.mp4"):
        extract_all([tmp_path / "videos"], tmp_path / "frames", ExtractConfig(), workers=1)
    stores = extract_all([good.parent], tmp_path / "frames", ExtractConfig(), skip_unreadable=True)
    assert len(stores) == 1
    left = [path for path in (tmp_path / "frames").rglob("*") if path.is_file() and path.parent.name != "sizes"]
    assert [path.suffix for path in left] == [".zip"]
    with pytest.raises(InputError, match="none of the videos"):
        extract_all([bad], tmp_path / "frames", ExtractConfig(), skip_unreadable=True)


def die(videos, root, config):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_time_that_is_over_and_a_process_that_was_ended_are_one_sentence(clip, tmp_path, make_video, monkeypatch):
    videos = [clip, make_video()]
    with pytest.raises(InputError, match="the time was over when 0 of 2 videos were extracted"):
        extract_all(videos, tmp_path / "frames", ExtractConfig(), workers=1, deadline=time.monotonic() - 1)
    monkeypatch.setattr("training.data.extraction.extract_sources", die)
    with pytest.raises(InputError, match=r"a process was ended from outside.* while videos were extracted"):
        extract_all(videos, tmp_path / "frames", ExtractConfig(), workers=2)


def die_of_one(videos, root, config):
    if videos[0].name == "killer.mp4":
        os.kill(os.getpid(), signal.SIGKILL)
    return extract_sources(videos, root, config)


def test_a_video_that_ends_its_process_is_found_and_the_others_are_extracted(tmp_path, make_video, monkeypatch, capsys):
    names = ("a.mp4", "killer.mp4", "z.mp4")
    for number, name in enumerate(names):
        make_video(f"videos/{name}", seconds=0.3 + 0.1 * number)
    monkeypatch.setattr("training.data.extraction.extract_sources", die_of_one)
    where = [tmp_path / "videos"], tmp_path / "frames", ExtractConfig()
    stores = extract_all(*where, workers=2, skip_unreadable=True)
    assert [FrameStore(store).source for store in stores] == ["a.mp4", "z.mp4"]
    assert "killer.mp4 was given up: a process was ended from outside" in capsys.readouterr().err


def age(*files):
    for file in files:
        os.utime(file, (time.time() - 60,) * 2)


def test_what_was_extracted_is_found_without_reading_it_again(tmp_path, make_video, monkeypatch):
    videos = [make_video(f"{name}.mp4", seconds=0.3 + 0.1 * number) for number, name in enumerate("abc")]
    age(*videos)
    where = tmp_path / "frames", ExtractConfig()
    before = extract_all(videos[:2], *where, workers=1)
    seen = []
    monkeypatch.setattr("training.common.digests.sha256", lambda *files: seen.extend(files) or sha256(*files))
    frames = VideoFile.frames
    monkeypatch.setattr(VideoFile, "frames", lambda source, **rest: seen.append(source.path) or frames(source, **rest))
    assert extract_all(videos[:2], *where, workers=1) == before
    assert seen == []
    assert list(extract_all(videos, *where, workers=1))[:2] == list(before)
    assert seen == [videos[2]]  # for its frames; the digest is taken on the way


def bytes_read():
    """Return how many bytes this process has asked the system for, as the system counts them."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def noise(seed, size=(96, 128)):
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)


def in_file(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write_mcap(path, topics):
    """Write pictures, a list a topic, in the order of their times: of topic i number n at n / 20 + i / 100 s."""
    writer = pytest.importorskip("mcap.writer")
    with path.open("wb") as file:
        out = writer.Writer(file, chunk_size=50_000)
        out.start()
        schema = out.register_schema("foxglove.CompressedImage", "jsonschema", b"{}")
        channels = [out.register_channel(f"/{name}", "json", schema) for name in topics]
        times = [(n / 20 + i / 100, i, n) for i, pictures in enumerate(topics.values()) for n in range(len(pictures))]
        for time_s, i, n in sorted(times):
            stamp = round(1e9 * (1000 + time_s))
            said = {"timestamp": {"sec": stamp // 10**9, "nsec": stamp % 10**9}, "format": "jpeg"}
            said["data"] = base64.b64encode(list(topics.values())[i][n]).decode()
            out.add_message(channels[i], stamp, json.dumps(said).encode(), stamp)
        out.finish()


def make_video_of_noise(path):
    write_video(path, [noise(number, (144, 192)) for number in range(40)], 20)


def make_recording(path):
    write_mcap(path, {name: [in_file(noise([number, seed])) for number in range(40)] for seed, name in enumerate("ab")})


def make_folder(path):
    path.mkdir()
    for number in range(40):
        (path / f"{number}.jpg").write_bytes(in_file(noise(number)))


KINDS = {"x.mp4": make_video_of_noise, "x.mcap": make_recording, "x": make_folder}


@pytest.mark.parametrize("name", KINDS)
def test_a_first_extraction_reads_a_file_once_and_a_copy_is_not_decoded(name, tmp_path, monkeypatch):
    place = tmp_path / name
    KINDS[name](place)
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    age(*files)
    size = sum(file.stat().st_size for file in files)
    assert size > 500_000
    asked, where = Asked(fps=20), (tmp_path / "frames", ExtractConfig())
    sources = find_sources([place], asked)
    before = bytes_read()
    stores = [path for path in extract_sources(sources, *where) if path.exists()]
    # FFmpeg looks at 5 MB, here all, before it decodes; a note, the index and what is imported are read besides
    assert bytes_read() - before < (2.2 if name == "x.mp4" else 1.2) * size + 400_000
    assert [store.stem for store in stores] == [source.identity()[:16] for source in sources]
    if name == "x.mp4":
        assert stores[0].stem == hashlib.sha256(place.read_bytes()).hexdigest()[:16]
    assert all(len(FrameStore(store)) == 40 for store in stores)
    monkeypatch.setattr(type(sources[0]), "frames", None)
    assert list(extract_all([place], *where, asked=asked, workers=1)) == stores
    copy = tmp_path / "copies" / f"other{place.suffix}"
    (shutil.copytree if place.is_dir() else shutil.copy)(place, tmp_path.joinpath("copies").mkdir() or copy)
    assert list(extract_all([copy], *where, asked=asked, workers=1)) == stores


def test_cameras_of_a_recording_are_extracted_in_one_pass_as_they_are_one_by_one(tmp_path):
    pictures = {name: [in_file(noise([number, seed])) for number in range(30)] for seed, name in enumerate("abc")}
    pictures["b"][7] = pictures["b"][7][:-600]
    pictures["c"] = pictures["c"][:4]
    write_mcap(tmp_path / "x.mcap", pictures)
    sources = find_sources([tmp_path / "x.mcap"])
    a, b, c = extract_sources(sources, tmp_path / "together", ExtractConfig())
    assert re.search("x.mcap, /b, message 7: .*damaged", str(b))
    for path, source in ((a, sources[0]), (c, sources[2])):
        one, other = FrameStore(path), FrameStore(extract_source(source, tmp_path / "apart", ExtractConfig()))
        assert (one.source, one.path.name) == (other.source, other.path.name)
        assert one.times.tolist() == other.times.tolist()
        assert all(np.array_equal(one.read(number), other.read(number)) for number in range(len(one)))
    assert len(FrameStore(a)) == 30
    with pytest.raises(InputError, match="message 7"):
        extract_all([tmp_path / "x.mcap"], tmp_path / "frames", ExtractConfig(), workers=2)
    assert len(list((tmp_path / "frames").rglob("*.zip"))) == 2


def test_what_a_killed_process_left_is_removed_when_it_is_old(tmp_path, make_video):
    folder = tmp_path / "frames" / ExtractConfig().folder
    folder.mkdir(parents=True)
    old, young = folder / ".77.0123.zip", folder / ".78.0123.zip"
    for file in (old, young):
        file.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    (store,) = extract_all([make_video()], tmp_path / "frames", ExtractConfig(), workers=1)
    assert sorted(file for file in folder.iterdir() if file.is_file()) == sorted([young, store])


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shards_are_parts_of_the_whole(tmp_path, make_video, count):
    names = "abc"
    for number, name in enumerate(names):
        make_video(f"videos/{name}.mp4", seconds=0.3 + 0.1 * number)
    parts = [
        extract_all([tmp_path / "videos"], tmp_path / "frames", ExtractConfig(), workers=1, shard=(number, count))
        for number in range(count)
    ]
    assert "".join(FrameStore(store).source[0] for part in parts for store in part) == names
    turned = extract_all([tmp_path / "videos"], tmp_path / "other", ExtractConfig(), workers=1, turn=0.5)
    assert [FrameStore(store).source[0] for store in turned] == [*names]


def extract(videos, frames, *options):
    return ["-m", "training.extract", videos, "--frames", frames, "--workers", "1", *options]


def test_two_processes_share_a_folder_and_one_that_is_killed_goes_on(tmp_path, make_video, start):
    for number in range(8):
        make_video(f"videos/{number}.mp4", seconds=5 + number, fps=30, size=(160, 120))
    age(*(tmp_path / "videos").iterdir())
    folder, words = tmp_path / "frames" / ExtractConfig().folder, extract(tmp_path / "videos", tmp_path / "frames")
    one, other = (start(*words, "--shard", f"{number}/2") for number in (0, 1))
    while one.poll() is None and not list(folder.glob(f".{one.pid}-*.zip")):
        time.sleep(0.01)
    one.kill()
    assert one.wait() == -signal.SIGKILL
    assert other.wait() == 0, other.err()
    assert "4 frame stores" in other.out()
    stores = sorted(folder.glob("[!.]*.zip"))
    assert 4 <= len(stores) < 8
    made = {store: store.stat().st_mtime_ns for store in stores}
    again = start(*words)
    assert again.wait() == 0, again.err()
    assert "8 frame stores" in again.out()
    assert made.items() <= {store: store.stat().st_mtime_ns for store in folder.glob("[!.]*.zip")}.items()
    assert sorted(FrameStore(store).source for store in folder.glob("[!.]*.zip")) == [f"{n}.mp4" for n in range(8)]


def test_a_launchers_processes_share_the_videos_and_tell_of_all_that_fail(tmp_path, make_video, start_world):
    for number in range(4):
        make_video(f"videos/{number}.mp4", seconds=0.3 + 0.1 * number)
    (tmp_path / "videos" / "3.mp4").write_bytes(b"damaged")
    words = extract(tmp_path / "videos", tmp_path / "frames")
    ends = [(process.wait(), process.err()) for process in start_world(*words)]
    assert any(status for status, _ in ends)
    assert "".join(said for _, said in ends).count("3.mp4 cannot be read as a video") == 1
    assert len(list((tmp_path / "frames").rglob("[!.]*.zip"))) == 3
    main, other = start_world(*words, "--skip-unreadable")
    assert main.wait() == other.wait() == 0, main.err() + other.err()
    assert "3 frame stores" in main.out()


def test_a_damaged_episode_of_a_data_set_is_left_out_and_clips_stay_in_theirs(aloha, tmp_path, capsys):
    root = Path(shutil.copytree(aloha, tmp_path / "fold"))
    with pytest.importorskip("h5py").File(root / "episode_1.hdf5", "a") as file:
        del file["observations/images/wrist"]
        file["observations/images/wrist"] = np.zeros((7, 64, 96, 3), np.uint8)
    asked, where = Asked("wrist", fps=10), (tmp_path / "frames", ExtractConfig(quality=95))
    with pytest.raises(InputError, match=r"1 of 3 .*\n.*episode_1\.hdf5, episode 1: its lengths differ: .*20, .*7"):
        extract_all([root], *where, asked=asked, workers=1)
    stores = open_stores(extract_all([root], *where, asked=asked, workers=1, skip_unreadable=True))
    assert "left out: " in capsys.readouterr().err
    assert [store.source for store in stores] == ["fold/wrist/episode_0", "fold/wrist/episode_2"]
    assert {store.folder for store in stores} == {f"{root}/wrist"}
    for store, episode in zip(stores, (0, 2), strict=True):
        with pytest.importorskip("h5py").File(root / f"episode_{episode}.hdf5") as file:
            images = file["observations/images/wrist"][:].astype(float)
        assert np.allclose(store.times, np.arange(20) / 10)
        assert all(np.abs(store.read(number) - images[number]).mean() < 4 for number in range(20))
    assert len(ClipIndex(stores, ClipsConfig(3, 0.5), 0).frames) == 2 * 10


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "is empty"), (bytes(3000), "is damaged"), (b"\x89HD", "is damaged")]
)
def test_a_recording_of_which_nothing_is_left_is_named_and_not_passed_over(aloha, tmp_path, content, said):
    root = Path(shutil.copytree(aloha, tmp_path / "fold"))
    for name in ("episode_1.hdf5", "x.bag", "x.mcap"):
        (root / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        extract_all([root], tmp_path / "frames", ExtractConfig(), asked=Asked("wrist", fps=10), workers=1)
    assert "3 of 5 videos cannot be read" in str(error.value)
    assert all(re.search(f"{name} .*{said}", str(error.value)) for name in ("episode_1.hdf5", "x.bag", "x.mcap"))
    assert len(list((tmp_path / "frames").rglob("*.zip"))) == 2


def test_bad_videos_are_named_when_the_others_are_done(tmp_path, make_video):
    make_video("videos/b.mp4")
    (tmp_path / "videos" / "a.mp4").write_bytes(b"")
    (tmp_path / "videos" / "c.mp4").symlink_to("/proc/self/mem")  # reading its beginning is an error of the device
    with pytest.raises(InputError) as error:
        extract_all([tmp_path / "videos"], tmp_path / "frames", ExtractConfig(), workers=1)
    assert "2 of 3 videos cannot be read" in str(error.value)
    assert "a.mp4 is empty" in str(error.value)
    assert "c.mp4 (Input/output error)" in str(error.value)
    assert len(list((tmp_path / "frames").rglob("*.zip"))) == 1


def test_a_full_disk_ends_the_extraction_though_unreadable_videos_are_skipped(tmp_path, make_video):
    (tmp_path / "frames").write_text("a file where the folder would be")
    with pytest.raises(InputError, match="cannot write"):
        extract_all([make_video()], tmp_path / "frames", ExtractConfig(), workers=1, skip_unreadable=True)


def test_joined_recordings_are_shots_of_one_store(tmp_path, joined_recordings):
    with pytest.warns(InputWarning, match="the clock starts again"):
        store = FrameStore(extract_source(VideoFile(joined_recordings(48, fps=24)), tmp_path, ExtractConfig(fps=10)))
    assert np.allclose(store.times, np.arange(40) / 10, atol=0.5 / 24 + 1e-4)
    assert np.flatnonzero(np.diff(store.shots)).tolist() == [19]
    index = ClipIndex([store], ClipsConfig(3, 0.5), 0)
    assert sorted(index.frames[:, 0].tolist()) == [*range(10), *range(20, 30)]


def test_a_damaged_store_is_refused(tmp_path, clip):
    path = extract_source(VideoFile(clip), tmp_path, ExtractConfig(fps=5))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a whole frame store"):
        FrameStore(path)


@pytest.mark.parametrize(
    "change", [{"size": 3}, {"cuts": [99999]}, {"cuts": "x"}, {"times": None}, {"times": [["a"]]}, [], "null"]
)
def test_malformed_facts_of_a_store_are_refused(tmp_path, clip, change):
    path = extract_source(VideoFile(clip), tmp_path, ExtractConfig(fps=5))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (meta,) = (name for name in members if name.endswith(".json"))
    facts = json.loads(members[meta]) | change if isinstance(change, dict) else change
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (members | {meta: json.dumps(facts)}).items():
            archive.writestr(name, content)
    with pytest.raises(InputError, match="not a whole frame store"):
        FrameStore(path)


def test_command(run_command, clip, tmp_path, capsys):
    for shard in ("2/2", "x", "1"):
        assert run_command(main, clip, "--shard", shard) == 2
        assert "a shard is written 0/N to N-1/N" in capsys.readouterr().err
    assert run_command(main, clip, "--frames", tmp_path, "--fps", "4", "--workers", "1") is None
    assert "1 frame stores in" in capsys.readouterr().out
    assert "extract.fps must be positive" in run_command(main, clip, "--frames", tmp_path, "--fps", "-1")
    (tmp_path / "none").mkdir()
    assert "holds no video" in run_command(main, tmp_path / "none", "--frames", tmp_path)


def test_threads_may_decode_at_once_and_no_file_stays_open(clip, tmp_path):
    path = extract_source(VideoFile(clip), tmp_path, ExtractConfig(fps=4, short_side=64))
    stores = [FrameStore(path) for _ in range(200)]
    expected = [stores[0].decode(number) for number in range(len(stores[0]))]
    before = len(os.listdir("/proc/self/fd"))

    def decode(place):
        store, number = place
        return np.array_equal(store.decode(number), expected[number])

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(decode, [(store, number) for store in stores for number in range(len(store))]))
    assert len(os.listdir("/proc/self/fd")) == before
