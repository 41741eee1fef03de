"""The tag classifier's head: one 1x1 convolution, whose maps are the class activation maps."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Pool = Callable[[Tensor], Tensor]


class TagHead(nn.Module):
    """Scores each cell for each class; the bias joins only after pooling, so that the maps are exact CAMs.

    Average pooling of these maps plus the bias equals a linear classifier on averaged features.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, channels))  # (C, D): one row scores one class
        self.bias = nn.Parameter(torch.zeros(classes))
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, features: Float[Tensor, "n d h w"]) -> Float[Tensor, "n c h w"]:
        """Raw class maps, without bias."""
        return F.conv2d(features, self.weight[:, :, None, None])  # cam Eq. 1

    def logits(self, maps: Float[Tensor, "n c h w"], pool: Pool) -> Float[Tensor, "n c"]:
        """Image logits of class maps; `pool` turns (n, c, h, w) into (n, c), see ops/pooling."""
        return pool(maps) + self.bias  # cam Eq. 2
