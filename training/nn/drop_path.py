"""Stochastic depth whose choices are a pure function of seed, step, pass, layer and the row of the whole batch.

With torch's generators the choices would depend on the number of processes, and their state would have to be kept for
an exact resume. All layers that a pass goes through get their choices in one draw before it: the blocks themselves hold
nothing but a product, and are alike to a compiler.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from training.common import keyed


class GivenDropPath(nn.Module):
    """Drop path (Huang et al. 2016) that is told by what to scale each row: 0 drops it."""

    scale: Tensor | None = None
    """(rows,) float32."""

    def forward(self, x: Tensor) -> Tensor:
        """(rows, tokens, C) -> the same, scaled."""
        if not self.training or self.scale is None:
            return x
        return x * self.scale.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


class DropPaths:
    """Draws for all drop paths of a model, which it replaces.

    A stack of blocks is an `nn.Sequential` or `nn.ModuleList`; each time its first block is called is a pass, and
    passes are counted from 0 in each step.

    Args:
        model: whose timm drop paths are replaced.
        rank: number of this process; row i of its share is row rank * rows + i of the whole batch.
    """

    def __init__(self, model: nn.Module, rank: int) -> None:
        self.rank = rank
        self.layers = 0
        self._key = 0
        self._passes = 0
        for stack in _outermost_stacks(model):
            rates, layers = _replace(stack)
            if layers:
                stack[0].register_forward_pre_hook(_Draw(self, rates, layers))
                self.layers += len(layers)

    def begin(self, key: int) -> None:
        """Set what the choices of the coming step depend on."""
        self._key = key
        self._passes = 0

    def next_key(self) -> int:
        """Return the key of the next pass."""
        self._passes += 1
        return self._key + 104729 * (self._passes - 1)


class _Draw:
    """Before the first of a stack of blocks is called, hands each of their drop paths its rows' scales."""

    def __init__(self, source: DropPaths, rates: list[float], layers: list[GivenDropPath]) -> None:
        self.source = source
        self.rates = torch.tensor(rates)[:, None]
        self.layers = layers
        self.first = source.layers

    def __call__(self, block: nn.Module, inputs: tuple[Any, ...]) -> None:
        if block.training:
            scales = self.draw(len(inputs[0]), inputs[0].device)
            for layer, scale in zip(self.layers, scales.unbind(), strict=True):
                layer.scale = scale

    def draw(self, rows: int, device: torch.device) -> Tensor:
        """Return (layers, rows) scales: 0, or what makes up for the dropped rows."""
        key = self.source.next_key()
        numbers = torch.arange(self.first, self.first + len(self.layers), device=device)
        row = torch.arange(rows, device=device) + self.source.rank * rows
        self.rates = self.rates.to(device)
        keep = keyed.unit(keyed.mix(row + keyed.mix(key + numbers * 7919)[:, None])) >= self.rates
        return keep / (1 - self.rates)


def _outermost_stacks(module: nn.Module) -> list[nn.Sequential | nn.ModuleList]:
    if isinstance(module, nn.Sequential | nn.ModuleList):
        return [module]
    return [stack for child in module.children() for stack in _outermost_stacks(child)]


def _replace(stack: nn.Module) -> tuple[list[float], list[GivenDropPath]]:
    """Replace every drop path in a stack; return their rates and what stands there now."""
    rates: list[float] = []
    layers: list[GivenDropPath] = []
    if any(isinstance(module, DropPath) for module in stack.modules()):
        for module in list(stack.modules()):
            for name, child in list(module.named_children()):
                # timm leaves out those of rate 0, with which a block would be like all others to a compiler
                if isinstance(child, DropPath) or name.startswith("drop_path"):
                    layers.append(GivenDropPath())
                    rates.append(getattr(child, "drop_prob", None) or 0.0)
                    setattr(module, name, layers[-1])
    return rates, layers
