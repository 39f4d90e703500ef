import json
import os
import shutil
from pathlib import Path

# Two test processes are the two processors' work; read when numpy, torch and the Hub's library are imported, here and
# in the commands that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import av
import numpy as np
import pytest
import torch
from PIL import Image

from video_distilled_encoder import Encoder, ModelConfig
from video_distilled_encoder.video import read_frames, write_video

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Nothing is left in the user's cache, and nothing there decides a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VDE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def need_compiler():
    """Skip where there is no C++ compiler: any other failure of what needs one is a failure."""

    def need():
        if not any(map(shutil.which, filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")))):
            pytest.skip("there is no C++ compiler")

    return need


@pytest.fixture(scope="session")
def photograph():
    return ROOT / "video_distilled_encoder" / "photographs" / "car-shadow.jpg"


@pytest.fixture(scope="session")
def clip():
    """60 real frames, 2.5 s."""
    return ROOT / "examples" / "dog.mp4"


@pytest.fixture(scope="session")
def encoder():
    """A ViT-S/16 with random weights, sharpened a little so that its features differ between patches."""
    torch.manual_seed(0)
    backbone = ModelConfig().build_backbone()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return Encoder(backbone, card="# A test encoder\n").eval()


@pytest.fixture(scope="session")
def tiny():
    """An encoder of six narrow blocks."""
    torch.manual_seed(0)
    config = ModelConfig(architecture="vit_tiny_patch16_224", model_args={"embed_dim": 64, "depth": 6, "num_heads": 2})
    return Encoder(config.build_backbone(), config, card="# A tiny test encoder\n").eval()


@pytest.fixture(scope="session")
def tiny_directory(tiny, tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "tiny"
    tiny.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def shallow_directory(tmp_path_factory):
    """A network of three narrow blocks, for what is exported again and again."""
    torch.manual_seed(0)
    config = ModelConfig(model_args={"embed_dim": 64, "depth": 3, "num_heads": 2})
    directory = tmp_path_factory.mktemp("models") / "shallow"
    Encoder(config.build_backbone(), config, card="# A shallow test encoder\n").eval().save_pretrained(directory)
    return directory


@pytest.fixture
def make_video(tmp_path):
    """Write a short video of moving noise."""

    def make(name="video.mp4", seconds=2.0, fps=10, size=(64, 48)):
        rng = np.random.default_rng(0)
        picture = rng.integers(0, 255, (size[1], 2 * size[0], 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(picture).resize((16, 8)).resize((2 * size[0], size[1])))
        frames = (np.ascontiguousarray(smooth[:, i % size[0] :][:, : size[0]]) for i in range(round(seconds * fps)))
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, frames, fps)
        return path

    return make


@pytest.fixture(scope="session")
def aloha(clip, tmp_path_factory):
    """A data set in ALOHA's layout, without a clock: three episodes of 20 real frames, which two cameras see."""
    h5py = pytest.importorskip("h5py")
    root = tmp_path_factory.mktemp("aloha") / "fold"
    root.mkdir()
    images = np.stack([np.asarray(Image.fromarray(f.image).resize((96, 64))) for f in read_frames(clip)])
    for episode in range(3):
        with h5py.File(root / f"episode_{episode}.hdf5", "w") as file:
            seen = images[20 * episode : 20 * episode + 20]
            for camera, pictures in (("front", seen), ("wrist", seen[:, :, ::-1])):
                file.create_dataset(f"observations/images/{camera}", data=pictures, chunks=(1, 64, 96, 3))
    return root


@pytest.fixture(scope="session")
def lerobot(clip, tmp_path_factory):
    """A data set in the layout of LeRobot v3, 10 Hz: three episodes of 20 real frames in one mp4 of each camera."""
    parquet = pytest.importorskip("pyarrow.parquet")
    root = tmp_path_factory.mktemp("lerobot") / "push"
    feature = {"dtype": "video", "shape": [64, 96, 3], "names": ["height", "width", "channels"]}
    cameras = ("observation.images.top", "observation.images.wrist")
    video_path = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    info = {
        "codebase_version": "v3.0",
        "fps": 10,
        "video_path": video_path,
        "features": dict.fromkeys(cameras, feature),
    }
    (root / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(info))
    images = [np.asarray(Image.fromarray(frame.image).resize((96, 64))) for frame in read_frames(clip)]
    episodes = [{"episode_index": number, "length": 20} for number in range(3)]
    for camera in cameras:
        write_video(root / video_path.format(video_key=camera, chunk_index=0, file_index=0), images, 10)
        for number, episode in enumerate(episodes):
            ends = {"from_timestamp": 2.0 * number, "to_timestamp": 2.0 * number + 2}
            episode |= {f"videos/{camera}/{k}": v for k, v in ends.items()}
            episode |= {f"videos/{camera}/{kind}_index": 0 for kind in ("chunk", "file")}
    table = pytest.importorskip("pyarrow").Table.from_pylist(episodes)
    parquet.write_table(table, root / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    return root


@pytest.fixture
def joined_recordings(tmp_path):
    """Write a recording twice into one MPEG-TS, as `cat` joins them: the clock starts again in the middle."""

    def make(frames, fps):
        path = tmp_path / "joined.ts"
        with av.open(str(path), "w", format="mpegts") as container:
            stream = container.add_stream("libx264", rate=fps)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for _ in range(frames):
                black = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
                container.mux(stream.encode(black))
            container.mux(stream.encode())
        path.write_bytes(2 * path.read_bytes())
        return path

    return make


@pytest.fixture
def run_command(monkeypatch):
    """Run a command's main in this process; returns None if it succeeded, else its error message."""

    def run(main, *arguments):
        monkeypatch.setattr("sys.argv", ["command", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or None

    return run


@pytest.fixture
def one_thread():
    """Compute on one thread: in tiny products a second is waited for longer than it helps, above all beside others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def coloured_set():
    """Write a labelled set in CamVid's layout whose three classes are colours."""

    def write(root, train, test, void_rows=0, block=16):
        rng = np.random.default_rng(0)
        palette = np.array([[220, 40, 40], [40, 200, 40], [40, 40, 220]])
        for split, count in (("train", train), ("test", test)):
            for part in (split, f"{split}annot"):
                (root / part).mkdir(parents=True)
            for number in range(count):
                labels = np.kron(rng.integers(0, 3, (64 // block, 96 // block)), np.ones((block, block), int)).astype(
                    np.uint8
                )
                image = palette[labels] + rng.normal(0, 6, (64, 96, 3))
                labels[:void_rows] = 11
                Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / split / f"{number}.png")
                Image.fromarray(labels).save(root / f"{split}annot" / f"{number}.png")
        return root

    return write
