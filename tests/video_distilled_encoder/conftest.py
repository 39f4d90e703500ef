"""A stand-in for a GPU's streams and graphs on the CPU: what is recorded is run again, into the same memory.

As on a GPU a replay reads what now lies in the tensors that it was recorded with, and runs the operations that were
recorded, whatever Python would do by now. Work is done at once, so streams only note which others they waited for. What
CUDA forbids while a graph is recorded is an error here too, and breaks the recording off.
"""

import threading
from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NOT_NOW = "CUDA error: operation not permitted when stream is capturing"


class Stream:
    """A stream that notes what it waits for, and how often it is waited for."""

    cuda_stream = 0

    def __init__(self, cuda):
        self.cuda, self.waited, self.synchronized = cuda, [], 0

    def wait_stream(self, other):
        self.waited.append(other)

    def synchronize(self):
        self.cuda.forbid_unsafe()
        self.synchronized += 1


class Graph(TorchDispatchMode):
    """Work that can be done again."""

    def __init__(self, cuda):
        super().__init__()
        self.cuda, self.work = cuda, []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        results = operation(*args, **(kwargs or {}))
        self.work.append(partial(self._again, operation, args, kwargs or {}, results))
        return results

    def capture_begin(self, pool=None, capture_error_mode="global"):
        self.cuda.begin(self, capture_error_mode)
        self.cuda.pools.append(pool)
        self.__enter__()

    def capture_end(self):
        self.__exit__(None, None, None)
        self.cuda.end()

    def replay(self):
        for work in self.work:
            work()

    @staticmethod
    def _again(operation, args, kwargs, results):
        for kept, new in zip(tree_leaves(results), tree_leaves(operation(*args, **kwargs)), strict=True):
            kept.copy_(new)


class FakeCuda:
    """What is used of `torch.cuda`, with one GPU."""

    def __init__(self):
        self.default = Stream(self)
        self.thread = threading.local()
        self.pools = []
        """Of each recording."""
        self.recording = None
        """What is recorded now, the thread that does, and CUDA's mode."""
        self.broken = False

    def install(self, monkeypatch):
        for name in ("Stream", "stream", "synchronize", "current_stream", "current_device", "is_available"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", partial(Graph, self))
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
        monkeypatch.setattr(torch.cuda, "_sleep", lambda *_: None)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: 0)

    def begin(self, what, mode):
        """Begin to record; a process may record one graph at a time."""
        self.forbid_device_wide()
        self.recording, self.broken = (what, threading.get_ident(), mode), False

    def end(self):
        self.recording = None
        if self.broken:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    def record(self, work):
        """Tell of work that is not torch's."""
        if self.recording and self.recording[1] == threading.get_ident():
            self.recording[0].work.append(work)

    def forbid_device_wide(self):
        """Refuse what concerns the whole GPU while a graph is recorded."""
        if self.recording:
            self.broken = True
            raise RuntimeError(NOT_NOW)

    def forbid_unsafe(self):
        """Refuse what CUDA's global mode forbids to all threads: to wait, to allocate, to copy from the host."""
        if self.recording and (self.recording[2] == "global" or self.recording[1] == threading.get_ident()):
            self.broken = True
            raise RuntimeError(NOT_NOW)

    def Stream(self, *_):
        return Stream(self)

    @contextmanager
    def stream(self, stream):
        before, self.thread.current = self.current_stream(), stream
        yield
        self.thread.current = before

    def synchronize(self, device=None):
        self.forbid_device_wide()

    def current_stream(self, device=None):
        return getattr(self.thread, "current", self.default)

    def current_device(self):
        return 0

    def is_available(self):
        return True


@pytest.fixture
def fake_cuda(monkeypatch):
    """A GPU that there is not."""
    fake = FakeCuda()
    fake.install(monkeypatch)
    return fake
