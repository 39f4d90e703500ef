"""torch.compile where it can be had: a machine without its compilers runs the same functions as they are."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])


def compile_on_gpu(function: F) -> F:
    """Compile a function of tensors for calls whose first argument is on a GPU; others run it as it is."""
    compiled = compile_if_possible(function)

    @functools.wraps(function)
    def call(first: Any, *rest: Any) -> Any:
        return (compiled if first.is_cuda else function)(first, *rest)

    return call  # type: ignore[return-value]


def compile_if_possible(function: F) -> F:
    """Compile a function, or a module's forward; if that fails, say so once and run it as it is."""
    compiled = torch.compile(function)
    failed = False

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal failed
        if not failed:
            try:
                return compiled(*arguments, **named)
            except torch._dynamo.exc.TorchDynamoException as error:
                failed = True
                name = getattr(function, "__qualname__", type(function).__name__)
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                print(f"{name} cannot be compiled here ({reason}) and runs as it is", file=sys.stderr)
        return function(*arguments, **named)

    return call  # type: ignore[return-value]
