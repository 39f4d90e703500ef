"""torch.compile where it can be had: a machine without its compilers runs the same functions as they are."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from training.nn.cross_decoder import CrossBlock
from training.nn.heads import ProjectionHead

F = TypeVar("F", bound=Callable[..., Any])

_SHAPES = 64
"""Shapes for which one function may be compiled: groups of views, resolutions, with gradients and without."""


def compile_on_gpu(function: F) -> F:
    """Compile a function of tensors for calls whose first argument is on a GPU; others run it as it is.

    So do calls under a dispatch mode, like that which counts operations: torch before 2.14 would then never compile the
    function again (pytorch issue 190286).
    """

    @functools.cache
    def compiled() -> F:  # at the first call, for torch.compile imports its compiler, which takes a second and a half
        return _Compiler().compile(function)

    @functools.wraps(function)
    def call(first: Any, *rest: Any) -> Any:
        plain = not first.is_cuda or _get_current_dispatch_mode() is not None
        return (function if plain else compiled())(first, *rest)

    return call  # type: ignore[return-value]


class _Compiler:
    """Compiles functions until that fails once, which it says; from then on, all of them run as they are."""

    def __init__(self) -> None:
        self.failed = False

    def compile(self, function: F, *, dynamic: bool | None = None) -> F:
        compiled = torch.compile(function, dynamic=dynamic)

        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            if not self.failed:
                try:
                    return compiled(*arguments, **named)
                except torch._dynamo.exc.TorchDynamoException as error:
                    self.failed = True
                    name = getattr(function, "__qualname__", type(function).__name__)
                    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                    print(f"{name} cannot be compiled here ({reason}) and runs as it is", file=sys.stderr)
            return function(*arguments, **named)

        return call  # type: ignore[return-value]


def compile_parts(model: nn.Module) -> None:
    """Compile each block and each head's layers of a model, once for each shape that they meet.

    Blocks that are alike share what was compiled for one of them, so that a deep network costs no more than a block.
    """
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, _SHAPES)
    compiler = _Compiler()
    for module in model.modules():
        part = module.mlp if isinstance(module, ProjectionHead) else module
        if isinstance(module, Block | EvaBlock | CrossBlock | ProjectionHead):
            part.forward = compiler.compile(part.forward, dynamic=False)
