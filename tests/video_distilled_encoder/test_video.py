import subprocess
import sys

import av
import numpy as np
import pytest

from video_distilled_encoder.errors import InputError
from video_distilled_encoder.video import find_videos, probe, read_frames, write_video


def test_frames_and_times_of_a_real_clip(clip):
    frames = list(read_frames(clip))
    assert len(frames) == 60
    assert np.allclose([frame.time for frame in frames], np.arange(60) / 24, atol=1e-3)
    assert frames[0].image.shape == (270, 480, 3)
    info = probe(clip)
    assert (info.width, info.height, info.frames) == (480, 270, 60)
    assert info.fps == pytest.approx(24)


def test_a_lower_rate_keeps_the_nearest_frames(clip):
    times = [frame.time for frame in read_frames(clip, min_interval=0.1)]
    assert len(times) == 25
    assert np.abs(np.array(times) - 0.1 * np.arange(25)).max() <= 0.5 / 24 + 1e-6


def test_variable_frame_rate_keeps_its_time_stamps(tmp_path):
    stamps = [0, 100, 130, 400, 410, 900]  # ms
    path = tmp_path / "vfr.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for stamp in stamps:
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), stamp % 255, np.uint8), format="rgb24")
            frame.pts = stamp
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    times = [frame.time for frame in read_frames(path)]
    assert np.allclose(times, np.array(stamps) / 1000, atol=2e-3)


def test_written_video_reads_back(tmp_path):
    images = [np.full((48, 64, 3), 20 * i, np.uint8) for i in range(10)]
    write_video(tmp_path / "x.mp4", images, 10)
    back = [frame.image.mean() for frame in read_frames(tmp_path / "x.mp4")]
    assert np.allclose(back, [20 * i for i in range(10)], atol=3)
    assert [path.name for path in tmp_path.iterdir()] == ["x.mp4"]


def test_nothing_is_left_when_writing_fails(tmp_path):
    def images():
        yield np.zeros((48, 64, 3), np.uint8)
        raise RuntimeError("camera unplugged")

    with pytest.raises(RuntimeError, match="camera unplugged"):
        write_video(tmp_path / "x.mp4", images(), 10)
    assert list(tmp_path.iterdir()) == []


def faststart(clip, folder):
    """The clip with its index first, so that a truncated copy still opens."""
    path = folder / "whole.mp4"
    with av.open(str(clip)) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda clip, _: None, "does not exist"),
        (lambda clip, _: b"", "is empty"),
        (lambda clip, _: b"not a video " * 100, "cannot be read as a video"),
        (lambda clip, _: clip.read_bytes()[:100_000], "cannot be read as a video|truncated"),
        (lambda clip, folder: faststart(clip, folder)[:150_000], "truncated|cannot be decoded to its end"),
    ],
    ids=["missing", "empty", "text", "truncated", "truncated behind its index"],
)
def test_unreadable_videos_are_one_sentence(clip, tmp_path, content, message):
    path = tmp_path / "bad.mp4"
    if (data := content(clip, tmp_path)) is not None:
        path.write_bytes(data)
    with pytest.raises(InputError, match=message) as error:
        list(read_frames(path))
    assert str(path) in str(error.value)


def test_find_videos_searches_folders(tmp_path, clip):
    (tmp_path / "a").mkdir()
    for name in ("a/2.mp4", "a/1.MOV", "b.mkv", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert [p.name for p in find_videos([tmp_path, clip])] == ["1.MOV", "2.mp4", "b.mkv", "dog.mp4"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no video"):
        find_videos([tmp_path / "empty"])
    with pytest.raises(InputError, match="does not exist"):
        find_videos([tmp_path / "nothing.mp4"])


def test_reading_can_be_given_up_early(clip):
    """FFmpeg's threads must not wait for Python's lock while their decoder is closed, which holds it."""
    code = (
        "from pathlib import Path\nfrom video_distilled_encoder.video import read_frames\n"
        f"for _ in range(60):\n    next(read_frames(Path({str(clip)!r})))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=100, check=True).returncode == 0
