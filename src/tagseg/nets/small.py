"""A small network for the demo and for tests: VGG's pattern with few channels and batch norm, trained from scratch."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tagseg.nets.backbones import Backbone
from tagseg.nets.vgg import Block, pooled_net

SMALL = (Block((16,), True), Block((32,), True), Block((64,), True), Block((96,), True), Block((128,), True))


def small(stride: int, weights_state: Mapping[str, Tensor] | None) -> Backbone:
    """0.19 M parameters, taps and grid as VGG-16, at stride 4, 8, 16 or 32."""
    return pooled_net("small", SMALL, stride, weights_state)
