import functools
import hashlib
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

# Two test processes are the two processors' work; read when numpy, torch and the Hub's library are imported, here and
# in the commands that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import av
import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from export import latency
from export import onnx as onnx_format
from export.pipeline import export
from video_distilled_encoder import Encoder, InputError, ModelConfig
from video_distilled_encoder.runtimes.artefact import FEATURES, SUFFIXES
from video_distilled_encoder.video import read_frames, write_video

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Nothing is left in the user's cache, and nothing there decides a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VDE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_table_of_operators():
    """Let torch read its table of ONNX's operators, a quarter of a small export, once a process."""
    with pytest.MonkeyPatch.context() as patch:
        with suppress(ImportError):
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield


@pytest.fixture(scope="session", autouse=True)
def _exports_are_timed_for_a_moment():
    """Not for a second each, which many exports add up to a minute and a half."""
    with pytest.MonkeyPatch.context() as patch:
        brief = SimpleNamespace(measure=functools.partial(latency.measure, seconds=0.05), Latency=latency.Latency)
        patch.setattr("export.pipeline.latency", brief)
        yield


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Fill a folder once for all tests, whatever process they run in: of a name, by `make(folder)`."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared

    def made_once(name, make):
        folder, unfinished = shared / name, shared / f"{name}.new"
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                make(unfinished)
                unfinished.rename(folder)
        return folder

    return made_once


@pytest.fixture(scope="session", autouse=True)
def _one_trace_of_a_network(made_once):
    """Trace each network once for all tests: most of an export is to trace it, and many export the same."""
    with pytest.MonkeyPatch.context() as patch:
        trace = onnx_format.trace

        def traced_once(network, path):
            artefact = replace(network.artefact, format="", precision="")
            digest = hashlib.sha256(repr((network, network.dtype, artefact, torch.get_default_dtype())).encode())
            for name, tensor in network.state_dict().items():
                digest.update(name.encode() + tensor.flatten().view(torch.uint8).numpy().tobytes())
            folder = made_once(f"trace-{digest.hexdigest()}", lambda folder: trace(network, folder / "graph.onnx"))
            shutil.copy(folder / "graph.onnx", path)

        patch.setattr(onnx_format, "trace", traced_once)
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
    config = ModelConfig()
    backbone = config.build_backbone()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return Encoder(backbone, config, card="# A test encoder\n").eval()


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
    """A network of two narrow blocks, for what is exported again and again."""
    torch.manual_seed(0)
    config = ModelConfig(model_args={"embed_dim": 64, "depth": 2, "num_heads": 2})
    directory = tmp_path_factory.mktemp("models") / "shallow"
    Encoder(config.build_backbone(), config, card="# A shallow test encoder\n").eval().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def export_once(shallow_directory, made_once, need_compiler):
    """Export the shallow network, once for all tests that want the same; returns the file."""

    def export_once(format, **how):
        for package in {"openvino": ["openvino"], "onnx": ["onnxscript", "onnxruntime"]}.get(format, []):
            pytest.importorskip(package)
        if format == "aoti":
            need_compiler()
            how = {"outputs": ("layer_0", *FEATURES), **how}
        how = {"format": format, "size": (32, 32), "batch": (1, 1, 4), "layer_parity": False, **how}
        name = f"encoder{SUFFIXES[format]}"
        words = hashlib.sha256(repr(sorted(how.items())).encode()).hexdigest()
        try:
            return made_once(words, lambda folder: export(shallow_directory, folder / name, **how)) / name
        except InputError as error:
            if "does not compute in bf16" in str(error):
                pytest.skip(str(error))
            raise

    return export_once


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
        seen = images if camera == cameras[0] else [np.ascontiguousarray(image[:, ::-1]) for image in images]
        write_video(root / video_path.format(video_key=camera, chunk_index=0, file_index=0), seen, 10)
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


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory):
    """Where to ask for processes in which the code that trains is imported already."""
    place = tmp_path_factory.mktemp("fork") / "server"
    modules = ["training.engine.arguments", "training.engine.run", "jsonargparse", "av"]
    drawing = {"matplotlib": "matplotlib.pyplot", "tensorboard": "torch.utils.tensorboard"}
    modules += [module for package, module in drawing.items() if find_spec(package)]
    command = [sys.executable, Path(__file__).with_name("fork_server.py"), place, *modules]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, start_new_session=True) as server:
        deadline = time.monotonic() + 120
        while not place.exists():
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield place
        server.stdin.close()


class Running:
    """A process that `start` started."""

    def __init__(self, place, folder, words, environment, largest_file):
        self._out, self._err = (folder / f"{name}{time.monotonic_ns()}" for name in ("out", "err"))
        wanted = {"words": [*map(str, words)], "out": str(self._out), "err": str(self._err)}
        wanted |= {"environment": {**os.environ, **environment}, "largest_file": largest_file}
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(str(place))
        self._connection.sendall(json.dumps(wanted).encode() + b"\n")
        (self.pid,) = struct.unpack("i", self._connection.recv(4))
        self.returncode = None

    def poll(self, seconds=0.0):
        """Return the exit status, which is the signal's number below 0 if one ended it, or None if it is at work."""
        if self.returncode is None and select.select([self._connection], [], [], seconds)[0]:
            (self.returncode,) = struct.unpack("i", self._connection.recv(4))
            self._connection.close()
        return self.returncode

    def wait(self, seconds=300.0):
        """Return the exit status when it has ended."""
        status = self.poll(seconds)
        assert status is not None, f"still at work after {seconds} s: {self.err()}"
        return status

    def kill(self):
        """End it, and none of its children."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def out(self):
        """Return what it has printed."""
        return self._out.read_text() if self._out.exists() else ""

    def err(self):
        """Return what it has printed on standard error."""
        return self._err.read_text() if self._err.exists() else ""


@pytest.fixture
def start(fork_server, tmp_path_factory):
    """Start `python` with some words (-m MODULE …, or -c PROGRAM …) as a process and a group of processes of its own.

    It is forked from one that has imported what it needs, which would take it most of its time.
    """
    running, folder = [], tmp_path_factory.mktemp("processes")

    def start(*words, environment=(), largest_file=None):
        running.append(Running(fork_server, folder, words, dict(environment), largest_file))
        return running[-1]

    yield start
    for process in running:  # and the children of one that was killed
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def start_world(start):
    """Start a command in processes that are each other's peers, as a launcher does, which tells them by variables."""

    def start_world(*words, size=2, machines=1):
        with socket.socket() as place:
            place.bind(("127.0.0.1", 0))
            port = place.getsockname()[1]
        here = size // machines
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": here}
        return [
            start(*words, environment={n: str(v) for n, v in (common | {"RANK": i, "LOCAL_RANK": i % here}).items()})
            for i in range(size)
        ]

    return start_world
