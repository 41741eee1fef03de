"""ReLUs with two derivatives: their own for the loss, a rule of its own for what a mirror sends back through them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Rectify = Literal["relu", "mask", "guided", "none"]

_HERE = threading.local()  # `alone`: graphs that this thread makes carry nothing but the mirror's gradients


class Way:
    """Whose a gradient is that comes by a ReLU: the mirror's, which has a rule of its own, or the loss's.

    In training both pass through one graph, and `back` says which it is. A graph that was made within `only` carries
    the mirror's alone: many threads predict with one network, and none may switch for another.
    """

    def __init__(self, rule: Rectify) -> None:
        self.rule = rule
        self.on = False

    @contextmanager
    def back(self) -> Iterator[None]:
        """Within, gradients are the mirror's."""
        self.on = True
        try:
            yield
        finally:
            self.on = False


@contextmanager
def only() -> Iterator[None]:
    """Graphs that this thread makes within belong to the mirror."""
    _HERE.alone = True
    try:
        yield
    finally:
        _HERE.alone = False


class _Rectifier(torch.autograd.Function):
    """max(x, 0), cut at `top`; its backward is the mirror's rule or the derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, top: float, way: Way) -> Tensor:
        out = x.clamp(0, top)
        ctx.save_for_backward(out)
        ctx.top, ctx.way, ctx.alone = top, way, getattr(_HERE, "alone", False)
        return out

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:
        (out,) = ctx.saved_tensors
        rule = ctx.way.rule if ctx.alone or ctx.way.on else "mask"
        if rule in ("mask", "guided"):
            v = v * ((out > 0) & (out < ctx.top))
        return (F.relu(v) if rule in ("relu", "guided") else v), None, None


class TwoWay(nn.Module):
    """A ReLU (or ReLU6) that lets the mirror through by its own rule."""

    def __init__(self, way: Way, top: float) -> None:
        super().__init__()
        self.way, self.top = way, top

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Rectifier.apply(x, self.top, self.way)
        return out


def obey(module: nn.Module, way: Way) -> None:
    """Replace every ReLU and ReLU6 inside, in place; other activations keep their derivative.

    A network that was mirrored before follows the new way alone.
    """
    for name, child in module.named_children():
        if isinstance(child, TwoWay):
            child.way = way
        elif isinstance(child, nn.ReLU | nn.ReLU6):
            setattr(module, name, TwoWay(way, 6.0 if isinstance(child, nn.ReLU6) else float("inf")))
        else:
            obey(child, way)
