"""Full float32 on NVIDIA's GPUs: what is called fp32 here is never TF32, whose factors keep 10 bits of the fraction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Within, torch computes products and convolutions of float32 in float32: in the whole process, so for short.

    By default it rounds what convolutions multiply to TF32, as programs often have it do for products too.
    """
    products, convolutions = _switches()
    _set(products="highest", convolutions=False)
    try:
        yield
    finally:
        _set(products, convolutions)


def _switches() -> tuple[str, bool]:
    """Return torch's word for float32 products, and whether convolutions may be TF32."""
    matmul, cudnn = torch.backends.cuda.matmul, cast(Any, torch.backends.cudnn)
    try:
        return torch.get_float32_matmul_precision(), cudnn.allow_tf32
    except RuntimeError:  # since torch 2.9, where a program has set it by the newer names
        products = "high" if matmul.fp32_precision == "tf32" else "highest"
        return products, cudnn.conv.fp32_precision == "tf32"


def _set(products: str, convolutions: bool) -> None:
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions
