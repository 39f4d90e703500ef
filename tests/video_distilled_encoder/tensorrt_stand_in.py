"""A stand-in for NVIDIA's `tensorrt`, which computes on the CPU with ONNX Runtime.

Its surface is NVIDIA's: `tensorrt_surface.json` holds every public name of the Python bindings 10.3.0 (JetPack 6),
10.13.3 and 11.4.0, for each class and enumeration used here, as the bindings themselves list them. A name that is not
in it is an AttributeError, a wrong number or type of arguments a TypeError, and a name that is in it but of no use here
a NotImplementedError. Parameter names and types are those of the bindings' docstrings.
"""

import ctypes
import enum
import functools
import inspect
import json
import types
import weakref
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

SURFACE = json.loads(Path(__file__).with_name("tensorrt_surface.json").read_text())
SCRATCH = 1 << 16
"""Bytes that a context computes in."""
_MAGIC = b"stand-in engine\n"


def record(work):
    """Be told of a GPU's work, which a CUDA graph may be recording."""


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


def typed(*expected):
    """Check the types of a method's arguments, as bindings do."""

    def decorate(method):
        signature = inspect.signature(method)

        @functools.wraps(method)
        def checked(self, *args, **kwargs):
            values = list(signature.bind(self, *args, **kwargs).arguments.values())[1:]
            for value, kinds in zip(values, expected, strict=False):
                kinds = kinds if isinstance(kinds, tuple) else (kinds,)
                names = {kind if isinstance(kind, str) else kind.__name__ for kind in kinds}
                if not names & {base.__name__ for base in type(value).__mro__}:
                    raise TypeError(f"{method.__name__}(): incompatible function arguments: {value!r} is no {names}")
            return method(self, *args, **kwargs)

        return checked

    return decorate


class Strict:
    """An object with the published names only; the rest of what it knows begins with an underscore."""

    _surface: dict
    _trt: types.ModuleType

    def __getattribute__(self, name):
        if not name.startswith("_"):
            kinds = [kind for kind, names in type(self)._surface.items() if name in names.split()]
            if not kinds:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            if not hasattr(type(self), name) and name not in self.__dict__:
                raise NotImplementedError(f"{type(self).__name__}.{name} exists, but not in this stand-in")
        return super().__getattribute__(name)

    def __setattr__(self, name, value):
        if not name.startswith("_") and name not in type(self)._surface["writable"].split():
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r} to set")
        super().__setattr__(name, value)


class ILogger:
    Severity = Severity

    def __init__(self):
        self._ready = True

    def log(self, severity, msg):
        raise NotImplementedError


class IHostMemory(Strict):
    def __init__(self, content):
        self._content = content

    def __bytes__(self):
        return self._content

    @property
    def nbytes(self):
        return len(self._content)


class INetworkDefinition(Strict):
    def __init__(self, flags):
        self._model, self._flags = None, flags

    def _shapes(self):
        """Shape of each input, -1 where it is free."""
        shapes = {value.name: value.type.tensor_type.shape.dim for value in self._model.graph.input}
        return {
            name: [side.dim_value if side.HasField("dim_value") else -1 for side in shape]
            for name, shape in shapes.items()
        }


class ParserError(Strict):
    def __init__(self, code, desc, index=-1, node=None):
        self._code, self._desc, self._index, self._node = code, desc, index, node

    def code(self):
        return self._code

    def desc(self):
        return self._desc

    def node(self):
        return self._index

    def node_name(self):
        return self._node.name if self._node else ""

    def node_operator(self):
        return self._node.op_type if self._node else ""


class OnnxParser(Strict):
    @typed("INetworkDefinition", "ILogger")
    def __init__(self, network, logger):
        self._network, self._errors, self._logger = network, [], logger

    @property
    def num_errors(self):
        return len(self._errors)

    @typed(int)
    def get_error(self, index):
        return self._errors[index]

    @typed(str)
    def parse_from_file(self, model):
        codes = self._trt.ErrorCode
        try:
            graph = onnx.load(model)
            onnx.checker.check_model(graph)
        except Exception as error:
            self._errors.append(self._trt.ParserError(codes.MODEL_DESERIALIZE_FAILED, str(error)))
            return False
        for index, node in enumerate(graph.graph.node):
            if node.op_type == "Resize" and any(a.name == "antialias" and a.i for a in node.attribute):
                text = "Assertion failed: antialias == 0:\nTensorRT does not support antialias"
                self._errors.append(self._trt.ParserError(codes.UNSUPPORTED_NODE_ATTR, text, index, node))
        if self._errors:
            self._logger.log(Severity.ERROR, "the parser failed")
        self._network._model = graph
        return not self._errors


class IOptimizationProfile(Strict):
    def __init__(self):
        self._shapes = {}

    @typed(str, (tuple, list), (tuple, list), (tuple, list))
    def set_shape(self, input, min, opt, max):
        shapes = [tuple(shape) for shape in (min, opt, max)]
        same = len({len(shape) for shape in shapes}) == 1
        if not same or not all(0 <= a <= b <= c for a, b, c in zip(*shapes, strict=True)):
            raise RuntimeError("Shape provided for max is inconsistent with other shapes.")
        self._shapes[input] = shapes


