"""The C++ examples, built here where a compiler is, and compared with torch on a real photograph."""

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from video_distilled_encoder import Encoder, load_runtime
from video_distilled_encoder.runtimes.artefact import Camera

SOURCE = Path(__file__).parents[2] / "examples" / "cpp"
SIZE = (32, 32)
PROGRAMS = {"onnx_encoder": "onnx", "openvino_encoder": "openvino", "aoti_encoder": "aoti"}
FEATURES = ("cls", "patches", "grid")


def find_libraries():
    """Return CMake's option for each program's library, or why there is none."""
    release = os.environ.get("ONNXRUNTIME_DIR")
    openvino = find_spec("openvino")
    return {
        "onnx_encoder": f"-DONNXRUNTIME_DIR={release}"
        if release
        else "the environment variable ONNXRUNTIME_DIR names no unpacked ONNX Runtime release",
        "openvino_encoder": f"-DOpenVINO_DIR={Path(openvino.origin).parent / 'cmake'}"
        if openvino
        else "openvino is not installed",
        "aoti_encoder": f"-DTORCH_DIR={Path(torch.__file__).parent}",
    }


def run(*command):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def configure(need_compiler):
    """Configure the project in a build folder; returns what CMake said."""
    if not shutil.which("cmake"):
        pytest.skip("cmake is not installed")
    need_compiler()

    def configure(build, *options):
        status, output = run("cmake", "-S", SOURCE, "-B", build, *options)
        assert status == 0, output
        return output

    return configure


@pytest.fixture(scope="module")
def program(configure, made_once):
    """Return the path of a built program, or skip the test with the reason why it cannot be built."""
    libraries = find_libraries()
    options = [option for option in libraries.values() if option.startswith("-D")]

    def build(folder):
        (folder / "said").write_text(configure(folder, "-DCMAKE_CXX_FLAGS_RELEASE=-O1", *options))
        status, output = run("cmake", "--build", folder, "--parallel", "2")
        assert status == 0, output

    def program(name):
        if not libraries[name].startswith("-D"):
            pytest.skip(libraries[name])
        folder = made_once("cpp", build)
        assert f"{name} is left out" not in (folder / "said").read_text()
        return folder / name

    return program


def assert_features(output, prefix, expected):
    for name in FEATURES:
        wanted = getattr(expected, name)
        assert f"{name} {'x'.join(map(str, wanted.shape))} -> {prefix}.{name}.f32" in output
        got = torch.from_numpy(np.fromfile(f"{prefix}.{name}.f32", np.float32)).view(wanted.shape)
        cosine = torch.cosine_similarity(got, wanted, dim=1 if name == "grid" else -1)
        assert cosine.min() >= 0.9999, name


@pytest.mark.parametrize(
    ("name", "format"), [*PROGRAMS.items(), ("openvino_encoder", "onnx")], ids=lambda value: value.split("_")[0]
)
def test_a_program_gives_torchs_features(name, format, program, export_once, shallow_directory, photograph, tmp_path):
    executable = program(name)
    encoder = Encoder.from_pretrained(shallow_directory)
    encoder.preprocess(photograph, size=SIZE).numpy().tofile(tmp_path / "pixels.raw")
    status, output = run(executable, export_once(format), tmp_path / "pixels.raw", "1x3x32x32", tmp_path / "features")
    assert status == 0, output
    assert "20 calls: median" in output
    assert_features(output, tmp_path / "features", encoder.encode(photograph, size=SIZE))


