"""Any frozen network on the CPU in OpenVINO, which runs a convolutional one several times as fast as torch does."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import torch
from torch import Tensor, nn

from training.models.model import Model
from video_distilled_encoder.errors import InputError, first_line, import_extra
from video_distilled_encoder.runtimes.openvino import shared_core


class OpenVinoModel(Model):
    """A model whose network is converted for each size that it is given, and computed on the CPU.

    Args:
        model: the model.
        precision: fp32, or bf16, in which OpenVINO computes where the processor can; else it takes fp32.
    """

    def __init__(self, model: Model, precision: Literal["fp32", "bf16"] = "fp32") -> None:
        runtime = "openvino-bf16" if precision == "bf16" else "openvino"
        description = {**model.description, "name": f"{runtime}:{model.description['name']}"}
        super().__init__(description, model.patch_size, model.config, "cpu")
        self.licence = model.licence
        self.model = model
        self.hint = {"fp32": "f32", "bf16": "bf16"}[precision]
        self._compiled: dict[tuple[int, ...], Any] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> OpenVinoModel:
        """Return itself: compiled networks cannot be copied, and nothing changes them."""
        return self

    def to(self, device: torch.device) -> None:
        """Refuse another device than the CPU."""
        if device.type != "cpu":
            runtime = str(self.description["name"]).partition(":")[0]
            raise InputError(f"{self.description['name']} computes on the CPU; leave out {runtime}: to use {device}")

    def _features(self, pixels: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        key = (*pixels.shape[-2:], layers)
        if key not in self._compiled:
            with ThreadPoolExecutor(1) as thread:  # where no counter of arithmetic watches torch's tracer
                self._compiled[key] = thread.submit(self._compile, pixels, layers).result()
        cls, grid = self._compiled[key](pixels.contiguous().numpy()).values()
        return torch.from_numpy(cls), torch.from_numpy(grid)

    def _compile(self, pixels: Tensor, layers: int) -> Any:
        openvino = import_extra("openvino", "export")
        shape = [-1, *pixels.shape[1:]]
        settings = {"INFERENCE_PRECISION_HINT": self.hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # of torch's tracer, which OpenVINO uses
                network = openvino.convert_model(_Network(self.model, layers), example_input=pixels, input=shape)
            return shared_core().compile_model(network, "CPU", settings)
        except Exception as error:  # OpenVINO raises plain RuntimeErrors
            raise InputError(
                f"OpenVINO cannot convert {self.model.description['name']}: {first_line(error)}"
            ) from error


class _Network(nn.Module):
    """A model's features as a module that can be traced."""

    def __init__(self, model: Model, layers: int) -> None:
        super().__init__()
        self.model, self.layers = model, layers
        self.parts = nn.ModuleList(part for part in vars(model).values() if isinstance(part, nn.Module))
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return self.model._features(pixels, self.layers)
