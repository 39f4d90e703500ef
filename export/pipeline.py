"""Write an export, reload it in its runtime, compare it with torch, time it; it stays only if it passes."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from export import aoti, latency, onnx, openvino, parity, tensorrt
from export.job import CALIBRATION_IMAGES, Job, find_images
from export.network import Network
from export.versions import versions
from video_distilled_encoder import Encoder, model_directory, runtimes
from video_distilled_encoder.errors import InputError, MissingExtra
from video_distilled_encoder.files import atomic_directory, sha256
from video_distilled_encoder.hub import find_model
from video_distilled_encoder.image_files import bundled_photographs
from video_distilled_encoder.model_config import PREPROCESSING
from video_distilled_encoder.runtimes import tensorrt as engines
from video_distilled_encoder.runtimes.artefact import FEATURES, LAYER, REGISTERS, SUFFIXES, Artefact, Camera, sidecar
from video_distilled_encoder.runtimes.runtime import Runtime
from video_distilled_encoder.tokens import check_size

FORMATS: dict[str, ModuleType] = {"onnx": onnx, "openvino": openvino, "aoti": aoti, "tensorrt": tensorrt}
FEW_IMAGES = 100


def export(
    model: str | Path,
    out: str | Path,
    *,
    format: str = "onnx",
    precision: str = "fp32",
    size: tuple[int, int] | None = None,
    dynamic_size: bool = False,
    batch: tuple[int, int, int] = (1, 1, 16),
    outputs: Sequence[str] = FEATURES,
    camera: Camera | None = None,
    calibration: Path | None = None,
    device: str | None = None,
    revision: str | None = None,
    layer_parity: bool = True,
    engine: engines.BuildOptions | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Artefact:
    """Export an encoder; returns the facts that the JSON beside it holds.

    Args:
        model: model directory, bundled release or Hub name.
        out: the file to write.
        format: one of `FORMATS`.
        precision: one of the format's `PRECISIONS`, or "auto": the fastest here that passes.
        size: (height, width) of the network's input; the model's own by default.
        dynamic_size: any height and width (ONNX, OpenVINO).
        batch: smallest, usual and largest.
        outputs: names, see `Artefact.outputs`.
        camera: take uint8 frames and preprocess them inside.
        calibration: folder of images of the user's own, for parity and int8's ranges.
        device: where it is to run, "cpu" or "cuda" ("gpu" of OpenVINO: Intel graphics); by default the GPU for
            TensorRT where it is installed, else the CPU.
        revision: of a model on the Hub.
        layer_parity: measure every block too; AOTInductor and TensorRT compile a second time for it.
        engine: how TensorRT builds.
        progress: told what is being done.

    Raises:
        InputError: something asked for does not fit, a package is missing, or the export fails the parity gate; `out`
            is not touched then.
    """
    if format not in FORMATS:
        raise InputError(f"a format is one of {', '.join(FORMATS)}; got {format!r}")
    out = Path(out)
    if out.is_dir():
        raise InputError(f"{out} is a directory; give the file to write, such as {out / 'encoder'}{SUFFIXES[format]}")
    if out.suffix != SUFFIXES[format]:
        raise InputError(f"{out} should end in {SUFFIXES[format]}, as {format} files do")
    directory = find_model(model, revision=revision)
    device = device or ("cuda" if format == "tensorrt" and engines.available() else "cpu")
    # OpenVINO is given its inputs on the CPU, whatever it computes on, and names devices of its own.
    encoder = Encoder.from_pretrained(directory, device="cpu" if format == "openvino" else device)
    images = find_images(calibration) if calibration else bundled_photographs()
    artefact = Artefact(
        format=format,
        precision=precision,
        size=None if dynamic_size else size or encoder.image_size,
        default_size=size or encoder.image_size,
        batch=batch,
        camera=camera and dataclasses.replace(camera, crop_mode=camera.crop_mode or encoder.config.crop_mode),
        outputs=tuple(outputs),
        embed_dim=encoder.embed_dim,
        patch_size=encoder.patch_size,
        prefix=encoder.tokens.prefix,
        has_cls=encoder.tokens.has_cls,
        **{name: getattr(encoder.config, name) for name in PREPROCESSING},
    )
    check(artefact, encoder)
    with tempfile.TemporaryDirectory() as scratch:
        job = Job(
            name=str(model),
            encoder=encoder,
            weights_sha256=model_directory.weights_sha256(directory),
            images=images,
            precisions=FORMATS[format].PRECISIONS,
            scratch=Path(scratch),
            device=device,
            layer_parity=layer_parity,
            engine=engine or engines.BuildOptions(),
            progress=progress,
        )
        if format == "tensorrt" and not engines.available():
            raise InputError(without_tensorrt(job, artefact, out))
        with atomic_directory(out.parent) as staging:
            if precision == "auto":
                return fastest(job, artefact, staging / out.name)
            return produce(job, artefact, staging / out.name)


def check(artefact: Artefact, encoder: Encoder) -> None:
    """Refuse what cannot be exported, before work begins.

    Raises:
        InputError: options contradict one another or the model.
    """
    module = FORMATS[artefact.format]
    check_size(artefact.default_size, artefact.patch_size)
    if artefact.precision not in (*module.PRECISIONS, "auto"):
        known = ", ".join(module.PRECISIONS)
        raise InputError(f"{artefact.format} takes no precision {artefact.precision}; it has {known} and auto")
    if artefact.size is None and (artefact.camera or not module.DYNAMIC_SIZE):
        what = "an input of camera frames" if artefact.camera else f"the format {artefact.format}"
        raise InputError(f"{what} needs one fixed size; give --size HEIGHTxWIDTH without --dynamic-size")
    if encoder.tokens.only_size:
        if artefact.size is None:
            raise InputError("this family of encoders takes one size of image; export without --dynamic-size")
        encoder.tokens.check(artefact.size)
    depth, features = encoder.depth, (*FEATURES, *[REGISTERS][: encoder.tokens.registers])
    known_outputs = {*features, *(f"{LAYER}{number}" for number in range(depth))}
    wrong = [name for name in artefact.outputs if name not in known_outputs]
    if wrong or len(set(artefact.outputs)) < len(artefact.outputs):
        raise InputError(
            f"outputs are one or more of {', '.join(features)}, {LAYER}0 … {LAYER}{depth - 1}, each once; "
            f"got {', '.join(artefact.outputs)}"
        )


def without_tensorrt(job: Job, artefact: Artefact, out: Path) -> str:
    """Write the typed graph that TensorRT reads, proven in ONNX Runtime; returns how to build the engine elsewhere."""
    if artefact.precision == "auto":
        raise InputError("TensorRT is not installed here, so nothing can be timed; name a --precision, such as fp16")
    graph = out.with_name(f"{out.name}{SUFFIXES['onnx']}")
    with atomic_directory(out.parent) as staging:
        produce(job, dataclasses.replace(artefact, format="onnx"), staging / graph.name)
    command = engines.build_command(graph.name, out.name, artefact, job.engine)
    return (
        f"TensorRT is not installed here, so no engine was built, only its graph, {graph}. On the machine with the GPU "
        "run pip install 'video_distilled_encoder[tensorrt]' and this command again, which also compares the engine "
        f"with torch; or build an engine for your own code: {command}"
    )


def fastest(job: Job, artefact: Artefact, path: Path) -> Artefact:
    """Export in every precision of the format and keep the fastest of those that pass.

    Raises:
        InputError: none passes.
    """
    passed: dict[Path, Artefact] = {}
    failures = []
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        for precision in job.precisions:
            trial = Path(folder) / precision / path.name
            trial.parent.mkdir()
            try:
                done = produce(job, dataclasses.replace(artefact, precision=precision), trial)
            except MissingExtra:
                raise
            except InputError as error:
                job.progress(f"{precision}: {error}")
                failures.append(f"{precision}: {error}")
                continue
            job.progress(f"{precision}: {done.facts['latency_ms']['median']:.1f} ms")
            passed[trial.parent] = done
        if not passed:
            raise InputError(f"no precision passes here ({'; '.join(failures)})")
        chosen = min(passed, key=lambda place: passed[place].facts["latency_ms"]["median"])
        for file in chosen.iterdir():
            file.rename(path.parent / file.name)
    return passed[chosen]


def produce(job: Job, artefact: Artefact, path: Path) -> Artefact:
    """Write one export into a folder of its own, with its JSON, and prove it.

    Raises:
        InputError: it fails the parity gate, or a package is missing.
    """
    job.progress(f"{artefact.precision}: writing {artefact.format}")
    calibrating = min(len(job.calibrating()), CALIBRATION_IMAGES) if artefact.precision == "int8" else 0
    artefact, runtime = write(job, artefact, path)
    job.progress(f"{artefact.precision}: comparing with torch")
    images = job.photographs(artefact)
    if calibrating:
        few = "; give a few hundred of your own (--calibration)" * (calibrating < FEW_IMAGES)
        job.progress(f"int8: ranges of {calibrating} images, compared on {len(images)} that are not among them{few}")
    figures = parity.measure(job.encoder, runtime, images)
    layers: dict[str, parity.Parity] = {}
    if job.layer_parity:
        job.progress(f"{artefact.precision}: comparing every block")
        layers = measure_layers(job, artefact, images)
    parity.require(figures, layers, artefact.precision)
    facts = {
        "model": {"name": job.name, "weights_sha256": job.weights_sha256},
        "parity": parity.as_facts(figures),
        "layer_parity": parity.as_facts(layers),
        "parity_images": len(images),
        **({"calibration_images": calibrating} if calibrating else {}),
        "latency_ms": asdict(time_run(runtime)),
        "device": str(runtime.device),
        "versions": versions(),
    }
    artefact = dataclasses.replace(artefact, facts=facts)
    artefact.write(sidecar(path))
    return artefact


def write(job: Job, artefact: Artefact, path: Path) -> tuple[Artefact, Runtime]:
    """Write an export and its JSON, and load it in its runtime."""
    module = FORMATS[artefact.format]
    network = Network(job.encoder, artefact, job.precisions[artefact.precision])
    made_for = module.write(network, path, job)
    written = [file for file in path.parent.iterdir() if file.name.startswith(f"{path.stem}.") and file.is_file()]
    files = {file.name: sha256(file) for file in sorted(written)}
    artefact = dataclasses.replace(artefact, files=files, made_for=made_for)
    artefact.write(sidecar(path))
    return artefact, runtimes.load_runtime(path, job.device)


def measure_layers(job: Job, artefact: Artefact, images: list[Tensor]) -> dict[str, parity.Parity]:
    """Export once more with every block as an output, and compare these."""
    depth = job.encoder.depth
    every = dataclasses.replace(artefact, outputs=tuple(f"{LAYER}{number}" for number in range(depth)))
    with tempfile.TemporaryDirectory() as folder:
        _, runtime = write(job, every, Path(folder) / f"layers{SUFFIXES[artefact.format]}")
        return parity.measure(job.encoder, runtime, images)


def time_run(runtime: Runtime) -> latency.Latency:
    """Time the export at its usual batch."""
    artefact = runtime.artefact
    shape = artefact.input_shape(artefact.batch[1], artefact.size or artefact.default_size)
    inputs = torch.zeros(shape, dtype=torch.uint8 if artefact.camera else torch.float32, device=runtime.device)
    return latency.measure(lambda: runtime.run(inputs), runtime.device)
