"""A stand-in for a GPU's streams and graphs on the CPU: what is recorded is run again, into the same memory.

As on a GPU a replay reads what now lies in the tensors that it was recorded with, and runs the operations that were
recorded, whatever Python would do by now. Work is done at once, so streams only note which others they waited for.
"""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Stream:
    """A stream that notes what it waits for."""

    def __init__(self):
        self.waited = []

    def wait_stream(self, other):
        self.waited.append(other)


class Graph(TorchDispatchMode):
    """Operations, each with its arguments and results."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        results = operation(*args, **(kwargs or {}))
        self.operations.append((operation, args, kwargs or {}, results))
        return results

    def replay(self):
        for operation, args, kwargs, results in self.operations:
            for kept, new in zip(tree_leaves(results), tree_leaves(operation(*args, **kwargs)), strict=True):
                kept.copy_(new)


class FakeCuda:
    """What is used of `torch.cuda`, with one GPU."""

    def __init__(self):
        self.streams = [Stream()]

    def install(self, monkeypatch):
        for name in ("Stream", "stream", "graph", "current_stream", "current_device", "is_available", "device_count"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
        for name in ("synchronize", "_sleep"):
            monkeypatch.setattr(torch.cuda, name, lambda *_: None)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: 0)

    Stream = Stream

    @contextmanager
    def stream(self, stream):
        self.streams.append(stream)
        yield
        self.streams.pop()

    @contextmanager
    def graph(self, graph, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        with self.stream(stream), graph:
            yield

    def current_stream(self, device=None):
        return self.streams[-1]

    def current_device(self):
        return 0

    def is_available(self):
        return True

    def device_count(self):
        return 1


@pytest.fixture
def fake_cuda(monkeypatch):
    """A GPU that there is not."""
    fake = FakeCuda()
    fake.install(monkeypatch)
    return fake
