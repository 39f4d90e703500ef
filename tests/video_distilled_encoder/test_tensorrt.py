"""TensorRT's calls against a stand-in with NVIDIA's published names; on a machine that has it, against TensorRT."""

import importlib.util
import json
import shlex
import sys
import types
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from export import tensorrt as exporter  # noqa: E402
from video_distilled_encoder import load_runtime  # noqa: E402
from video_distilled_encoder.errors import InputError, MissingExtra  # noqa: E402
from video_distilled_encoder.files import sha256  # noqa: E402
from video_distilled_encoder.runtimes import tensorrt  # noqa: E402
from video_distilled_encoder.runtimes.artefact import Artefact, Camera, sidecar  # noqa: E402
from video_distilled_encoder.runtimes.cuda_graph import KEPT  # noqa: E402
from video_distilled_encoder.runtimes.recording import gpus  # noqa: E402

HERE = Path(__file__).parent
CPU = torch.device("cpu")
OPTIONS = tensorrt.BuildOptions()
WEIGHT = np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32) / 28
PREPROCESSING = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic", "crop_pct": 1.0}


def stand_in_module():
    spec = importlib.util.spec_from_file_location("tensorrt_stand_in", HERE / "tensorrt_stand_in.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


stand_in = stand_in_module()


@pytest.fixture(params=list(stand_in.SURFACE))
def trt(request, monkeypatch):
    return install(monkeypatch, request.param)


@pytest.fixture
def newest(monkeypatch):
    return install(monkeypatch, "11.4.0")


@pytest.fixture
def gpu(monkeypatch, fake_cuda):
    """A GPU in name only: what is computed is computed on the CPU."""
    here = {"gpu": ("NVIDIA L4", (8, 9))}
    monkeypatch.setattr(stand_in, "record", fake_cuda.record)
    monkeypatch.setattr(tensorrt, "_gpu", lambda device: here["gpu"])
    monkeypatch.setattr(tensorrt, "cuda_device", lambda name: CPU)
    return here


def install(monkeypatch, version, **state):
    module = stand_in.Module(version, **state)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


def write_graph(path, batch="batch", camera=False, resize=False):
    """A patch embedding: grid (B, 4, 2, 2), patches (B, 4, 4) and cls (B, 4), their mean; inputs are 32x32."""
    constants = {"weight": WEIGHT, "rows": np.array([0, 4, -1]), "middle": np.array([1])}
    shape = [batch, 32, 32, 3] if camera else [batch, 3, 32, 32]
    source = helper.make_tensor_value_info(
        "frames" if camera else "pixel_values", TensorProto.UINT8 if camera else TensorProto.FLOAT, shape
    )
    nodes = [
        helper.make_node("Conv", ["pixels" if camera else "pixel_values", "weight"], ["grid"], strides=[16, 16]),
        helper.make_node("Reshape", ["grid", "rows"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["patches"], perm=[0, 2, 1]),
        helper.make_node("ReduceMean", ["patches", "middle"], ["cls"], keepdims=0),
    ]
    if camera:
        cast = helper.make_node("Cast", ["frames"], ["cast"], to=TensorProto.FLOAT)
        nodes = [cast, helper.make_node("Transpose", ["cast"], ["pixels"], perm=[0, 3, 1, 2]), *nodes]
    if resize:
        constants["scales"] = np.ones(4, np.float32)
        nodes[0].output[0] = "small"
        enlarge = ["small", "", "scales"]
        nodes.insert(1, helper.make_node("Resize", enlarge, ["grid"], "enlarge", mode="cubic", antialias=1))
    outputs = {"cls": [batch, 4], "patches": [batch, 4, 4], "grid": [batch, 4, 2, 2]}
    graph = helper.make_graph(
        nodes,
        "patches",
        [source],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def artefact_of(path, camera=None, **changes):
    values = {"format": "tensorrt", "precision": "fp32", "size": (32, 32), "default_size": (32, 32), "batch": (1, 2, 4)}
    values |= {"camera": camera, "outputs": ("cls", "patches", "grid"), "embed_dim": 4, "patch_size": 16}
    values |= {**PREPROCESSING, "files": {path.name: sha256(path)}}
    return Artefact(**{**values, **changes})


def build(graph, wanted=OPTIONS, device=CPU, **changes):
    """Build an engine of a file; `changes` are of the facts of its export."""
    return tensorrt.build(graph, artefact_of(graph, **changes), wanted, device)


def write_engine(folder, built=OPTIONS, device=CPU, **changes):
    """Build an engine and write its JSON, as vde-export does."""
    path = folder / "encoder.engine"
    path.write_bytes(build(write_graph(folder / "encoder.onnx"), built, device, **changes))
    artefact_of(path, **{"made_for": tensorrt.made_for(built, device), **changes}).write(sidecar(path))
    return path


def expected(pixels):
    """Return what the graph must give, by torch in float64."""
    grid = torch.nn.functional.conv2d(pixels.double(), torch.tensor(WEIGHT).double(), stride=16)
    patches = grid.flatten(2).mT
    return {"cls": patches.mean(1), "patches": patches, "grid": grid}


def assert_same(outputs, pixels):
    for name, value in expected(pixels).items():
        assert outputs[name].shape == value.shape
        assert torch.allclose(outputs[name].double(), value, atol=1e-5), name


# Building


def test_a_build_is_strongly_typed_and_as_asked(trt, tmp_path):
    wanted = tensorrt.BuildOptions(
        optimization_level=5, workspace_gib=1.5, version_compatible=True, hardware_compatible="ampere_plus"
    )
    built = stand_in.facts(build(write_graph(tmp_path / "e.onnx"), wanted))
    assert built["strongly_typed"]
    assert built["flags"] == ["VERSION_COMPATIBLE"]
    assert (built["hardware"], built["level"]) == ("AMPERE_PLUS", 5)
    assert built["pools"] == {"WORKSPACE": 3 * 2**29}
    assert built["profile"] == {"pixel_values": [[1, 3, 32, 32], [2, 3, 32, 32], [4, 3, 32, 32]]}


def test_the_default_build_limits_nothing_but_tf32(trt, tmp_path):
    built = stand_in.facts(build(write_graph(tmp_path / "e.onnx")))
    assert (built["flags"], built["hardware"], built["level"], built["pools"]) == ([], "NONE", 3, {})


def test_a_network_of_fixed_batch_is_built(trt, tmp_path):
    graph = write_graph(tmp_path / "e.onnx", batch=2)
    assert build(graph, batch=(2, 2, 2))
    with pytest.raises(InputError, match=r"cannot build an engine of .*e\.onnx: Static dimension mismatch"):
        build(graph)


def test_the_same_compute_capability_is_a_level_of_newer_versions(trt, tmp_path):
    graph, wanted = (
        write_graph(tmp_path / "e.onnx"),
        tensorrt.BuildOptions(hardware_compatible="same_compute_capability"),
    )
    if trt.__version__ == "10.3.0":
        with pytest.raises(InputError, match=r"TensorRT 10\.3\.0 has no hardware compatibility"):
            build(graph, wanted)
    else:
        assert stand_in.facts(build(graph, wanted))["hardware"] == "SAME_COMPUTE_CAPABILITY"


def test_the_timing_cache_is_written_read_and_refused_if_foreign(trt, tmp_path):
    graph, cache = write_graph(tmp_path / "e.onnx"), tmp_path / "new folder" / "timings"
    for _ in range(2):
        build(graph, tensorrt.BuildOptions(timing_cache=cache))
        assert cache.read_bytes() == f"timings of {trt.__version__}".encode()
    assert list(cache.parent.iterdir()) == [cache]
    cache.write_bytes(b"of another GPU")
    with pytest.raises(InputError, match="is no timing cache of this GPU"):
        build(graph, tensorrt.BuildOptions(timing_cache=cache))
    assert cache.read_bytes() == b"of another GPU"


def test_what_cannot_be_read_is_named_by_its_node(trt, tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*node 'enlarge' \(Resize\): .* does not support antialias$"):
        build(write_graph(tmp_path / "e.onnx", resize=True))
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"cannot read .*bad\.onnx: ") as error:
        build(tmp_path / "bad.onnx")
    assert "\n" not in str(error.value)
    assert "node" not in str(error.value).split("bad.onnx")[1]


def test_a_failing_build_gives_its_first_error_and_not_an_older_one(trt, tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        build(write_graph(tmp_path / "e.onnx", resize=True))
    graph = write_graph(tmp_path / "e.onnx")
    with pytest.raises(
        InputError,
        match=r"TensorRT .* cannot build an engine of .*onnx: Network has .* no optimization profile has been",
    ):
        build(graph, camera=Camera(32, 32, crop_mode="center"))
    with pytest.raises(InputError, match=r"Static dimension mismatch while setting input shape for pixel_values\.$"):
        build(graph, size=(64, 64))


def test_without_a_gpu_it_says_so(monkeypatch, tmp_path):
    install(monkeypatch, "11.4.0", gpu=False)
    with pytest.raises(InputError, match=r"cannot start here: CUDA initialization failure .* needs an NVIDIA GPU"):
        build(write_graph(tmp_path / "e.onnx"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimization_level": 6}, "level is 0 to 5, got 6"),
        ({"workspace_gib": 0.0}, "more than 0 GiB, got 0"),
        ({"hardware_compatible": "ampere+"}, "one of none, ampere_plus, same_compute_capability; got 'ampere"),
    ],
)
def test_options_out_of_range_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        tensorrt.BuildOptions(**changes)


def test_the_build_command(tmp_path):
    artefact = artefact_of(write_graph(tmp_path / "e.onnx"))
    wanted = tensorrt.BuildOptions(
        timing_cache=Path("my timings"), workspace_gib=2, version_compatible=True, hardware_compatible="ampere_plus"
    )
    assert shlex.split(tensorrt.build_command("e.onnx", "e.engine", artefact, wanted)) == [
        "trtexec",
        "--onnx=e.onnx",
        "--saveEngine=e.engine",
        "--stronglyTyped",
        "--noTF32",
        "--skipInference",
        "--minShapes=pixel_values:1x3x32x32",
        "--optShapes=pixel_values:2x3x32x32",
        "--maxShapes=pixel_values:4x3x32x32",
        "--builderOptimizationLevel=3",
        "--memPoolSize=workspace:2048",
        "--timingCacheFile=my timings",
        "--versionCompatible",
        "--hardwareCompatibilityLevel=ampere+",
    ]
    fixed = tensorrt.build_command("e.onnx", "e.engine", replace(artefact, batch=(8, 8, 8)), OPTIONS)
    assert "Shapes" not in fixed
    assert "--hardware" not in fixed


def test_the_exporter_builds_what_its_facts_say(newest, gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(exporter, "cuda_device", lambda name: CPU)
    monkeypatch.setattr(exporter.onnx, "write", lambda network, path, job: write_graph(path))
    path = tmp_path / "encoder.engine"
    path.touch()
    network = types.SimpleNamespace(artefact=artefact_of(path))
    job = types.SimpleNamespace(
        device="cuda", engine=tensorrt.BuildOptions(optimization_level=1, version_compatible=True)
    )
    assert exporter.write(network, path, job)["tensorrt"] == "11.4.0 or later"
    built = stand_in.facts(path.read_bytes())
    assert built["level"] == 1
    assert built["profile"] == {"pixel_values": [[1, 3, 32, 32], [2, 3, 32, 32], [4, 3, 32, 32]]}


# Running


def test_the_engine_gives_what_the_network_computes_at_any_batch(trt, gpu, tmp_path):
    runtime = load_runtime(write_engine(tmp_path), device="cuda")
    pixels = torch.randn(9, 3, 32, 32)
    for count in (1, 3, 4, 9, 1):
        assert_same(runtime.run(pixels[:count]), pixels[:count])


def test_batch_sizes_share_memory_and_so_wait_for_one_another(trt, gpu, fake_cuda, tmp_path):
    runtime = load_runtime(write_engine(tmp_path, batch=(1, 2, 16)), device="cuda")
    assert runtime._session.on_gpu
    one, other = fake_cuda.Stream(), fake_cuda.Stream()
    for count in (1, 5, 1):
        with torch.cuda.stream(one if count == 1 else other):
            pixels = torch.randn(count, 3, 32, 32)
            assert_same(runtime.run(pixels), pixels)
    assert one in other.waited
    assert other in one.waited
    for count in range(1, 17):
        runtime.run(torch.zeros(count, 3, 32, 32))
    contexts = list(trt._contexts)
    assert len(contexts) == KEPT
    assert all(context._own is None for context in contexts)
    assert len({context._memory for context in contexts}) == 1
    del runtime, contexts
    assert not trt._contexts


def test_a_runtime_waits_while_another_records(newest, gpu, fake_cuda, tmp_path):
    runtime = load_runtime(write_engine(tmp_path), device="cuda")
    pixels = torch.randn(1, 3, 32, 32)
    runtime.run(pixels)
    with ThreadPoolExecutor(1) as pool:
        with gpus.alone():
            calls = [pool.submit(call) for call in (lambda: runtime.run(pixels), lambda: runtime.preprocess(pixels))]
            assert not wait(calls, timeout=0.2).done
        assert_same(calls[0].result(20), pixels)


def test_frames_are_taken_as_bytes(trt, gpu, tmp_path):
    camera = Camera(32, 32, crop_mode="center")
    path = tmp_path / "encoder.engine"
    path.write_bytes(build(write_graph(tmp_path / "e.onnx", camera=True), camera=camera))
    artefact_of(path, camera, made_for=tensorrt.made_for(OPTIONS, CPU)).write(sidecar(path))
    runtime = load_runtime(path, device="cuda")
    frames = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    outputs = {name: value / 255 for name, value in runtime.run(frames).items()}
    assert_same(outputs, frames.movedim(-1, 1) / 255)


def test_warm_up_makes_the_contexts_that_are_used(trt, gpu, tmp_path, monkeypatch):
    made = []
    create = trt.IExecutionContext.__init__
    monkeypatch.setattr(trt.IExecutionContext, "__init__", lambda *of: made.append(1) or create(*of))
    runtime = load_runtime(write_engine(tmp_path), device="cuda")
    runtime.warm_up(batches=(1, 2, 7))
    ready = len(made)
    assert ready
    for count in (1, 2, 3, 4, 7):
        runtime.run(torch.zeros(count, 3, 32, 32))
    assert len(made) == ready


def test_more_sizes_than_graphs_are_kept_of_are_not_called_warm(newest, gpu, tmp_path):
    runtime = load_runtime(write_engine(tmp_path, batch=(1, 2, 9)), device="cuda")
    with pytest.raises(InputError, match=r"run in 9 sizes, and CUDA graphs are kept of 8; use fewer sizes"):
        runtime.warm_up(batches=range(1, 10))
    runtime.warm_up(batches=range(1, 9))


def test_an_engine_s_results_go_where_they_are_wanted(trt, gpu, tmp_path):
    runtime, pixels = load_runtime(write_engine(tmp_path), device="cuda"), torch.randn(7, 3, 32, 32)
    out = {"cls": np.full((7, 4), np.nan, np.float32), "grid": torch.full((7, 4, 2, 2), torch.nan)}
    outputs = runtime.run(pixels, out=out)
    assert_same({**outputs, "cls": torch.from_numpy(out["cls"]), "grid": out["grid"]}, pixels)
    assert outputs["cls"].data_ptr() == out["cls"].ctypes.data


def test_an_engine_of_other_tensors_than_its_json_says_is_refused(trt, gpu, tmp_path):
    path = write_engine(tmp_path, outputs=("cls", "patches"))
    with pytest.raises(
        InputError, match=r"has pixel_values FLOAT, cls FLOAT.* but its JSON says .*patches FLOAT; export"
    ):
        load_runtime(path, device="cuda")
    artefact_of(path, Camera(32, 32, crop_mode="center"), made_for=tensorrt.made_for(OPTIONS, CPU)).write(sidecar(path))
    with pytest.raises(InputError, match="says frames UINT8"):
        load_runtime(path, device="cuda")


def test_a_batch_the_engine_was_not_built_for_is_refused(trt, gpu, tmp_path):
    path = write_engine(tmp_path)
    artefact_of(path, made_for=tensorrt.made_for(OPTIONS, CPU), batch=(1, 2, 16)).write(sidecar(path))
    runtime = load_runtime(path, device="cuda")
    for count in (7, 9):
        message = (
            rf"encoder\.engine does not take inputs of \({count}, 3, 32, 32\): batch {count} is outside the profile$"
        )
        with pytest.raises(InputError, match=message):
            runtime.run(torch.zeros(count, 3, 32, 32))


def test_an_engine_that_cannot_be_loaded_is_one_sentence(trt, gpu, tmp_path):
    path = write_engine(tmp_path)
    path.write_bytes(b"garbage")
    artefact_of(path, made_for=tensorrt.made_for(OPTIONS, CPU)).write(sidecar(path))
    with pytest.raises(
        InputError, match=r"encoder\.engine cannot be loaded by TensorRT .*: Serialization .* not match$"
    ):
        load_runtime(path, device="cuda")


# Where an engine runs


def change_machine(path, **facts):
    stored = json.loads(sidecar(path).read_text())
    stored["made_for"].update(facts)
    sidecar(path).write_text(json.dumps(stored))


@pytest.mark.parametrize(
    ("fact", "value", "message"),
    [
        ("system", "Windows", "made for system Windows"),
        ("machine", "sparc", "made for machine sparc"),
        ("tensorrt", "10.2.0", r"made for tensorrt 10\.2\.0 \(here 11\.4\.0\)"),
        ("gpu", "NVIDIA A100", r"made for gpu NVIDIA A100 \(here NVIDIA L4\)"),
        ("compute_capability", "8.0", r"made for compute_capability 8\.0 \(here 8\.9\)"),
    ],
)
def test_an_engine_of_another_machine_is_refused_before_it_is_loaded(newest, gpu, tmp_path, fact, value, message):
    path = write_engine(tmp_path)
    change_machine(path, **{fact: value})
    with pytest.raises(InputError, match=message):
        load_runtime(path, device="cuda")
    assert newest._deserialised == 0


def test_an_engine_of_which_nobody_knows_the_machine_is_refused(newest, gpu, tmp_path):
    path = write_engine(tmp_path, made_for={"system": "Linux"})
    with pytest.raises(InputError, match=r"for which compute_capability, machine, tensorrt .*engine was built"):
        load_runtime(path, device="cuda")
    assert newest._deserialised == 0


@pytest.mark.parametrize(
    ("built", "here", "runs"),
    [
        ("10.3.0", "10.13.3", True),
        ("10.3.0", "11.4.0", True),
        ("11.4.0", "10.13.3", False),
        ("10.13.3", "10.3.0", False),
    ],
)
def test_a_version_compatible_engine_runs_on_later_versions(monkeypatch, gpu, tmp_path, built, here, runs):
    install(monkeypatch, built)
    plain = write_engine(tmp_path)
    install(monkeypatch, here)
    with pytest.raises(InputError, match=f"made for tensorrt {built} .here {here}.; export"):
        load_runtime(plain, device="cuda")
    install(monkeypatch, built)
    path = write_engine(tmp_path, tensorrt.BuildOptions(version_compatible=True))
    install(monkeypatch, here)
    if runs:
        pixels = torch.randn(2, 3, 32, 32)
        assert_same(load_runtime(path, device="cuda").run(pixels), pixels)
    else:
        with pytest.raises(InputError, match=f"made for tensorrt {built} or later .here {here}."):
            load_runtime(path, device="cuda")


@pytest.mark.parametrize(
    ("wanted", "here", "covered"),
    [("10.3.0", "12.0.0", False), ("11.4.0", "11.5.0", True), ("11.4.0", "12.0.0", False), ("8.6.1", "9.0.0", False)],
)
def test_versions_that_nvidia_does_not_promise_are_refused(wanted, here, covered):
    words = tensorrt._in_words_of({"tensorrt": f"{wanted} or later"}, {"tensorrt": here})
    assert (words["tensorrt"] == f"{wanted} or later") is covered


@pytest.mark.parametrize(
    ("level", "other", "runs"),
    [
        ("none", ("NVIDIA RTX 4090", (8, 9)), False),
        ("same_compute_capability", ("NVIDIA RTX 4090", (8, 9)), True),
        ("same_compute_capability", ("NVIDIA H100", (9, 0)), False),
        ("ampere_plus", ("NVIDIA H100", (9, 0)), True),
        ("ampere_plus", ("NVIDIA B200", (10, 0)), True),
        ("ampere_plus", ("NVIDIA T4", (7, 5)), False),
    ],
)
def test_hardware_compatibility_widens_the_gpus(newest, gpu, tmp_path, level, other, runs):
    path = write_engine(tmp_path, tensorrt.BuildOptions(hardware_compatible=level))
    gpu["gpu"] = other
    if runs:
        load_runtime(path, device="cuda")
    else:
        with pytest.raises(InputError, match="was made for"):
            load_runtime(path, device="cuda")


def test_it_runs_on_gpus_only(newest, monkeypatch, tmp_path):
    monkeypatch.setattr(tensorrt, "_gpu", lambda device: ("NVIDIA L4", (8, 9)))
    path = write_engine(tmp_path)
    for device in ("cpu", "cuda:99", "tpu"):
        with pytest.raises(InputError, match=f"the device '{device}' is none of the CUDA GPUs here"):
            load_runtime(path, device=device)
    assert newest._deserialised == 0


# Not installed


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        (ModuleNotFoundError("No module named 'tensorrt'"), "^tensorrt is not installed; install it with: pip install"),
        (ImportError("libnvinfer.so.10: cannot open"), r"^tensorrt with its libraries \(libnvinfer.* is not installed"),
        (FileNotFoundError("Could not find: nvinfer_10.dll"), r"^tensorrt with its libraries \(Could not find"),
    ],
)
def test_what_is_not_installed_is_said(monkeypatch, tmp_path, reason, message):
    def fail(name):
        raise reason

    monkeypatch.setattr("importlib.import_module", fail)
    assert not tensorrt.available()
    with pytest.raises(MissingExtra, match=message):
        tensorrt.build(tmp_path / "e.onnx", None, OPTIONS, CPU)
    with pytest.raises(MissingExtra, match=message):
        tensorrt.open_session(tmp_path / "e.engine", None, "cuda", None)


def test_what_is_installed_is_available(newest):
    assert tensorrt.available()


# The stand-in itself


def test_the_stand_in_has_nvidias_names_only(trt):
    for base in stand_in.CLASSES:
        surface = " ".join(stand_in.SURFACE[trt.__version__]["classes"][base.__name__].values()).split()
        assert {name for name in vars(base) if not name.startswith("_")} <= set(surface), base
    with pytest.raises(AttributeError):
        _ = trt.init_libnvinfer
    with pytest.raises(NotImplementedError):
        _ = trt.Refitter
    builder = trt.Builder(trt.ILogger())
    config = builder.create_builder_config()
    with pytest.raises(AttributeError):
        config.max_workspace_size = 1 << 30
    with pytest.raises(AttributeError):
        builder.build_engine(None, config)
    with pytest.raises(TypeError):
        config.set_flag("TF32")
    with pytest.raises(TypeError):
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1.5)
    with pytest.raises(TypeError):
        builder.build_serialized_network(config)


@pytest.mark.parametrize("version", list(stand_in.SURFACE))
def test_the_stand_in_lacks_what_11_removed(monkeypatch, version):
    trt, old = install(monkeypatch, version), version.startswith("10")
    assert hasattr(trt.BuilderFlag, "FP16") is old
    assert hasattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH") is old
    assert ("IInt8EntropyCalibrator2" in trt._names) is old
    assert int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) == int(old)
    if not old:
        with pytest.raises(AttributeError):
            trt.Builder(trt.ILogger()).create_builder_config().set_flag(trt.BuilderFlag.FP16)
        with pytest.raises(AttributeError):
            _ = trt.Builder(trt.ILogger()).platform_has_fast_fp16


# On a machine with TensorRT


@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("tensorrt") is None, reason="needs TensorRT and a GPU"
)
def test_tensorrt_itself(tmp_path):
    path = write_engine(tmp_path, device=torch.device("cuda:0"))
    runtime = load_runtime(path, device="cuda:0")
    pixels = torch.randn(9, 3, 32, 32)
    for count in (1, 3, 9, 1):
        with torch.cuda.stream(torch.cuda.Stream()):
            outputs = {name: value.cpu() for name, value in runtime.run(pixels[:count]).items()}
        for name, value in expected(pixels[:count]).items():
            assert torch.allclose(outputs[name].double(), value, atol=1e-4), name  # no TF32
