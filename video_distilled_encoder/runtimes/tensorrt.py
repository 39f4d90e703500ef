"""TensorRT engines, on NVIDIA GPUs. Every call of TensorRT in this project is in this file.

Written for the Python API of TensorRT 10 and 11; no name is used that one of them lacks. Tested against a stand-in
whose surface is NVIDIA's published API, never yet on a GPU; verify on yours with

    vde-export --format tensorrt --device cuda --out encoder.engine

which compares the engine with torch on real images. An engine is native code: load only your own.

Networks are strongly typed: the precision is the ONNX file's. TF32, in which TensorRT by default computes products of
float32, is switched off.
"""

from __future__ import annotations

import platform
import re
import shlex
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from video_distilled_encoder.errors import InputError, MissingExtra, import_extra
from video_distilled_encoder.files import atomic_path
from video_distilled_encoder.runtimes.artefact import Artefact, check_machine
from video_distilled_encoder.runtimes.cuda_graph import Copied, CudaGraphs, Function, cuda_device

HARDWARE = {"none": "none", "ampere_plus": "ampere+", "same_compute_capability": "sameComputeCapability"}
"""On which other GPUs an engine runs, and trtexec's word for it: none, all from Ampere on, or those of the same compute
capability (TensorRT 10.9 or later)."""
_OR_LATER = " or later"


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    Raises:
        InputError: an option is out of its range.
    """

    timing_cache: Path | None = None
    """File of measured kernels, read and written: the next build on such a GPU is faster."""
    optimization_level: int = 3
    """0 to 5: a longer search for faster kernels."""
    workspace_gib: float | None = None
    """Most GPU memory that a layer may use, in GiB; None: all there is."""
    version_compatible: bool = False
    """Run on later versions of TensorRT too; a little slower."""
    hardware_compatible: str = "none"
    """Of `HARDWARE`; a little slower."""

    def __post_init__(self) -> None:
        if not 0 <= self.optimization_level <= 5:
            raise InputError(f"TensorRT's optimization level is 0 to 5, got {self.optimization_level}")
        if self.workspace_gib is not None and self.workspace_gib <= 0:
            raise InputError(f"TensorRT's workspace must be more than 0 GiB, got {self.workspace_gib:g}")
        if self.hardware_compatible not in HARDWARE:
            raise InputError(
                f"hardware compatibility is one of {', '.join(HARDWARE)}; got {self.hardware_compatible!r}"
            )


def available() -> bool:
    """Return whether TensorRT is installed, with its libraries."""
    try:
        require()
    except MissingExtra:
        return False
    return True


def build(onnx: Path, artefact: Artefact, options: BuildOptions, device: torch.device) -> bytes:
    """Build an engine of a typed ONNX file on the GPU it is for; takes minutes.

    Args:
        onnx: the file; its precision is the engine's.
        artefact: what it is.
        options: how.
        device: the GPU.

    Returns:
        The engine, serialised.

    Raises:
        InputError: TensorRT is not installed or finds no GPU, or the network cannot be read or built.
    """
    trt = require()
    log = _log(trt)
    with _current(device):
        builder = _start(trt.Builder, log)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)  # owns the weights until the engine is built
        if not parser.parse_from_file(str(onnx)):
            raise InputError(f"TensorRT {trt.__version__} cannot read {onnx}: {_parser_error(parser)}")
        config = _config(trt, builder, artefact, options)
        engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise InputError(f"TensorRT {trt.__version__} cannot build an engine of {onnx}: {_reason(log)}")
    if options.timing_cache:
        with atomic_path(options.timing_cache) as temporary:
            temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(engine)


def build_command(onnx_name: str, engine_name: str, artefact: Artefact, options: BuildOptions) -> str:
    """Return the command that builds the same engine with trtexec, NVIDIA's own tool of TensorRT 10 and 11."""
    words = [
        "trtexec",
        f"--onnx={onnx_name}",
        f"--saveEngine={engine_name}",
        "--stronglyTyped",
        "--noTF32",
        "--skipInference",
    ]
    if artefact.batch[0] != artefact.batch[2]:  # of a network of fixed shape trtexec refuses them
        for name, shape in zip(("min", "opt", "max"), artefact.input_shapes, strict=True):
            words.append(f"--{name}Shapes={artefact.input}:{'x'.join(map(str, shape))}")
    words.append(f"--builderOptimizationLevel={options.optimization_level}")
    if options.workspace_gib is not None:
        words.append(f"--memPoolSize=workspace:{round(options.workspace_gib * 1024)}")  # MiB
    if options.timing_cache:
        words.append(f"--timingCacheFile={options.timing_cache}")
    if options.version_compatible:
        words.append("--versionCompatible")
    if options.hardware_compatible != "none":
        words.append(f"--hardwareCompatibilityLevel={HARDWARE[options.hardware_compatible]}")
    return shlex.join(words)


