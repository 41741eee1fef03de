"""Segmentation heads on any backbone. Group norm throughout, so that the batch size does not matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tagseg.nets.backbones import Backbone, Tap

Features = Mapping[str, Tensor]
Align = Callable[[Tensor, Tap, Tap, tuple[int, int]], Tensor]


class LargeFov(nn.Module):
    """DeepLab's head with a large field of view: one atrous 3x3 convolution, a 1x1 convolution, scores.

    Reads the features `tap`; its logits lie on the same grid. `dropout` follows both hidden layers.
    """

    def __init__(self, tap: Tap, classes: int, *, width: int = 1024, dilation: int = 12, dropout: float = 0.0) -> None:
        super().__init__()
        self.taps = (tap.name,)
        self.grid = tap
        self.layers = nn.Sequential(
            nn.Conv2d(tap.channels, width, 3, padding=dilation, dilation=dilation), nn.ReLU(), nn.Dropout(dropout),
            nn.Conv2d(width, width, 1), nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(width, classes, 1))
        _initialise(self)

    @property
    def score(self) -> nn.Conv2d:
        """The convolution that gives the logits, as in the other head."""
        last = self.layers[-1]
        assert isinstance(last, nn.Conv2d)
        return last

    def forward(self, features: Features) -> Float[Tensor, "n k h w"]:
        """Logits on the grid of the features that it reads."""
        return self.layers(features[self.taps[0]])


class DeepLabV3Plus(nn.Module):
    """Atrous pyramid over the last features, decoded together with fine ones (DeepLab v3+, separable convolutions).

    `last` and `low` are the taps it reads; logits lie on the grid of `low`. `align(feature, from, to, size)` brings a
    grid onto another (ops/geometry). `rates` are dilations in cells at stride 16; they double at stride 8.
    """

    def __init__(self, last: Tap, low: Tap, classes: int, *, align: Align, width: int = 128,
                 rates: tuple[int, ...] = (6, 12, 18)) -> None:
        super().__init__()
        self.taps = (last.name, low.name)
        self.last, self.grid = last, low
        self.align = align
        self.plain = _unit(last.channels, width)
        self.atrous = nn.ModuleList(_separable(last.channels, width, max(1, r * 16 // last.stride)) for r in rates)
        self.image = _unit(last.channels, width)
        self.join = _unit((2 + len(rates)) * width, width)
        few = max(8, width * 3 // 8)  # 48 of 256 in the paper: fine features must not outweigh the pyramid
        self.fine = _unit(low.channels, few)
        self.decode = nn.Sequential(_separable(width + few, width, 1), _separable(width, width, 1))
        self.score = nn.Conv2d(width, classes, 1)
        _initialise(self)

    def forward(self, features: Features) -> Float[Tensor, "n k h w"]:
        """Logits on the fine grid."""
        deep, fine = (features[name] for name in self.taps)
        pyramid = self._pyramid(deep)
        joined = self.align(pyramid, self.last, self.grid, (fine.shape[2], fine.shape[3])).to(fine.dtype)
        return self.score(self.decode(torch.cat([joined, self.fine(fine)], 1)))

    def _pyramid(self, deep: Tensor) -> Tensor:
        image = self.image(deep.mean((2, 3), keepdim=True)).expand(-1, -1, *deep.shape[2:])
        return self.join(torch.cat([self.plain(deep), *(branch(deep) for branch in self.atrous), image], 1))


class Segmenter(nn.Module):
    """A backbone and a head: normalised images in, logits out; `stride` and `offset` say where the logits lie."""

    def __init__(self, backbone: Backbone, head: LargeFov | DeepLabV3Plus) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.stride = head.grid.stride
        self.offset = head.grid.offset

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k h2 w2"]:
        """Logits (n, K, h2, w2) at the network's own grid; ops/geometry.resample brings them to an image."""
        return self.head(self.backbone(x, self.head.taps))


def _unit(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 1, bias=False), _norm(after), nn.ReLU())


def _separable(before: int, after: int, dilation: int) -> nn.Sequential:
    """A 3x3 convolution in each channel, then a 1x1 convolution across them."""
    depthwise = nn.Conv2d(before, before, 3, padding=dilation, dilation=dilation, groups=before, bias=False)
    return nn.Sequential(depthwise, nn.Conv2d(before, after, 1, bias=False), _norm(after), nn.ReLU())


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // 8 if channels % 8 == 0 else 1, channels)


def _initialise(head: nn.Module) -> None:
    """He's normal weights, zero bias; scores start near zero, so that the first loss is log K."""
    convs = [part for part in head.modules() if isinstance(part, nn.Conv2d)]
    for conv in convs:
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
    nn.init.normal_(convs[-1].weight, std=0.01)
