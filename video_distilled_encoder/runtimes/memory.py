"""Arrays of any library that speaks DLPack (NumPy, PyTorch, CuPy, JAX, …) as tensors of the same memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from video_distilled_encoder.errors import InputError, first_line


def share(array: Any, what: str) -> Tensor:
    """Return a tensor of an array's own memory; nothing is copied.

    Args:
        array: a tensor, or any array with `__dlpack__`.
        what: it is called in the message.

    Raises:
        InputError: it is no array, or its library does not hand it out.
    """
    if isinstance(array, Tensor) and not array.is_inference():
        return array.detach()
    if not hasattr(array, "__dlpack__"):
        raise InputError(f"{what} is a tensor, or an array with DLPack such as NumPy's; got {type(array).__name__}")
    try:
        with torch.inference_mode(False):  # a tensor that is made in that mode cannot be written outside of it
            shared: Tensor = torch.from_dlpack(array.detach() if isinstance(array, Tensor) else array)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{what} cannot be shared by DLPack: {first_line(error)}") from error
    return shared


def share_output(array: Any, what: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return a tensor of the memory that a float32 result of this shape can be written into.

    Raises:
        InputError: it cannot be: another shape, type or device, with gaps, or read-only.
    """
    tensor = share(array, what)
    problems = {
        f"is of shape {tuple(tensor.shape)}": tuple(tensor.shape) != shape,
        f"holds {str(tensor.dtype).removeprefix('torch.')}": tensor.dtype != torch.float32,
        f"lies on {tensor.device}": tensor.device != device,
        "has gaps": tensor.layout != torch.strided or not tensor.is_contiguous(),
        "is read-only": isinstance(array, np.ndarray) and not array.flags.writeable,
    }
    if any(problems.values()):
        found = " and ".join(problem for problem, is_so in problems.items() if is_so)
        raise InputError(f"{what} {found}; give contiguous float32 memory of shape {shape} on {device}")
    return tensor