def made_for(options: BuildOptions, device: torch.device) -> dict[str, str]:
    """Return what a machine must be like to run an engine that is built here.

    The system, the version of TensorRT, the GPU's compute capability and its name. Compatibility widens them:
    "10.3.0 or later" with `version_compatible`, "8.0 or later" for `ampere_plus`, and the name is left out with either
    kind of hardware compatibility.

    Args:
        options: how it is built.
        device: the GPU.
    """
    wanted = _here(device)
    if options.version_compatible:
        wanted["tensorrt"] += _OR_LATER
    if options.hardware_compatible != "none":
        del wanted["gpu"]
    if options.hardware_compatible == "ampere_plus":
        wanted["compute_capability"] = "8.0" + _OR_LATER
    return wanted


class _Engine:
    """A loaded engine, with memory for what it computes in between: all of its contexts', as they never run at once."""

    def __init__(self, path: Path, artefact: Artefact, device: torch.device) -> None:
        trt = require()
        self._path, self._artefact, self._device, self._log = path, artefact, device, _log(trt)
        self._strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        with _current(device):
            runtime = _start(trt.Runtime, self._log)
            # A version-compatible engine brings the part of TensorRT that runs it.
            runtime.engine_host_code_allowed = artefact.made_for.get("tensorrt", "").endswith(_OR_LATER)
            engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise InputError(f"{path} cannot be loaded by TensorRT {trt.__version__}: {_reason(self._log)}")
        _check_tensors(trt, engine, path, artefact)
        self._engine = engine
        self._memory = torch.empty(engine.device_memory_size_v2, dtype=torch.uint8, device=device)

    def prepare(self, shape: tuple[int, ...]) -> Function:
        """Return what runs inputs of one shape: a context of its own, for a graph is bound to its context's shapes."""
        context = self._engine.create_execution_context(self._strategy)
        if context is None:
            raise InputError(f"TensorRT cannot run {self._path} on {self._device}: {_reason(self._log)}")
        context.set_device_memory(self._memory.data_ptr(), self._memory.numel())
        if not context.set_input_shape(self._artefact.input, shape):
            raise InputError(f"the engine {self._path} does not take inputs of {shape}: {_reason(self._log)}")
        return partial(self._enqueue, context)

    def _enqueue(self, context: Any, inputs: Tensor) -> list[Tensor]:
        """Start the engine on the current stream."""
        names = self._artefact.outputs
        shapes = [tuple(context.get_tensor_shape(name)) for name in names]
        outputs = [torch.empty(shape, dtype=torch.float32, device=self._device) for shape in shapes]
        for name, tensor in zip((self._artefact.input, *names), (inputs, *outputs), strict=True):
            context.set_tensor_address(name, tensor.data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream(self._device).cuda_stream):
            raise InputError(f"TensorRT cannot run {self._path} on {self._device}: {_reason(self._log)}")
        return outputs


def open_session(path: Path, artefact: Artefact, device: str, threads: int | None) -> Copied:
    """Load an engine.

    Args:
        path: the engine.
        artefact: what it is.
        device: "cuda" or "cuda:1".
        threads: not used.

    Raises:
        InputError: TensorRT is not installed, there is no such GPU, the engine was built for another machine, or it
            cannot be loaded.
    """
    require()
    chosen = cuda_device(device)
    here = _here(chosen)
    missing = {"system", "machine", "tensorrt", "compute_capability"} - set(artefact.made_for)
    if missing:
        raise InputError(f"nothing says for which {', '.join(sorted(missing))} {path} was built; export it again")
    check_machine(path, artefact.made_for, _in_words_of(artefact.made_for, here))
    return Copied(CudaGraphs(_Engine(path, artefact, chosen).prepare), artefact, chosen)


