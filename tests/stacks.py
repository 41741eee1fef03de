"""Small mirrored networks for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tagseg.localize.stack_net import Stack, StackNet
from tagseg.nets.backbones import build


def net(**settings: Any) -> StackNet:
    torch.manual_seed(0)
    return StackNet(build("small", stride=16), 3, Stack(**settings)).eval()


def image(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 48, 64, generator=torch.Generator().manual_seed(1))
