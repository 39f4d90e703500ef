import gc

import pytest
import torch

from video_distilled_encoder.errors import InputError
from video_distilled_encoder.runtimes.cuda_graph import CudaGraphs, cuda_device

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def graphs():
    weight = torch.randn(64, 64, device="cuda:0")
    calls = []

    def function(inputs):
        calls.append(tuple(inputs.shape))
        return [inputs @ weight, inputs.exp()]

    return CudaGraphs(function), weight, calls


def check(outputs, inputs, weight):
    for got, expected in zip(outputs, (inputs @ weight, inputs.exp()), strict=True):
        assert torch.allclose(got, expected, rtol=1e-3, atol=1e-3)


@needs_gpu
def test_each_shape_is_recorded_once_and_replayed_with_new_values(graphs):
    replay, weight, calls = graphs
    for count in (1, 5, 1, 5, 3):
        inputs = torch.randn(count, 64, device="cuda:0")
        check(replay(inputs), inputs, weight)
    recorded = len(calls)
    for count in (1, 3, 5):
        replay(torch.randn(count, 64, device="cuda:0"))
    assert len(calls) == recorded


@needs_gpu
def test_streams_wait_for_one_another(graphs):
    replay, weight, _ = graphs
    streams = [torch.cuda.Stream() for _ in range(4)]
    kept = []
    torch.cuda.synchronize()
    for number in range(100):
        with torch.cuda.stream(streams[number % 4]):
            inputs = torch.full((256, 64), float(number) / 100, device="cuda:0")
            product, exponential = replay(inputs)
            torch.cuda._sleep(100_000)  # the next call must not write over what is still to be read
            kept.append((inputs, product.clone(), exponential.clone()))
    torch.cuda.synchronize()
    for inputs, *outputs in kept:
        check(outputs, inputs, weight)


@needs_gpu
def test_more_shapes_than_are_kept_leave_the_results_right(graphs):
    replay, weight, _ = graphs
    for count in [*range(1, 12), 1, 2, 3]:
        inputs = torch.randn(count, 64, device="cuda:0")
        check(replay(inputs), inputs, weight)


@needs_gpu
def test_its_memory_goes_with_it_without_the_garbage_collector():
    gc.disable()
    try:
        before = torch.cuda.memory_allocated()
        other = CudaGraphs(lambda inputs: [inputs + 1])
        other(torch.zeros(1 << 20, device="cuda:0"))
        del other
        assert torch.cuda.memory_allocated() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["cpu", "cuda:99", "no device", "meta"])
def test_what_is_no_gpu_is_refused(name):
    with pytest.raises(InputError, match=f"the device '{name}' is none of the CUDA GPUs here"):
        cuda_device(name)


@needs_gpu
def test_a_gpu_gets_its_number():
    assert cuda_device("cuda") == torch.device("cuda", torch.cuda.current_device())
    assert cuda_device("cuda:0") == torch.device("cuda", 0)
