"""A stand-in for `onnxruntime` with CUDA, which computes on the CPU with ONNX Runtime itself.

It follows what ONNX Runtime's sources say of CUDA graphs: with `enable_cuda_graph` a session is refused whose compute
nodes do not all run on the GPU; a call with a new `gpu_graph_id` runs until the graph is recorded, in CUDA's global
mode; a graph is its thread's, lives as long as the session, and is bound to the addresses it was recorded with. And
what users met: memory that still grows with the third and fourth run of a shape, where recording one breaks off.
"""

import collections
import ctypes
import types

import numpy as np
import onnx
import onnxruntime

PROVIDER = "CUDAExecutionProvider"
OPTIONS = {"device_id", "enable_cuda_graph", "use_tf32"}
"""Of the provider's, those used here."""
BEFORE_RECORDING = 2
SETTLED = 4
"""Runs of a shape after which memory no longer grows."""


class RunOptions:
    def __init__(self):
        self.entries = {}

    def add_run_config_entry(self, name, value):
        assert isinstance(value, str)
        self.entries[name] = value


class IOBinding:
    def __init__(self):
        self.inputs, self.outputs = {}, {}

    def bind_input(self, name, device_type, device_id, element_type, shape, buffer_ptr):
        self.inputs[name] = (np.dtype(element_type), tuple(shape), buffer_ptr)

    def bind_output(self, name, device_type, device_id, element_type, shape, buffer_ptr):
        self.outputs[name] = (np.dtype(element_type), tuple(shape), buffer_ptr)

    def synchronize_outputs(self):
        pass


class Session:
    """`InferenceSession`; `module` is the stand-in."""

    def __init__(self, module, path, options, providers, enable_fallback=1):
        ((name, settings),) = providers
        assert name == PROVIDER
        module.cuda.forbid_unsafe()  # it allocates
        assert set(settings) <= OPTIONS
        assert all(isinstance(value, str) for value in settings.values())
        self.module, self.providers = module, [name]
        self.graphs_enabled = settings.get("enable_cuda_graph") == "1"
        operators = {node.op_type for node in onnx.load(path).graph.node}
        if self.graphs_enabled and operators & module.cpu_only:
            if not enable_fallback:
                raise RuntimeError(
                    "[ONNXRuntimeError] : 1 : FAIL : This session cannot use the graph capture feature as requested by "
                    f"the user as all compute graph nodes have not been partitioned to the {PROVIDER}"
                )
            self.providers = ["CPUExecutionProvider"]
        if not module.starts:
            self.providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.runs, self.graphs = collections.Counter(), {}
        module.sessions.append((self, settings))

    def get_providers(self):
        return self.providers

    def io_binding(self):
        return IOBinding()

    def run_with_iobinding(self, binding, options=None):
        number = int(options.entries.get("gpu_graph_id", 0) if options else 0)
        if not self.graphs_enabled or number == -1:
            self._run(binding)
            return
        key = self.module.thread(), number
        if key not in self.graphs:
            for _ in range(BEFORE_RECORDING):
                self._run(binding)
            self.graphs[key] = self._record(binding)
        inputs, outputs = self.graphs[key]
        self.module.cuda.forbid_unsafe()  # it waits for its stream
        self._compute(inputs, outputs)

    def _record(self, binding):
        cuda = self.module.cuda
        cuda.begin(types.SimpleNamespace(work=[]), "global")
        try:
            self.module.meanwhile()
            self._run(binding)
        finally:
            cuda.end()
        return dict(binding.inputs), dict(binding.outputs)

    def _run(self, binding):
        ((_, shape, _),) = binding.inputs.values()
        if self.runs[shape] < SETTLED:
            self.module.cuda.forbid_unsafe()  # it allocates
        self.runs[shape] += 1
        self._compute(binding.inputs, binding.outputs)

    def _compute(self, inputs, outputs):
        feeds = {}
        for name, (element, shape, address) in inputs.items():
            feeds[name] = np.empty(shape, element)
            ctypes.memmove(feeds[name].ctypes.data, address, feeds[name].nbytes)
        for value, (element, shape, address) in zip(
            self.session.run(list(outputs), feeds), outputs.values(), strict=True
        ):
            assert (value.dtype, value.shape) == (element, shape)
            value = np.ascontiguousarray(value)
            ctypes.memmove(address, value.ctypes.data, value.nbytes)


class Module(types.ModuleType):
    """`onnxruntime`, with a GPU.

    Args:
        cuda: the GPU, of `conftest.FakeCuda`.
        thread: tells threads apart.
    """

    SessionOptions = onnxruntime.SessionOptions
    RunOptions = RunOptions

    def __init__(self, cuda, thread):
        super().__init__("onnxruntime")
        self.__version__ = onnxruntime.__version__
        self.cuda, self.thread = cuda, thread
        self.cpu_only = set()
        """Operators that the GPU has not."""
        self.starts = True
        """Whether CUDA can be used."""
        self.sessions = []
        self.meanwhile = lambda: None
        """Called while a graph is recorded."""

    def get_available_providers(self):
        return [PROVIDER, "CPUExecutionProvider"]

    def InferenceSession(self, path, options, **how):
        return Session(self, path, options, **how)