@pytest.mark.parametrize("name", ["onnx_encoder", "openvino_encoder"])
def test_a_program_takes_camera_frames(name, program, export_once, shallow_directory, photograph, tmp_path):
    executable = program(name)
    frame = np.array(Image.open(photograph).convert("RGB").resize((128, 96)))
    frame.tofile(tmp_path / "frame.raw")
    model = export_once("onnx", camera=Camera(96, 128), batch=(1, 1, 1))
    status, output = run(executable, model, tmp_path / "frame.raw", "1x96x128x3", tmp_path / "features")
    assert status == 0, output
    expected = Encoder.from_pretrained(shallow_directory).encode(frame, size=SIZE)
    assert_features(output, tmp_path / "features", expected)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_refuses_what_the_export_does_not_take(name, program, export_once, tmp_path):
    executable, model = program(name), export_once(PROGRAMS[name])
    pixels = tmp_path / "pixels.raw"
    np.zeros((1, 3, *SIZE), np.float32).tofile(pixels)
    for shape, reason in {
        "1x3x16x64": "",
        "4x3x32x32": "",  # uint8, by the file's size
        "1x3x32x40": "pixels.raw holds 12288 bytes; 1x3x32x40 takes 3840 as uint8 or 15360 as float32",
        "1x3xmany": "such as 1x3x224x224; got 1x3xmany",
    }.items():
        status, output = run(executable, model, pixels, shape, tmp_path / "features")
        assert status == 1, output
        assert "error: " in output
        assert reason in output
    status, output = run(executable)
    assert status == 2
    assert "usage" in output
    assert list(tmp_path.iterdir()) == [pixels]


@pytest.mark.parametrize(("name", "format"), PROGRAMS.items(), ids=lambda value: value.split("_")[0])
def test_outputs_are_those_of_the_sidecar(name, format, program, export_once, shallow_directory, photograph, tmp_path):
    executable, names = program(name), ("layer_0", *(FEATURES if format == "aoti" else ["cls"]))
    encoder = Encoder.from_pretrained(shallow_directory)
    pixels = encoder.preprocess(photograph, size=SIZE)
    pixels.numpy().tofile(tmp_path / "pixels.raw")
    model = export_once(format, outputs=names)
    status, output = run(executable, model, tmp_path / "pixels.raw", "1x3x32x32", tmp_path / "features")
    assert status == 0, output
    layer = encoder.intermediate_layers(pixels, n=[0])[0]
    wanted = {"layer_0": torch.cat([layer.cls[:, None], layer.patches], 1), **encoder(pixels)._asdict()}
    for of_name in names:
        values = wanted[of_name]
        got = torch.from_numpy(np.fromfile(tmp_path / f"features.{of_name}.f32", np.float32)).view(values.shape)
        torch.testing.assert_close(got, values, rtol=1e-3, atol=1e-3)
    assert {file.name for file in tmp_path.iterdir()} == {"pixels.raw", *(f"features.{it}.f32" for it in names)}


@pytest.mark.parametrize("name", ["onnx_encoder", "openvino_encoder"])
def test_the_camera_loop_encodes_the_newest_frame_and_counts_the_rest(
    name, program, export_once, shallow_directory, photograph
):
    executable, model = program(name), export_once("onnx", camera=Camera(96, 128), batch=(1, 1, 1))
    picture = np.array(Image.open(photograph).convert("RGB").resize((128, 96)))
    frames = [np.zeros_like(picture)] * 300 + [picture]
    command = [executable, model, "-"]
    given = b"".join(frame.tobytes() for frame in frames) + b"half a frame"
    done = subprocess.run([*map(str, command)], input=given, capture_output=True, timeout=300, check=False)
    lines = done.stdout.decode().splitlines()
    assert done.returncode == 0, done.stderr
    dropped = [int(line.rpartition(" ")[2]) for line in lines]
    assert len(lines) + sum(dropped) == len(frames)
    assert len(lines) < len(frames)  # they come faster than any encoder
    expected = Encoder.from_pretrained(shallow_directory).encode(picture, size=SIZE).cls[0, 0].item()
    assert float(lines[-1].split()[1].rstrip(",")) == pytest.approx(expected, abs=1e-3)
    assert 0 < float(lines[-1].split("age ")[1].split()[0]) < 60_000


