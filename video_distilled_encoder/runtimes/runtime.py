"""One face for every runtime: the encoder's `encode`, with the same outputs under the same names."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from video_distilled_encoder.encoder import EncoderOutput
from video_distilled_encoder.errors import InputError, refuse_forked
from video_distilled_encoder.preprocessing import Images, as_size, load, preprocess
from video_distilled_encoder.runtimes.artefact import LAYER, Artefact
from video_distilled_encoder.runtimes.cuda_graph import KEPT
from video_distilled_encoder.runtimes.memory import share, share_output
from video_distilled_encoder.runtimes.recording import gpus

_LOADED = "this runtime was loaded"


class Session(Protocol):
    """What a runtime's own module gives: the loaded network. It keeps nothing of what it is handed."""

    device: torch.device
    """Where inputs are wanted and outputs lie."""
    on_gpu: bool
    """Whether it computes on one of CUDA's."""

    def run(self, inputs: Tensor, outputs: Mapping[str, Tensor]) -> None:
        """Run on one batch.

        Args:
            inputs: contiguous, on the device; its shape has been checked.
            outputs: where results go, by name: contiguous float32 of their shapes, on the device. For work on the
                current CUDA stream they are complete.
        """


class Runtime:
    """An exported encoder in its runtime. Calls from several threads wait for one another.

    Pickled, as on its way to a process that multiprocessing has spawned, it is opened anew from its file.

    Args:
        artefact: what the export is.
        session: it, loaded.
        reopen: opens the same export in another process.
    """

    def __init__(self, artefact: Artefact, session: Session, reopen: Callable[[], Runtime]) -> None:
        self.artefact = artefact
        self._session = session
        self._reopen = reopen
        self._lock = threading.Lock()
        self._turn: Callable[[], AbstractContextManager[None]] = gpus.inside if session.on_gpu else nullcontext
        self._process = os.getpid()

    def __reduce__(self) -> tuple[Callable[[], Runtime], tuple[()]]:
        return self._reopen, ()

    @property
    def device(self) -> torch.device:
        """Where outputs lie."""
        return self._session.device

    def run(self, inputs: Any, *, out: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
        """Return all outputs by name, for one batch of any size.

        Results are the caller's own, never written again, and go to other libraries by DLPack without a copy, as
        `numpy.from_dlpack(outputs["cls"])`.

        Args:
            inputs: (B, 3, H, W) float32 normalised pixels; or, of an export with `--uint8-input`, uint8 frames in
                their layout: a tensor, or an array with DLPack such as NumPy's. A batch larger than the export's
                largest is run in parts, a smaller one filled up.
            out: memory for results by the outputs' names: tensors, or arrays with DLPack, of (B, …) float32,
                contiguous and on the runtime's device. ONNX Runtime and OpenVINO write there themselves; AOTInductor
                and recorded CUDA graphs, whose memory is their own, copy once on the device. Outputs not named here
                are made.

        Raises:
            InputError: shape or type do not fit the export, memory in `out` does not fit the results, or this process
                was forked from the one that loaded the runtime.
        """
        refuse_forked(self._process, _LOADED)
        inputs = share(inputs, "what run() takes")
        self._check(inputs)
        # what is made in inference mode could never be written outside of it
        with self._lock, self._turn(), torch.inference_mode(False), torch.no_grad():
            outputs = self._outputs(inputs, out or {})
            most = self.artefact.batch[2]
            places = zip(*(output.split(most) for output in outputs.values()), strict=True)
            for part, place in zip(inputs.split(most), places, strict=True):
                self._run_filled(part.to(self.device).contiguous(), dict(zip(outputs, place, strict=True)))
        return outputs

    def warm_up(self, batches: Sequence[int] = (), sizes: Sequence[tuple[int, int]] = ()) -> None:
        """Run with each batch and size to come, so that the calls after it make no context, graph or buffer.

        ONNX Runtime records CUDA graphs for the thread that calls.

        Args:
            batches: numbers of images; by default the export's usual one.
            sizes: (height, width) of the network's input in pixels; by default the export's own.

        Raises:
            InputError: the export does not take one of them, or they are more than CUDA graphs are kept of.
        """
        artefact = self.artefact
        least, usual, most = artefact.batch
        batches = batches or [usual]
        parts = {max(min(batch - start, most), least) for batch in batches for start in range(0, batch, most)}
        if self._session.on_gpu and artefact.size is not None and len(parts) > KEPT:
            raise InputError(
                f"these batches are run in {len(parts)} sizes, and CUDA graphs are kept of {KEPT}; use fewer sizes"
            )
        dtype = torch.uint8 if artefact.camera else torch.float32
        for size in sizes or [artefact.size or artefact.default_size]:
            for batch in batches:
                inputs = torch.zeros(artefact.input_shape(batch, size), dtype=dtype)
                for _ in range(2):  # ONNX Runtime sees in the first what memory the second is to get in one piece
                    self.run(inputs)
        if self._session.on_gpu:
            with self._turn():
                torch.cuda.current_stream(self.device).synchronize()

    def __call__(self, inputs: Tensor) -> EncoderOutput:
        """Return the features of one batch, as `Encoder.__call__` does; input and errors as of `run`.

        Raises:
            InputError: the export holds no cls, or neither patches nor grid.
        """
        return self._features(self.run(inputs), inputs)

    def intermediate_layers(self, inputs: Tensor) -> list[EncoderOutput]:
        """Return the features after each block that was exported, in order; input and errors as of `run`."""
        outputs = self.run(inputs)
        tokens = [outputs[name] for name in self.artefact.outputs if name.startswith(LAYER)]
        if not tokens:
            raise InputError("this export holds no intermediate layers; export with --outputs cls patches layer_5 …")
        layout = self.artefact.tokens
        features = (
            {"cls": layout.cls(t), "patches": layout.patches(t), "registers": layout.register_tokens(t)} for t in tokens
        )
        return [self._features(found, inputs) for found in features]

    def encode(
        self, images: Images, *, size: int | tuple[int, int] | None = None, crop_mode: str | None = None
    ) -> EncoderOutput:
        """Encode images in any form, as `Encoder.encode` does.

        Args:
            images: as of `Encoder.encode`; for an export with `--uint8-input`, uint8 frames of exactly its size.
            size: of the network's input; only an export of dynamic size takes another than its own.
            crop_mode: center, squash or whole, the model's own by default; an export with `--uint8-input` has its own.

        Returns:
            Features with a leading batch dimension.

        Raises:
            InputError: something is not an image, or sizes do not fit.
        """
        inputs, lead = self.preprocess(images, size=size, crop_mode=crop_mode)
        features = self(inputs)
        return EncoderOutput(*(feature.unflatten(0, lead) for feature in features)) if len(lead) > 1 else features

    def preprocess(
        self, images: Images, *, size: int | tuple[int, int] | None = None, crop_mode: str | None = None
    ) -> tuple[Tensor, tuple[int, ...]]:
        """Return the inputs of `run`, one batch, and the leading dimensions of the images; arguments as of `encode`."""
        refuse_forked(self._process, _LOADED)
        artefact = self.artefact
        if artefact.camera is not None:
            return self._frames(images, size, crop_mode)
        default = artefact.size or artefact.default_size
        with self._turn():
            pixels = preprocess(
                images,
                artefact.config,
                size=(default[0] if crop_mode == "whole" else default) if size is None else size,
                crop_mode=crop_mode,
                multiple=artefact.patch_size,
                device=self.device,
            )
        return pixels.flatten(0, -4), tuple(pixels.shape[:-3])

    def _frames(
        self, images: Images, size: int | tuple[int, int] | None, crop_mode: str | None
    ) -> tuple[Tensor, tuple[int, ...]]:
        camera, own_size = self.artefact.camera, self.artefact.size
        assert camera is not None
        assert own_size is not None
        asked = own_size if size is None else as_size(size)
        wanted = (asked, asked) if isinstance(asked, int) else asked
        if wanted != own_size or crop_mode not in (None, camera.crop_mode):
            raise InputError(
                f"this export resizes to {own_size[0]}x{own_size[1]} by {camera.crop_mode!r} inside; leave size and "
                "crop_mode out, or export another"
            )
        batches, lead = load(images)
        frames = torch.cat(batches) if len({batch.shape[1:] for batch in batches}) == 1 else batches[0]
        if len(frames) != sum(map(len, batches)) or frames.shape[-2:] != (camera.height, camera.width):
            got = sorted({"{}x{}".format(*batch.shape[-2:]) for batch in batches})
            raise InputError(f"this export takes frames of {camera.height}x{camera.width}, got {', '.join(got)}")
        return (frames.movedim(1, -1) if camera.layout == "NHWC" else frames), lead

    def _check(self, inputs: Tensor) -> None:
        artefact = self.artefact
        wanted = torch.uint8 if artefact.camera else torch.float32
        if inputs.dtype != wanted:
            kind = "uint8 frames" if artefact.camera else "float32 normalised pixels"
            raise InputError(f"this export takes {kind}, got {inputs.dtype}; encode() takes images of any form")
        shape = tuple(inputs.shape)
        if len(shape) != 4 or not shape[0] or shape != artefact.input_shape(shape[0], self._size(inputs)):
            expected = ", ".join(map(str, artefact.input_shape(0, artefact.size or (0, 0))[1:])).replace("0, 0", "H, W")
            empty = ", an empty batch" if shape[:1] == (0,) else ""
            raise InputError(f"this export takes (batch, {expected}), got {shape}{empty}")
        if artefact.size is None:
            artefact.tokens.check(self._size(inputs))

    def _size(self, inputs: Tensor) -> tuple[int, int]:
        """(height, width) of the network's input."""
        return self.artefact.size or (inputs.shape[2], inputs.shape[3])

    def _outputs(self, inputs: Tensor, out: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return where the results of a batch go: the memory of `out`, else new memory."""
        names = self.artefact.outputs
        if unknown := [name for name in out if name not in names]:
            raise InputError(f"out holds {unknown[0]!r}, but this export's outputs are {', '.join(names)}")
        size = self._size(inputs)
        shapes = {name: self.artefact.output_shape(name, len(inputs), size) for name in names}
        return {
            name: share_output(out[name], f"out[{name!r}]", shape, self.device)
            if name in out
            else torch.empty(shape, dtype=torch.float32, device=self.device)
            for name, shape in shapes.items()
        }

    def _run_filled(self, inputs: Tensor, outputs: Mapping[str, Tensor]) -> None:
        """Run a batch no larger than the largest, filled up to the smallest with its last image."""
        count, least = len(inputs), self.artefact.batch[0]
        if count >= least:
            self._session.run(inputs, outputs)
            return
        filled = torch.cat([inputs, inputs[-1:].expand(least - count, *inputs.shape[1:])])
        results = {name: output.new_empty(least, *output.shape[1:]) for name, output in outputs.items()}
        self._session.run(filled, results)
        for name, output in outputs.items():
            output.copy_(results[name][:count])

    def _features(self, outputs: dict[str, Tensor], inputs: Tensor) -> EncoderOutput:
        """Complete the features: patches and grid are views of one another."""
        grid = self.artefact.tokens.grid(self._size(inputs))
        cls, patches, features, registers = (outputs.get(name) for name in EncoderOutput._fields)
        if patches is None and features is not None:
            patches = features.flatten(2).transpose(1, 2)
        if cls is None or patches is None:
            raise InputError(
                f"this export holds {', '.join(self.artefact.outputs)} only; run() gives them, encode() needs cls and "
                "patches or grid"
            )
        features = patches.mT.unflatten(-1, grid) if features is None else features
        return EncoderOutput(cls, patches, features, patches[:, :0] if registers is None else registers)