def _here(device: torch.device) -> dict[str, str]:
    """Return what this machine is like, as far as engines depend on it."""
    name, capability = _gpu(device)
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "tensorrt": ".".join(map(str, _version(require().__version__))),
        "gpu": name,
        "compute_capability": "{}.{}".format(*capability),
    }


def _gpu(device: torch.device) -> tuple[str, tuple[int, int]]:
    return torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)


def _in_words_of(wanted: Mapping[str, str], here: Mapping[str, str]) -> dict[str, str]:
    """Return what is here, said as the range that is wanted ("8.0 or later") where it lies in it."""
    inside = {
        name: value
        for name, value in wanted.items()
        if value.endswith(_OR_LATER) and _covers(name, _version(value), _version(here.get(name, "")))
    }
    return {**here, **inside}


def _covers(name: str, least: tuple[int, ...], got: tuple[int, ...]) -> bool:
    """Whether it is new enough. Engines last to the end of TensorRT's major version, those of 10 to that of 11."""
    newest = (11,) if least[:1] == (10,) else least[:1]
    return least <= got and (name != "tensorrt" or got[:1] <= newest)


def _version(text: str) -> tuple[int, ...]:
    """Return the first three numbers of a version."""
    return tuple(map(int, re.findall(r"\d+", text)[:3]))


def _config(trt: Any, builder: Any, artefact: Artefact, options: BuildOptions) -> Any:
    config = builder.create_builder_config()
    config.builder_optimization_level = options.optimization_level
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace_gib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace_gib * 2**30))
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    level = options.hardware_compatible.upper()
    if not hasattr(trt.HardwareCompatibilityLevel, level):
        raise InputError(f"TensorRT {trt.__version__} has no hardware compatibility {options.hardware_compatible!r}")
    config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    profile = builder.create_optimization_profile()
    profile.set_shape(artefact.input, *artefact.input_shapes)
    config.add_optimization_profile(profile)
    if options.timing_cache:
        _read_timing_cache(config, options.timing_cache)
    return config


def _read_timing_cache(config: Any, path: Path) -> None:
    cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    if cache is None or not config.set_timing_cache(cache, False):  # False: nothing measured on another GPU
        raise InputError(f"{path} is no timing cache of this GPU and this version of TensorRT; name another file")


def _parser_error(parser: Any) -> str:
    """Return the first thing that the parser could not read, and in which node."""
    if not parser.num_errors:
        return "it gives no reason"
    error = parser.get_error(0)
    node = f"node {error.node_name()!r} ({error.node_operator()}): " if error.node_operator() else ""
    return node + " ".join(error.desc().split())


def _check_tensors(trt: Any, engine: Any, path: Path, artefact: Artefact) -> None:
    """Refuse an engine whose inputs and outputs are not those of its JSON: buffers are sized by their types."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = {name: engine.get_tensor_dtype(name) for name in names}
    element = trt.DataType.UINT8 if artefact.camera else trt.DataType.FLOAT
    wanted = {artefact.input: element, **dict.fromkeys(artefact.outputs, trt.DataType.FLOAT)}
    if found != wanted:
        has, says = (", ".join(f"{name} {kind.name}" for name, kind in facts.items()) for facts in (found, wanted))
        raise InputError(f"{path} has {has}, but its JSON says {says}; export it again")


def _start(kind: Callable[[Any], Any], log: Any) -> Any:
    """Make a builder or a runtime."""
    log.errors.clear()
    try:
        return kind(log)
    except TypeError as error:  # how the bindings say that the library gave them nothing
        raise InputError(
            f"TensorRT cannot start here: {_reason(log)}; it needs an NVIDIA GPU and a driver new enough for it"
        ) from error


@lru_cache(maxsize=1)
def _log(trt: Any) -> Any:
    """Return the logger, which keeps the errors; one for all, since TensorRT goes on using the first it is given."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(msg)

    return Log()


def _reason(log: Any) -> str:
    """Return the first error since the last time."""
    errors = [" ".join(error.split()) for error in log.errors]
    log.errors.clear()
    return errors[0] if errors else "it gives no reason"


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """TensorRT works on the current GPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def require() -> Any:
    """Return the module `tensorrt`.

    Raises:
        MissingExtra: it, or the libraries it needs, are not installed.
    """
    return import_extra("tensorrt", "tensorrt")