def test_openvino_computes_in_the_export_s_precision(program, export_once, shallow_directory, photograph, tmp_path):
    """The program's numbers are the Python runtime's, and not those of fp32."""
    openvino = pytest.importorskip("openvino")
    executable = program("openvino_encoder")
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bf16")
    encoder = Encoder.from_pretrained(shallow_directory)
    encoder.preprocess(photograph, size=SIZE).numpy().tofile(tmp_path / "pixels.raw")
    got = {}
    for precision in ("fp32", "bf16"):
        model = export_once("openvino", precision=precision)
        status, output = run(executable, model, tmp_path / "pixels.raw", "1x3x32x32", tmp_path / precision)
        assert status == 0, output
        got[precision] = torch.from_numpy(np.fromfile(tmp_path / f"{precision}.cls.f32", np.float32))
        expected = load_runtime(model).encode(photograph).cls[0]
        torch.testing.assert_close(got[precision], expected, rtol=1e-5, atol=1e-5)
    assert (got["fp32"] - got["bf16"]).abs().max() > 1e-4


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_without_usable_facts_says_so(name, program, export_once, tmp_path):
    executable, model = program(name), export_once(PROGRAMS[name])
    np.zeros((1, 3, *SIZE), np.float32).tofile(tmp_path / "pixels.raw")
    copy = tmp_path / model.name
    copy.write_bytes(model.read_bytes())
    arguments = (copy, tmp_path / "pixels.raw", "1x3x32x32", tmp_path / "features")
    status, output = run(executable, *arguments)
    assert status == 1
    assert f"{copy}.json cannot be read" in output
    for facts in ("", "[", '{"precision": "fp32"}', '{"a": "\\u12', '{"a": 1e}', "[" * 100_000, '{"a" 1}', '"\\'):
        copy.with_name(f"{copy.name}.json").write_text(facts)
        status, output = run(executable, *arguments)
        assert status == 1, facts
        assert f"{copy}.json does not describe an export" in output
    status, output = run(executable, model, "-")
    assert status == 1
    assert "takes no frames; export it with --uint8-input" in output


def test_onnx_runtime_is_never_silently_on_the_cpu(program, export_once, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    executable, pixels = program("onnx_encoder"), tmp_path / "pixels.raw"
    np.zeros((1, 3, *SIZE), np.float32).tofile(pixels)
    for device in ("cuda", "cuda:1", "tpu"):
        arguments = ("--device", device, export_once("onnx"), pixels, "1x3x32x32", tmp_path / "features")
        status, output = run(executable, *arguments)
        assert status == 1, output
        assert "error: " in output
    assert list(tmp_path.iterdir()) == [pixels]


def test_tensorrt_s_program_compiles_against_nvidia_s_headers(need_compiler):
    """VDE_NVIDIA_HEADERS: folders with NvInfer.h and cuda_runtime_api.h, with colons between them."""
    if not os.environ.get("VDE_NVIDIA_HEADERS"):
        pytest.skip("VDE_NVIDIA_HEADERS names no headers of TensorRT and CUDA")
    need_compiler()
    folders = [word for folder in os.environ["VDE_NVIDIA_HEADERS"].split(":") for word in ("-isystem", folder)]
    warnings = ("-Wall", "-Wextra", "-Wconversion", "-Werror")
    status, output = run("c++", "-std=c++17", *warnings, *folders, "-fsyntax-only", SOURCE / "tensorrt_encoder.cpp")
    assert status == 0, output


def test_a_program_whose_library_is_missing_is_left_out(configure, tmp_path):
    nowhere = [f"-DCMAKE_FIND_ROOT_PATH_MODE_{kind}=ONLY" for kind in ("INCLUDE", "LIBRARY", "PACKAGE")]
    said = configure(tmp_path / "build", f"-DCMAKE_FIND_ROOT_PATH={tmp_path}", *nowhere)
    for name, option in {
        "onnx_encoder": "ONNXRUNTIME",
        "openvino_encoder": "OpenVINO",
        "aoti_encoder": "TORCH",
        "tensorrt_encoder": "TENSORRT",
    }.items():
        assert f"{name} is left out" in said
        assert f"-D{option}_DIR=" in said
