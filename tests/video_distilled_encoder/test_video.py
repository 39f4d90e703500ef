import struct
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import av
import numpy as np
import pytest

from video_distilled_encoder.errors import InputError, InputWarning
from video_distilled_encoder.files import HashedFile
from video_distilled_encoder.sources import find_sources
from video_distilled_encoder.video import _Clock, _probe, probe, read_frames, write_video


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


def test_folders_are_searched_for_videos(tmp_path, clip):
    (tmp_path / "a").mkdir()
    for name in ("a/2.mp4", "a/1.MOV", "b.mkv", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert [source.name for source in find_sources([tmp_path, clip])] == ["1.MOV", "2.mp4", "b.mkv", "dog.mp4"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no video"):
        find_sources([tmp_path / "empty"])
    with pytest.raises(InputError, match="does not exist"):
        find_sources([tmp_path / "nothing.mp4"])


def test_reading_can_be_given_up_early(clip):
    """FFmpeg's threads must not wait for Python's lock while their decoder is closed, which holds it."""
    code = (
        "from pathlib import Path\nfrom video_distilled_encoder.video import read_frames\n"
        f"for _ in range(60):\n    next(read_frames(Path({str(clip)!r})))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=100, check=True).returncode == 0


def encode(path, container, codec, stamps, size=(64, 48), picture=None, **options):
    """Write a video of moving noise, or of one picture, with frames at `stamps` / 24 s."""
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    with av.open(str(path), "w", format=container, options=options.pop("muxer", {})) as target:
        stream = target.add_stream(codec, rate=24, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for stamp in stamps:
            image = np.roll(noise, stamp, axis=1) if picture is None else picture
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = stamp
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
    return path


CONTAINERS = [
    *(("mp4", codec) for codec in ("libx264", "libx265", "libsvtav1", "mpeg4")),
    *(("mov", codec) for codec in ("libx264", "mjpeg")),
    *(("mkv", codec) for codec in ("libx264", "libvpx-vp9")),
    *[("webm", "libsvtav1"), ("avi", "mpeg4"), ("avi", "mjpeg"), ("ts", "libx264"), ("ts", "mpeg2video")],
    *[("mpg", "mpeg2video"), ("flv", "libx264"), ("gif", "gif")],
]


@pytest.mark.parametrize(("suffix", "codec"), CONTAINERS)
@pytest.mark.parametrize("stamps", [range(30), [0, 1, 2, 5, 9, 10, 11, 30, 31, 32, 60]], ids=["steady", "varying"])
def test_a_header_says_without_decoding_what_it_does_with(tmp_path, suffix, codec, stamps):
    path = tmp_path / f"x.{suffix}"
    try:
        encode(path, None, codec, stamps)
    except (av.error.FFmpegError, ValueError):
        pytest.skip(f"{codec} does not go into {suffix} here")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        expected = stream.width, stream.height, float(stream.average_rate)
    info = probe(path)
    assert (info.width, info.height, info.fps) == expected
    assert info == _probe(path, {})


@pytest.mark.parametrize("first", [12, 54], ids=["at a key frame", "between two"])
def test_an_edit_list_hides_frames_and_is_no_truncation(tmp_path, first):
    """Key frames every 12: of 96 frames the 24 from `first` on are shown; some before it may be there to decode it."""
    path = encode(tmp_path / "trim.mp4", "mp4", "libx264", range(96), g="12", bf="0", sc_threshold="0")
    content = bytearray(path.read_bytes())
    entry = content.index(b"elst") + 12  # after the name, the version and the number of entries
    content[entry : entry + 8] = struct.pack(">Ii", 1000, first * 12288 // 24)  # 1 s long, from there on
    path.write_bytes(content)
    frames = list(read_frames(path))
    assert np.allclose([frame.time for frame in frames], np.arange(24) / 24)
    whole = list(read_frames(encode(tmp_path / "whole.mp4", "mp4", "libx264", range(96), g="12", bf="0")))
    assert np.abs(frames[0].image.astype(int) - whole[first].image).mean() < 12
    assert probe(path).frames == 24
    assert not any(frame.new_shot for frame in frames)


def test_dropped_frames_of_an_avi_are_no_truncation_and_a_cut_one_is(tmp_path):
    path = encode(tmp_path / "camera.avi", "avi", "mjpeg", range(0, 120, 2))
    frames = list(read_frames(path))
    assert np.allclose([frame.time for frame in frames], np.arange(60) / 12)
    assert probe(path).frames == 60
    (tmp_path / "cut.avi").write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(InputError, match="is truncated"):
        list(read_frames(tmp_path / "cut.avi"))


def joined(path, *parts):
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def test_joined_recordings_whose_clock_starts_again_go_on_in_time(tmp_path):
    part = encode(tmp_path / "part.ts", "mpegts", "libx264", range(48))
    path = joined(tmp_path / "joined.ts", part, part, part)
    with pytest.warns(InputWarning, match=r"joined\.ts the clock starts again \(2 x\)"):
        frames = list(read_frames(path))
    assert np.allclose([frame.time for frame in frames], np.arange(144) / 24, atol=1e-4)
    assert [number for number, frame in enumerate(frames) if frame.new_shot] == [48, 96]
    with pytest.warns(InputWarning):
        slower = list(read_frames(path, min_interval=0.1))
    assert np.allclose([frame.time for frame in slower], np.arange(60) / 10, atol=0.5 / 24 + 1e-4)
    assert [number for number, frame in enumerate(slower) if frame.new_shot] == [20, 40]


@pytest.mark.parametrize(("container", "jump"), [("mpegts", 40_000), ("matroska", 2_000_000)])
def test_a_clock_that_jumps_ahead_is_no_gap_in_time(tmp_path, container, jump):
    stamps = [*range(24), *range(24 + 24 * jump, 48 + 24 * jump)]
    path = encode(tmp_path / "jump", container, "libx264", stamps, bf="0", tune="zerolatency")
    with pytest.warns(InputWarning, match=r"the clock jumps ahead \(1 x\)"):
        frames = list(read_frames(path, min_interval=0.1))
    times = np.array([frame.time for frame in frames])
    assert len(times) == 20
    assert np.allclose(times, np.arange(20) / 10, atol=0.5 / 24 + 1e-2)
    assert [number for number, frame in enumerate(frames) if frame.new_shot] == [10]


def test_a_picture_held_for_minutes_stays_so_long(tmp_path):
    path = encode(tmp_path / "screen.mkv", "matroska", "libx264", [0, 1, 2, 24 * 300], bf="0")
    frames = list(read_frames(path))
    assert [round(frame.time) for frame in frames] == [0, 0, 0, 300]
    assert not any(frame.new_shot for frame in frames)


def test_time_stamps_a_little_out_of_order_are_one_shot():
    clock = _Clock(0.04, 10.0)
    read = [clock.read(stamp) for stamp in (None, 5.04, 5.12, 5.08, None, 5.2)]
    assert np.allclose([time for time, _ in read], [0, 0.04, 0.12, 0.12, 0.16, 0.2])
    assert not any(change for _, change in read)


def test_frames_have_one_size_though_the_video_changes_it(tmp_path):
    half = np.zeros((48, 64, 3), np.uint8)
    half[:, :32] = 255
    wide = np.kron(np.array([[80, 255, 0, 80]]), np.ones((40, 20)))[..., None].repeat(3, 2).astype(np.uint8)
    parts = [
        encode(tmp_path / "a.ts", "mpegts", "libx264", range(24), picture=half),
        encode(tmp_path / "b.ts", "mpegts", "libx264", range(24), size=(80, 40), picture=wide),
    ]
    with pytest.warns(InputWarning, match=r"the size changes \(1 x\)"):
        frames = list(read_frames(joined(tmp_path / "sizes.ts", *parts)))
    assert {frame.image.shape for frame in frames} == {(48, 64, 3)}
    assert [number for number, frame in enumerate(frames) if frame.new_shot] == [24]
    # 80 x 40 becomes 96 x 48, of which the middle 64 are kept: of the 24 pixels of each grey edge 8
    expected = np.repeat([80, 255, 0, 80], [8, 24, 24, 8])
    row = frames[-1].image[24, :, 0].astype(int)
    inner = np.abs(np.arange(64)[:, None] - [8, 32, 56]).min(1) > 3
    assert np.abs(row - expected)[inner].max() < 12


@pytest.mark.parametrize(
    "turn", [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)], ids=["0", "90", "180", "270"]
)
@pytest.mark.parametrize("mirrored", [False, True])
def test_pictures_are_shown_as_their_display_matrix_says(tmp_path, turn, mirrored):
    a, b, c, d = (-turn[0], -turn[1], *turn[2:]) if mirrored else turn
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
    path = encode(
        tmp_path / "x.mp4", "mp4", "libx264", range(3), (64, 48), colours.repeat(24, 0).repeat(32, 1), crf="5"
    )
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44
    content[start : start + 20] = struct.pack(">5i", a << 16, b << 16, 0, c << 16, d << 16)
    path.write_bytes(content)
    shown = next(read_frames(path)).image
    expected = np.empty_like(colours)
    for y, x in np.ndindex(2, 2):  # the middles of the quadrants around the middle of the picture
        across, down = a * (2 * x - 1) + c * (2 * y - 1), b * (2 * x - 1) + d * (2 * y - 1)
        expected[(down + 1) // 2, (across + 1) // 2] = colours[y, x]
    assert shown.shape == ((64, 48, 3) if a == 0 else (48, 64, 3))
    height, width = shown.shape[:2]
    middles = shown[height // 4 :: height // 2, width // 4 :: width // 2].astype(int)
    assert np.abs(middles - expected).max() < 40


@pytest.mark.parametrize(("name", "container", "codec"), [("a.h264", "h264", "libx264"), ("a.bag", "mjpeg", "mjpeg")])
def test_streams_without_time_stamps_are_refused(tmp_path, name, container, codec):
    path = encode(tmp_path / name, container, codec, range(24))
    for read in (probe, lambda path: next(read_frames(path))):
        with pytest.raises(InputError, match=rf"{name} has no time stamps: it is read as a bare {container} stream"):
            read(path)


def test_a_name_with_a_colon_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("2026-01-02T12:30:05.mp4")
    write_video(path, [np.zeros((48, 64, 3), np.uint8)] * 3, 10)
    assert len(list(read_frames(path))) == 3


@pytest.mark.parametrize("good", [0, 3, 200_000])
def test_a_disk_that_fails_while_a_video_is_read_is_not_called_a_damaged_video(clip, good):
    class Failing(HashedFile):
        def read(self, size=-1):
            if self.tell() >= good:
                raise OSError(5, "Input/output error")
            return super().read(size)

    with pytest.raises(InputError, match=r"cannot read .*dog\.mp4 \(Input/output error\)"):
        list(read_frames(clip, opener=lambda path: closing(Failing(path))))


def test_a_file_that_may_not_be_read_is_not_called_damaged(clip, monkeypatch):
    def refuse(*_, **__):
        raise av.error.PermissionError(13, "Permission denied")

    monkeypatch.setattr(av, "open", refuse)
    with pytest.raises(InputError, match=r"^cannot read .*dog\.mp4 \(Permission denied\); see to its rights"):
        probe(clip)
