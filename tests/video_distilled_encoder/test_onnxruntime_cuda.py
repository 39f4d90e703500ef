"""ONNX Runtime's calls on CUDA, against a stand-in that follows its sources; a real network, compared with torch."""

import importlib.util
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from export.pipeline import export
from video_distilled_encoder import Encoder, InputError, load_runtime
from video_distilled_encoder.errors import InputWarning
from video_distilled_encoder.runtimes import onnxruntime as runtimes
from video_distilled_encoder.runtimes.cuda_graph import KEPT

CPU = torch.device("cpu")
MOST = KEPT + 3


def stand_in_module():
    spec = importlib.util.spec_from_file_location("stand_in", Path(__file__).with_name("onnxruntime_stand_in.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


stand_in = stand_in_module()


@pytest.fixture(scope="module")
def exports(shallow_directory, tmp_path_factory):
    """Of one size, and of any; made before there is a GPU."""
    outs = [tmp_path_factory.mktemp("export") / "encoder.onnx" for _ in range(2)]
    for out, dynamic_size in zip(outs, (False, True), strict=True):
        how = {"size": (32, 32), "batch": (1, 1, MOST), "layer_parity": False, "dynamic_size": dynamic_size}
        export(shallow_directory, out, **how)
    return outs


@pytest.fixture(scope="module")
def exported(exports):
    return exports[0]


@pytest.fixture
def encoder(shallow_directory):
    return Encoder.from_pretrained(shallow_directory)


@pytest.fixture
def cuda(monkeypatch, fake_cuda):
    """A GPU for ONNX Runtime."""
    threads = threading.local()

    def thread():
        """Of the calling thread: what no later thread is called too."""
        return vars(threads).setdefault("this", object())

    module = stand_in.Module(fake_cuda, thread)
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    monkeypatch.setattr(runtimes, "cuda_device", lambda name: CPU)
    return module


def check(runtime, encoder, count, side=32):
    pixels = torch.randn(count, 3, side, side)
    with torch.no_grad():
        expected = encoder(pixels)
    assert torch.allclose(runtime(pixels).patches, expected.patches, atol=1e-4)


def graphs_of(cuda):
    return [graph for session, _ in cuda.sessions for graph in session.graphs]


def test_each_batch_size_is_recorded_once_and_its_memory_has_grown_before(cuda, exported, encoder):
    runtime = load_runtime(exported, device="cuda")
    for count in (1, 3, 1, 3, 1):
        check(runtime, encoder, count)
    assert len(graphs_of(cuda)) == 2
    assert set(cuda.sessions[0][0].runs.values()) == {2 + stand_in.BEFORE_RECORDING + 1}  # the others are replayed


def test_a_stream_waits_for_the_one_before_it(cuda, fake_cuda, exported, encoder):
    runtime = load_runtime(exported, device="cuda")
    one, other = fake_cuda.Stream(), fake_cuda.Stream()
    for stream in (one, one, other):
        with torch.cuda.stream(stream):
            check(runtime, encoder, 1)
    assert (one.waited, other.waited) == ([], [one])
    assert fake_cuda.default.synchronized == 0


def test_float32_is_not_tf32(cuda, exported):
    load_runtime(exported, device="cuda")
    assert cuda.sessions[0][1] == {"device_id": "0", "use_tf32": "0", "enable_cuda_graph": "1"}


def test_graphs_are_bounded_and_one_sentence_says_so(cuda, exported, encoder):
    runtime = load_runtime(exported, device="cuda")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for count in [*range(1, MOST + 1), 1, MOST, 2]:
            check(runtime, encoder, count)
    assert len(graphs_of(cuda)) == KEPT
    (warning,) = said
    assert warning.category is InputWarning
    assert f"this runtime keeps the {KEPT} CUDA graphs that it has recorded" in str(warning.message)


@pytest.mark.filterwarnings("ignore:this runtime keeps")
def test_each_thread_has_graphs_of_its_own_within_the_same_bound(cuda, exported, encoder):
    runtime = load_runtime(exported, device="cuda")
    recorded = []
    cuda.meanwhile = lambda: recorded.append(runtimes.gpus._alone == threading.get_ident())
    for _ in range(KEPT + 2):  # each ends before the next begins, which may get its number
        with ThreadPoolExecutor(1) as pool:
            for count in (2, 2):
                pool.submit(check, runtime, encoder, count).result(20)
    assert recorded == [True] * KEPT
    assert len(graphs_of(cuda)) == KEPT


def test_two_runtimes_that_record_at_once_wait_for_one_another(cuda, exported, encoder):
    one, other = (load_runtime(exported, device="cuda") for _ in range(2))
    check(other, encoder, 2)
    begun, go_on = threading.Event(), threading.Event()

    def meanwhile():
        begun.set()
        assert go_on.wait(20)

    cuda.meanwhile = meanwhile
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(check, one, encoder, 1)
        assert begun.wait(20)
        cuda.meanwhile = lambda: None
        others = [pool.submit(check, other, encoder, count) for count in (1, 2)]
        others.append(pool.submit(load_runtime, exported, device="cuda"))
        assert not wait(others, timeout=0.3).done
        go_on.set()
        for done in (first, *others):
            done.result(20)
    assert len(graphs_of(cuda)) == 4  # that of batch 2 is another thread's


def test_a_network_of_one_size_must_run_on_the_gpu_as_a_whole(cuda, exported):
    cuda.cpu_only = {"Conv"}
    with pytest.raises(
        InputError, match=r"encoder\.onnx is not run on the GPU as a whole: .* would leave to the CPU .*; export it in"
    ):
        load_runtime(exported, device="cuda")


def test_one_of_any_size_says_what_it_leaves_to_the_cpu(cuda, exports, encoder):
    path = exports[1]
    runtime = load_runtime(path, device="cuda")  # as a whole: nothing is said
    cuda.cpu_only = {"Conv"}
    with pytest.warns(
        InputWarning, match=r"encoder\.onnx is not run on the GPU as a whole: .* leaves to the CPU, which"
    ):
        partly = load_runtime(path, device="cuda")
    for here in (runtime, partly):
        for side in (32, 48):
            check(here, encoder, 2, side)
    assert graphs_of(cuda) == []


def test_cuda_that_cannot_start_is_never_silently_the_cpu(cuda, exported):
    cuda.starts = False
    with pytest.raises(
        InputError, match="could not start CUDAExecutionProvider; is its CUDA version that of the driver"
    ):
        load_runtime(exported, device="cuda")
