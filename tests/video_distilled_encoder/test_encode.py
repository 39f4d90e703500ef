import io
import os
import signal
import subprocess
import sys
import time
import weakref

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from video_distilled_encoder import Encoder, encode
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.pca import PCA
from video_distilled_encoder.video import probe, read_frames


def test_image_features_and_picture(run_command, tiny, tiny_directory, photograph, tmp_path):
    out = tmp_path / "out"
    assert run_command(encode.main, photograph, "--model", tiny_directory, "--out", out, "--dtype", "float32") is None
    assert sorted(path.name for path in out.iterdir()) == ["car-shadow.pca.png", "car-shadow.safetensors"]
    stored = load_file(out / "car-shadow.safetensors")
    expected = tiny.encode(photograph, crop_mode="whole")
    assert torch.allclose(stored["patches"], expected.patches[0], atol=1e-5)
    assert torch.allclose(stored["cls"], expected.cls[0], atol=1e-5)
    with safe_open(out / "car-shadow.safetensors", "pt") as file:
        assert file.metadata()["grid"] == "14x25"
    picture = np.asarray(Image.open(out / "car-shadow.pca.png"))
    assert picture.shape == (480, 2 * 854, 3)
    assert np.array_equal(picture[:, :854], np.asarray(Image.open(photograph)))
    assert picture[:, 854:].std() > 20