class ITimingCache(Strict):
    def __init__(self, content):
        self._content = content

    def serialize(self):
        return self._trt.IHostMemory(self._content)


class IBuilderConfig(Strict):
    def __init__(self):
        self._flags, self._profiles, self._pools, self._cache = {self._trt.BuilderFlag.TF32}, [], {}, None
        self.builder_optimization_level = 3
        self.hardware_compatibility_level = self._trt.HardwareCompatibilityLevel.NONE

    def __setattr__(self, name, value):
        kinds = {
            "builder_optimization_level": int,
            "hardware_compatibility_level": self._trt.HardwareCompatibilityLevel,
        }
        if name in kinds and type(value) is not kinds[name]:
            raise TypeError(f"{name} cannot be {value!r}")
        super().__setattr__(name, value)

    @typed("MemoryPoolType", int)
    def set_memory_pool_limit(self, pool, pool_size):
        self._pools[pool] = pool_size

    @typed("BuilderFlag")
    def set_flag(self, flag):
        self._flags.add(flag)

    @typed("BuilderFlag")
    def clear_flag(self, flag):
        self._flags.discard(flag)

    @typed("IOptimizationProfile")
    def add_optimization_profile(self, profile):
        self._profiles.append(profile)
        return len(self._profiles) - 1

    @typed((bytes, bytearray, memoryview))
    def create_timing_cache(self, serialized_timing_cache):
        content = bytes(serialized_timing_cache)
        return self._trt.ITimingCache(content) if content in (b"", self._trt._timings) else None

    @typed("ITimingCache", bool)
    def set_timing_cache(self, cache, ignore_mismatch):
        self._cache = cache
        return True

    def get_timing_cache(self):
        return self._cache


class Builder(Strict):
    @typed("ILogger")
    def __init__(self, logger):
        _check_gpu(self._trt, logger)
        self._logger = logger

    @typed(int)
    def create_network(self, flags=0):
        known = self._trt.NetworkDefinitionCreationFlag
        assert not flags & ~sum(1 << int(flag) for flag in known), "unknown flags"
        return self._trt.INetworkDefinition(flags)

    def create_builder_config(self):
        return self._trt.IBuilderConfig()

    def create_optimization_profile(self):
        return self._trt.IOptimizationProfile()

    @typed("INetworkDefinition", "IBuilderConfig")
    def build_serialized_network(self, network, config):
        trt, problem = self._trt, _build_problem(network, config)
        if problem:
            self._logger.log(Severity.WARNING, "not the reason")
            self._logger.log(Severity.ERROR, problem)
            self._logger.log(Severity.INTERNAL_ERROR, "a consequence")
            return None
        if config._cache is not None:
            config._cache._content = trt._timings
        facts = {
            "version": trt.__version__,
            "strongly_typed": trt._strict_typing(network._flags),
            "flags": sorted(flag.name for flag in config._flags),
            "hardware": config.hardware_compatibility_level.name,
            "level": config.builder_optimization_level,
            "pools": {pool.name: size for pool, size in config._pools.items()},
            "profile": config._profiles[0]._shapes if config._profiles else {},
        }
        return trt.IHostMemory(_MAGIC + json.dumps(facts).encode() + b"\n" + network._model.SerializeToString())


def _build_problem(network, config):
    profile = config._profiles[0]._shapes if config._profiles else {}
    inputs = network._shapes()
    for name, shape in inputs.items():
        if name not in profile and -1 in shape:
            return f"Network has dynamic or shape inputs, but no optimization profile\nhas been defined for {name}."
        for side, *sides in zip(shape, *profile.get(name, []), strict=True):
            if side != -1 and set(sides) - {side}:
                return f"Static dimension mismatch while setting input shape for {name}."
    unknown = set(profile) - set(inputs)
    return f"the profile names {unknown}" if unknown else ""


class Runtime(Strict):
    @typed("ILogger")
    def __init__(self, logger):
        _check_gpu(self._trt, logger)
        self._logger = logger
        self.engine_host_code_allowed = False

    @typed((bytes, bytearray, memoryview))
    def deserialize_cuda_engine(self, serialized_engine):
        self._trt._deserialised += 1
        try:
            magic, facts, graph = bytes(serialized_engine).split(b"\n", 2)
            assert magic + b"\n" == _MAGIC
            facts = json.loads(facts)
            session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        except Exception:
            self._logger.log(Severity.ERROR, "Serialization assertion failed:\nmagicTag does not match")
            return None
        compatible = "VERSION_COMPATIBLE" in facts["flags"] and self.engine_host_code_allowed
        if facts["version"] != self._trt.__version__ and not compatible:
            self._logger.log(Severity.ERROR, f"engine of version {facts['version']}")
            return None
        return self._trt.ICudaEngine(session, facts, self._logger)


