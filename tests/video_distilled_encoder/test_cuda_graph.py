import gc
import weakref
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event

import pytest
import torch

from video_distilled_encoder.errors import InputError
from video_distilled_encoder.runtimes.cuda_graph import KEPT, CudaGraphs, cuda_device


@pytest.fixture
def device(request):
    """The GPU, or the CPU behind the face of one."""
    if torch.cuda.is_available():
        return "cuda:0"
    request.getfixturevalue("fake_cuda")
    return "cpu"


@pytest.fixture
def graphs(device):
    weight = torch.randn(64, 64, device=device)
    calls = []

    def function(inputs):
        calls.append(tuple(inputs.shape))
        return [inputs @ weight, inputs.exp()]

    return CudaGraphs(lambda shape: function), weight, calls


def check(outputs, inputs, weight):
    for got, expected in zip(outputs, (inputs @ weight, inputs.exp()), strict=True):
        assert torch.allclose(got, expected, rtol=1e-3, atol=1e-3)


def test_each_shape_is_recorded_once_and_replayed_with_new_values(graphs, device):
    replay, weight, calls = graphs
    for count in (1, 5, 1, 5, 3):
        inputs = torch.randn(count, 64, device=device)
        check(replay(inputs), inputs, weight)
    recorded = len(calls)
    for count in (1, 3, 5):
        replay(torch.randn(count, 64, device=device))
    assert len(calls) == recorded


def test_streams_wait_for_one_another(graphs, device):
    replay, weight, _ = graphs
    streams = [torch.cuda.Stream() for _ in range(4)]
    kept = []
    torch.cuda.synchronize()
    for number in range(100):
        with torch.cuda.stream(streams[number % 4]):
            inputs = torch.full((256, 64), float(number) / 100, device=device)
            product, exponential = replay(inputs)
            torch.cuda._sleep(100_000)  # the next call must not write over what is still to be read
            kept.append((inputs, product.clone(), exponential.clone()))
    torch.cuda.synchronize()
    for inputs, *outputs in kept:
        check(outputs, inputs, weight)


def test_a_stream_waits_for_the_one_before_it(fake_cuda):
    replay = CudaGraphs(lambda shape: lambda inputs: [inputs + 1])
    one, other = fake_cuda.Stream(), fake_cuda.Stream()
    for stream in (one, one, other, one):
        with torch.cuda.stream(stream):
            replay(torch.zeros(1))
    recording = one.waited.pop(0)  # made on a stream of its own, which waited for the first call's
    assert recording.waited == [one]
    assert (one.waited, other.waited) == ([other], [one])


def test_a_recording_is_what_was_done_and_outputs_are_good_until_the_next_call(fake_cuda):
    runs = []
    replay = CudaGraphs(lambda shape: lambda inputs: runs.append(1) or [inputs.sum(0, keepdim=True) * 2])
    first = replay(torch.ones(3))[0]
    assert first.item() == 6
    assert len(runs) == 4  # three to warm up, one recorded
    assert replay(torch.full((3,), 2.0))[0] is first
    assert first.item() == 12
    assert len(runs) == 4


def test_more_shapes_than_are_kept_leave_the_results_right(graphs, device):
    replay, weight, _ = graphs
    for count in [*range(1, 12), 1, 2, 3]:
        inputs = torch.randn(count, 64, device=device)
        check(replay(inputs), inputs, weight)


def test_its_memory_goes_with_it_without_the_garbage_collector(device):
    gc.disable()
    try:
        before = torch.cuda.memory_allocated()
        other = CudaGraphs(lambda shape: lambda inputs: [inputs + 1])
        output = weakref.ref(other(torch.zeros(1 << 20, device=device))[0])
        assert output() is not None
        del other
        assert output() is None
        assert torch.cuda.memory_allocated() == before
    finally:
        gc.enable()


def test_two_that_record_at_once_wait_for_one_another(fake_cuda):
    begun, go_on = Event(), Event()

    def slow(inputs):
        if fake_cuda.recording:
            begun.set()
            assert go_on.wait(20)
        return [inputs + 1]

    one, other = CudaGraphs(lambda shape: slow), CudaGraphs(lambda shape: lambda inputs: [inputs * 3])
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(one, torch.ones(1))
        assert begun.wait(20)
        second = pool.submit(other, torch.ones(1))
        assert not wait([second], timeout=0.2).done  # a wait for the whole GPU would have broken the first off
        go_on.set()
        assert (first.result(20)[0].item(), second.result(20)[0].item()) == (2, 3)


def test_a_recording_that_goes_is_waited_for_and_nothing_else(fake_cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("the whole GPU was waited for"))
    replay = CudaGraphs(lambda shape: lambda inputs: [inputs + 1])
    stream, foreign = fake_cuda.Stream(), fake_cuda.Stream()
    with torch.cuda.stream(stream):
        for count in range(1, KEPT + 2):
            before = stream.synchronized
            replay(torch.zeros(count))
        assert stream.synchronized > before  # by the one that takes the place of the oldest
    before = stream.synchronized
    del replay
    assert stream.synchronized > before
    assert foreign.synchronized == fake_cuda.default.synchronized == 0


def test_recordings_of_all_shapes_share_memory_and_a_stream(fake_cuda):
    contexts = []

    def prepare(shape):
        def function(inputs):
            contexts.append(torch.cuda.current_stream())
            return [inputs + 1]

        return function

    one, other = CudaGraphs(prepare), CudaGraphs(prepare)
    for count in (1, 2, 3):
        one(torch.zeros(count))
    assert len(set(fake_cuda.pools)) == len(set(contexts)) == 1
    assert fake_cuda.pools[0] is not None
    assert contexts[0] is not fake_cuda.default
    other(torch.zeros(1))
    assert len(set(fake_cuda.pools)) == len(set(contexts)) == 2


def test_a_call_that_cannot_be_recorded_gives_its_own_error_and_leaves_others_free(fake_cuda):
    def fail(inputs):
        if fake_cuda.recording:
            fake_cuda.forbid_unsafe()
        return [inputs]

    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        CudaGraphs(lambda shape: fail)(torch.zeros(1))
    assert CudaGraphs(lambda shape: lambda inputs: [inputs + 1])(torch.zeros(1))[0].item() == 1


@pytest.mark.parametrize("name", ["cpu", "cuda:99", "no device", "meta"])
def test_what_is_no_gpu_is_refused(name):
    with pytest.raises(InputError, match=f"the device '{name}' is none of the CUDA GPUs here"):
        cuda_device(name)


def test_a_gpu_gets_its_number(device):
    assert cuda_device("cuda") == torch.device("cuda", torch.cuda.current_device())
    assert cuda_device("cuda:0") == torch.device("cuda", 0)