def test_a_folder_keeps_its_structure_and_npy_is_npy(run_command, tiny_directory, photograph, tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    Image.open(photograph).resize((100, 80)).save(tmp_path / "in" / "deep" / "a.png")
    (tmp_path / "in" / "readme.txt").write_text("not an image")
    options = ["--model", tiny_directory, "--format", "npy", "--no-pictures", "--size", "64", "--crop-mode", "squash"]
    assert run_command(encode.main, tmp_path / "in", "--out", tmp_path / "out", *options) is None
    assert sorted(p.name for p in (tmp_path / "out" / "deep").iterdir()) == ["a.cls.npy", "a.patches.npy"]
    assert np.load(tmp_path / "out" / "deep" / "a.patches.npy").shape == (16, 64)


@pytest.mark.parametrize("kind", ["safetensors", "npy"])
def test_features_of_a_data_set_are_those_of_its_cameras_episodes_and_frames(
    run_command, tiny, tiny_directory, aloha, tmp_path, kind
):
    options = ["--model", tiny_directory, "--size", "32", "--no-pictures", "--dtype", "float32", "--format", kind]
    chosen = ["--source-fps", "50", "--episodes", "1:3", "--cameras", "wrist"]
    assert run_command(encode.main, aloha.parent, "--out", tmp_path, *options, *chosen) is None
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    endings = ("safetensors",) if kind == "safetensors" else ("cls.npy", "patches.npy", "times.npy")
    assert names == {f"fold/fold/wrist/episode_{number}.{ending}" for number in (1, 2) for ending in endings}
    place = tmp_path / "fold" / "fold" / "wrist" / "episode_2"
    stored = (
        load_file(place.with_suffix(".safetensors"))
        if kind == "safetensors"
        else {key: torch.from_numpy(np.load(f"{place}.{key}.npy")) for key in ("patches", "times")}
    )
    with pytest.importorskip("h5py").File(aloha / "episode_2.hdf5") as file:
        images = file["observations/images/wrist"][:]
    assert torch.allclose(stored["patches"], tiny.encode(list(images), size=32, crop_mode="whole").patches, atol=1e-4)
    assert torch.allclose(stored["times"], torch.arange(20) / 50)
    assert "--source-fps" in run_command(encode.main, aloha, "--out", tmp_path, *options)


def test_video_features_in_parts_and_picture_video(run_command, tiny, tiny_directory, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "FRAMES_PER_FILE", 8)
    options = ["--model", tiny_directory, "--size", "64", "--fps", "6", "--batch-size", "4", "--dtype", "float32"]
    assert run_command(encode.main, clip, "--out", tmp_path, *options) is None
    names = ["dog.part2.safetensors", "dog.pca.mp4", "dog.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    parts = [load_file(tmp_path / name) for name in ("dog.safetensors", "dog.part2.safetensors")]
    stored = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    frames = list(read_frames(clip, min_interval=1 / 6))
    expected = tiny.encode([frame.image for frame in frames], size=64, crop_mode="whole")
    assert torch.allclose(stored["times"], torch.tensor([frame.time for frame in frames]))
    assert torch.allclose(stored["patches"], expected.patches, atol=1e-5)
    pictures = [frame.image for frame in read_frames(tmp_path / "dog.pca.mp4")]
    assert len(pictures) == len(frames) == 15
    assert pictures[0].shape == (270, 2 * 480, 3)
    assert np.abs(pictures[0][:, :480].astype(int) - frames[0].image).mean() < 6


def faststart(path, images):
    """Write an MP4 whose index comes first, so that a truncated copy still opens."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = *images[0].shape[:2], "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def noise(count):
    return list(np.random.default_rng(0).integers(0, 255, (count, 48, 64, 3), dtype=np.uint8))


def test_a_bad_file_ends_no_folder_and_leaves_nothing(run_command, tiny_directory, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(encode, "FRAMES_PER_FILE", 4)
    folder = tmp_path / "in"
    folder.mkdir()
    faststart(folder / "broken.mp4", noise(20))
    content = (folder / "broken.mp4").read_bytes()
    (folder / "broken.mp4").write_bytes(content[: len(content) * 3 // 4])
    (folder / "a.jpg").write_text("text")
    Image.fromarray(noise(1)[0]).save(folder / "z.png")
    options = ["--out", tmp_path / "out", "--model", tiny_directory, "--size", "32", "--no-pictures"]
    error = run_command(encode.main, folder, *options)
    assert "2 of 3 inputs could not be encoded:\n  " in error
    assert "a.jpg cannot be read as an image" in error
    assert "broken.mp4" in error
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["z.safetensors"]
    assert "1 of 3 inputs encoded" in capsys.readouterr().out


def test_a_second_run_leaves_no_part_of_a_longer_video_and_encodes_no_output(
    run_command, tiny_directory, make_video, tmp_path, monkeypatch
):
    monkeypatch.setattr(encode, "FRAMES_PER_FILE", 4)
    options = ["--model", tiny_directory, "--size", "32", "--batch-size", "2"]
    for seconds, parts in ((1.2, ["a.part2.safetensors", "a.part3.safetensors"]), (0.4, [])):
        video = make_video("in/a.mp4", seconds=seconds)
        assert run_command(encode.main, video.parent, "--out", video.parent, *options) is None
        (video.parent / "a.part2.of-another.safetensors").touch()
        expected = ["a.mp4", "a.part2.of-another.safetensors", *parts, "a.pca.mp4", "a.safetensors"]
        assert sorted(path.name for path in video.parent.iterdir()) == expected


def test_a_video_whose_parts_would_be_another_video_is_refused(make_video, tmp_path):
    for name in ("in/a.mp4", "in/a.part2.mp4"):
        video = make_video(name, seconds=0.2)
    with pytest.raises(InputError, match="would both be written"):
        encode.find_jobs([video.parent], tmp_path / "out")


def test_an_input_that_is_named_twice_is_refused(tmp_path, photograph):
    inner = tmp_path / "in" / "b" / "x.jpg"
    inner.parent.mkdir(parents=True)
    inner.write_bytes(photograph.read_bytes())
    with pytest.raises(InputError, match=r"x\.jpg is among the inputs twice, as .*out/x and .*out/b/x; name it once"):
        encode.find_jobs([inner, tmp_path / "in"], tmp_path / "out")


def test_a_table_of_some_frames_claims_no_number_for_them(run_command, tiny_directory, clip, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    options = ["--model", tiny_directory, "--size", "32", "--no-pictures", "--format", "parquet"]
    assert run_command(encode.main, clip, "--out", tmp_path, "--fps", "6", *options) is None
    table = parquet.read_table(tmp_path / "dog.parquet")
    assert table.column_names == ["timestamp", "cls", "patches"]
    assert table["timestamp"][1].as_py() > 0.1


def test_terminated_it_leaves_nothing_half_made(start, tiny_directory, clip, tmp_path):
    words = [clip, "--out", tmp_path / "out", "--model", tiny_directory, "--size", "224", "--batch-size", "1"]
    process = start("-m", "video_distilled_encoder.encode", *words)
    deadline = time.monotonic() + 60
    while not [*tmp_path.glob(".out.*"), *tmp_path.glob("out/.*")]:
        assert process.poll(0.01) is None, process.err()
        assert time.monotonic() < deadline
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) == 130
    assert "Traceback" not in process.err()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_nothing_to_write_is_refused(run_command, clip, tmp_path, capsys):
    assert run_command(encode.main, clip, "--out", tmp_path, "--no-features", "--no-pictures") == 2
    assert "--no-features and --no-pictures leave nothing to write" in capsys.readouterr().err


@pytest.mark.parametrize("fps", ["nan", "inf", "0", "-1"])
def test_a_rate_is_a_positive_number(run_command, clip, tmp_path, fps, capsys):
    assert run_command(encode.main, clip, "--out", tmp_path, "--fps", fps) == 2
    assert "--batch-size and --fps must be positive" in capsys.readouterr().err


class Stretch(io.RawIOBase):
    """A file that cannot be sought in, as browsers record: the length stays unknown."""

    def __init__(self):
        self.content = b""

    def writable(self):
        return True

    def write(self, data):
        self.content += bytes(data)
        return len(data)


def test_a_video_of_unknown_length_is_encoded_once(run_command, tiny_directory, tmp_path, monkeypatch):
    stretch = Stretch()
    with av.open(stretch, "w", format="webm", options={"live": "1"}) as container:
        stream = container.add_stream("libvpx", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for image in noise(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    (tmp_path / "a.webm").write_bytes(stretch.content)
    assert probe(tmp_path / "a.webm").frames == 0
    encoded = []
    plain = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, images, **o: encoded.append(images) or plain(self, images, **o))
    options = ["--out", tmp_path, "--model", tiny_directory, "--size", "32"]
    assert run_command(encode.main, tmp_path / "a.webm", *options) is None
    for_colours = [images for images in encoded if not isinstance(images, list)]
    assert 8 <= len(for_colours) <= 16
    assert sum(len(images) for images in encoded if isinstance(images, list)) == 40
    assert len(load_file(tmp_path / "a.safetensors")["times"]) == 40


@pytest.mark.parametrize("length", [0, 1, 16, 17, 1000])
def test_evenly_spaced_items_are_held_in_bounded_memory(length):
    class Item:
        def __init__(self, number):
            self.number = number
            alive.add(self)

    def items():
        for number in range(length):
            assert len(alive) <= 17
            yield Item(number)

    alive = weakref.WeakSet()
    numbers = [item.number for item in encode.spread(items(), 16)]
    assert min(length, 8) <= len(numbers) <= 16
    assert numbers == list(range(0, length, numbers[1] if len(numbers) > 1 else 1))


def test_a_gif_that_moves_is_a_video(run_command, tiny_directory, tmp_path):
    still, *more = (Image.fromarray(image) for image in noise(3))
    still.save(tmp_path / "still.gif")
    still.save(tmp_path / "moving.gif", save_all=True, append_images=more, duration=100)
    options = ["--out", tmp_path / "out", "--model", tiny_directory, "--size", "32", "--no-pictures"]
    assert run_command(encode.main, tmp_path, *options) is None
    assert load_file(tmp_path / "out" / "still.safetensors")["cls"].shape == (64,)
    assert torch.allclose(load_file(tmp_path / "out" / "moving.safetensors")["times"], torch.tensor([0, 0.1, 0.2]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jpg", None, "missing.jpg does not exist"),
        ("empty.jpg", b"", "is empty"),
        ("text.jpg", b"text", "cannot be read as an image"),
        ("text.heic", b"text", "convert it to JPEG first"),
        ("text.mp4", b"text", "cannot be read as a video"),
    ],
)
def test_unreadable_input_is_one_sentence_and_leaves_nothing(
    run_command, tiny_directory, tmp_path, name, content, message
):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    error = run_command(encode.main, tmp_path / name, "--out", tmp_path / "out", "--model", tiny_directory)
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_names_that_would_collide_are_refused(run_command, tiny_directory, photograph, tmp_path):
    for name in ("a.jpg", "a.png"):
        Image.open(photograph).save(tmp_path / name)
    error = run_command(encode.main, tmp_path, "--out", tmp_path / "out", "--model", tiny_directory)
    assert "would both be written" in error


def test_the_process_exits_with_status_1(tmp_path):
    command = [sys.executable, "-m", "video_distilled_encoder.encode", "nothing.jpg", "--out", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr == "error: nothing.jpg does not exist\n"


def test_pca_recovers_planted_directions():
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(20, 20, generator=generator)).Q[:, :3]
    strengths = torch.tensor([9.0, 5.0, 3.0])
    values = torch.randn(500, 3, generator=generator) * strengths
    tokens = values @ directions.T + 0.01 * torch.randn(500, 20, generator=generator) + 7
    pca = PCA.fit(tokens)
    overlap = (pca.directions.float().T @ directions).abs()
    assert torch.allclose(overlap, torch.eye(3), atol=0.1)
    picture = pca.picture(tokens[:6].T.reshape(20, 2, 3), (20, 30))
    assert picture.shape == (20, 30, 3)
    assert (picture[:10, :10] == picture[0, 0]).all()