class ICudaEngine(Strict):
    def __init__(self, session, facts, logger):
        self._session, self._facts, self._logger = session, facts, logger
        self._tensors = [*session.get_inputs(), *session.get_outputs()]

    @property
    def num_io_tensors(self):
        return len(self._tensors)

    @typed(int)
    def get_tensor_name(self, index):
        return self._tensors[index].name

    @typed(str)
    def get_tensor_dtype(self, name):
        kind = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(uint8)": "UINT8"}
        return self._trt.DataType[kind[next(tensor.type for tensor in self._tensors if tensor.name == name)]]

    @property
    def device_memory_size_v2(self):
        return SCRATCH

    @typed("ExecutionContextAllocationStrategy")
    def create_execution_context(self, strategy=None):
        strategies = self._trt.ExecutionContextAllocationStrategy
        return self._trt.IExecutionContext(self, strategy or strategies.STATIC)


class IExecutionContext(Strict):
    def __init__(self, engine, strategy):
        self._engine, self._shape, self._addresses, self._shapes = engine, None, {}, {}
        managed = strategy is self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._own = None if managed else ctypes.create_string_buffer(SCRATCH)
        self._memory = self._own and ctypes.addressof(self._own)
        self._trt._contexts.add(self)

    @typed(int, int)
    def set_device_memory(self, memory, size):
        if size < SCRATCH or memory % 64:
            self._engine._logger.log(Severity.ERROR, f"{size} bytes of memory at {memory} are too few")
        else:
            self._memory = memory

    @typed(str, (tuple, list))
    def set_input_shape(self, name, shape):
        least, _, most = self._engine._facts["profile"][name]
        if len(shape) != len(least) or not all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
            self._engine._logger.log(Severity.ERROR, f"batch {shape[0]} is outside the profile")
            return False
        outputs = self._compute(np.zeros(shape, self._element()))
        self._shape = tuple(shape)
        self._shapes = {o.name: v.shape for o, v in zip(self._engine._session.get_outputs(), outputs, strict=True)}
        return True

    @typed(str)
    def get_tensor_shape(self, name):
        return self._shapes[name]

    @typed(str, int)
    def set_tensor_address(self, name, memory):
        self._addresses[name] = memory
        return name in {tensor.name for tensor in self._engine._tensors}

    @typed(int)
    def execute_async_v3(self, stream_handle):
        tensors = {tensor.name for tensor in self._engine._tensors}
        if self._shape is None or set(self._addresses) != tensors or self._memory is None:
            return False
        work = functools.partial(self._execute, self._shape, dict(self._addresses), self._memory)
        work()
        record(work)
        return True

    def _execute(self, shape, addresses, memory):
        ctypes.memset(memory, 0xFF, SCRATCH)
        (source,) = self._engine._session.get_inputs()
        pixels = np.empty(shape, self._element())
        ctypes.memmove(pixels.ctypes.data, addresses[source.name], pixels.nbytes)
        for output, value in zip(self._engine._session.get_outputs(), self._compute(pixels), strict=True):
            value = np.ascontiguousarray(value)
            ctypes.memmove(addresses[output.name], value.ctypes.data, value.nbytes)

    def _element(self):
        return np.uint8 if self._engine._session.get_inputs()[0].type == "tensor(uint8)" else np.float32

    def _compute(self, pixels):
        session = self._engine._session
        return session.run(None, {session.get_inputs()[0].name: pixels})


def _check_gpu(trt, logger):
    if not trt._gpu:
        logger.log(Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")


CLASSES = [Builder, IBuilderConfig, INetworkDefinition, OnnxParser, ParserError, IOptimizationProfile]
CLASSES += [ITimingCache, IHostMemory, Runtime, ICudaEngine, IExecutionContext]


class Module(types.ModuleType):
    """`tensorrt` of one version.

    `_contexts` are those that are there.

    Args:
        version: of `SURFACE`.
        gpu: whether there is a GPU.
    """

    def __init__(self, version, gpu=True):
        super().__init__("tensorrt")
        surface = SURFACE[version]
        self._names = surface["names"].split()
        self.__version__ = version
        self._gpu = gpu
        self._timings = f"timings of {version}".encode()
        self._deserialised = 0
        self._contexts = weakref.WeakSet()
        self.ILogger = ILogger
        for name, members in surface["enums"].items():
            setattr(self, name, enum.Enum(name, members, type=_Number))
        for base in CLASSES:
            content = {"_surface": surface["classes"][base.__name__], "_trt": self}
            setattr(self, base.__name__, type(base.__name__, (base,), content))

    def __getattr__(self, name):
        if name in self._names:
            raise NotImplementedError(f"tensorrt.{name} exists, but not in this stand-in")
        raise AttributeError(f"module 'tensorrt' has no attribute {name!r}")

    def _strict_typing(self, flags):
        """Since 11 every network is strongly typed."""
        return self.__version__.startswith("11") or bool(
            flags >> int(self.NetworkDefinitionCreationFlag.STRONGLY_TYPED) & 1
        )


class _Number:
    """Members turn into numbers when asked, and only then."""

    def __int__(self):
        return self.value


def facts(engine):
    """Return how an engine was built."""
    return json.loads(engine.split(b"\n", 2)[1])
