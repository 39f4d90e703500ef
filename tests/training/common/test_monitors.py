import time

import pytest
import torch

from training.common import monitors
from training.common.monitors import Stopwatch, bf16_peak, peak_memory

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_parts_add_up_and_begin_anew():
    watch = Stopwatch()
    for _ in range(2):
        with watch.part("loss_time", CPU):
            time.sleep(0.02)
    with watch.part("balance_time", CPU):
        pass
    read = watch.take()
    times = read()
    assert 0.04 <= times["loss_time"] < 0.4
    assert 0 <= times["balance_time"] < 0.01
    assert watch.take()() == {}


def test_on_a_gpu_events_are_recorded_and_read_later(monkeypatch):
    """An event tells milliseconds, between two of a stream, when both have come to pass."""
    recorded = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            recorded.append(self)
            self.at = 250.0 * len(recorded)

        def elapsed_time(self, end):
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    watch = Stopwatch()
    with watch.part("loss_time", CUDA):
        pass
    assert len(recorded) == 2
    assert watch.take()() == {"loss_time": 0.25}


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L40", 181.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA GB200", None),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("Tesla T4", None),
    ],
)
def test_the_peak_is_that_of_the_card(name, peak):
    assert bf16_peak(name) == peak


def test_peak_memory_grows_with_what_is_in_use():
    before = peak_memory(CPU)
    block = torch.ones(int((before + 0.25) * 2**28))
    assert peak_memory(CPU) > before
    del block
    assert monitors.peak_memory(CPU) > before
