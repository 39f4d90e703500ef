import json
import os
import shutil
import signal
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from training.data.clips import ClipIndex, ClipsConfig
from training.data.extraction import extract_all
from training.data.frame_store import ExtractConfig, FrameStore, extract_source
from training.extract import main
from video_distilled_encoder.errors import InputError, InputWarning
from video_distilled_encoder.sources.video_files import VideoFile
from video_distilled_encoder.video import read_frames


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
    assert [path.suffix for path in (tmp_path / "frames").rglob("*") if path.is_file()] == [".zip"]
    with pytest.raises(InputError, match="none of the videos"):
        extract_all([bad], tmp_path / "frames", ExtractConfig(), skip_unreadable=True)


def die(video, root, config):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_time_that_is_over_and_a_process_that_was_ended_are_one_sentence(clip, tmp_path, make_video, monkeypatch):
    videos = [clip, make_video()]
    with pytest.raises(InputError, match="the time was over when 0 of 2 videos were extracted"):
        extract_all(videos, tmp_path / "frames", ExtractConfig(), workers=1, deadline=time.monotonic() - 1)
    monkeypatch.setattr("training.data.extraction.extract_source", die)
    with pytest.raises(InputError, match=r"a process was ended from outside.* while videos were extracted"):
        extract_all(videos, tmp_path / "frames", ExtractConfig(), workers=2)


def die_of_one(video, root, config):
    if video.name == "killer.mp4":
        os.kill(os.getpid(), signal.SIGKILL)
    return extract_source(video, root, config)


def test_a_video_that_ends_its_process_is_found_and_the_others_are_extracted(tmp_path, make_video, monkeypatch, capsys):
    names = ("a.mp4", "killer.mp4", "z.mp4")
    for number, name in enumerate(names):
        make_video(f"videos/{name}", seconds=0.3 + 0.1 * number)
    monkeypatch.syspath_prepend(Path(__file__).parents[3])  # from where the processes import `die_of_one`
    monkeypatch.setattr("training.data.extraction.extract_source", die_of_one)
    where = [tmp_path / "videos"], tmp_path / "frames", ExtractConfig()
    stores = extract_all(*where, workers=2, skip_unreadable=True)
    assert [FrameStore(store).source for store in stores] == ["a.mp4", "z.mp4"]
    assert "killer.mp4 was given up: a process was ended from outside" in capsys.readouterr().err


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
