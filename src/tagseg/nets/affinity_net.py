"""Networks that say which neighbouring pixels belong together: IRN's class boundaries, PSA's pair features.

IRN: Ahn, Cho, Kwak, CVPR 2019. PSA (AffinityNet): Ahn, Kwak, CVPR 2018. Both read several stages of one backbone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tagseg.nets.backbones import Backbone, Tap

Align = Callable[[Tensor, Tap, Tap, tuple[int, int]], Tensor]
Form = Literal["irn", "psa"]


class Stages(nn.Module):
    """The named stages of a backbone; a frozen one gets no gradient and stays in eval mode while others train."""

    def __init__(self, backbone: Backbone, taps: tuple[Tap, ...], frozen: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.names = tuple(tap.name for tap in taps)
        self.frozen = frozen

    def train(self, mode: bool = True) -> Stages:
        """Only what learns goes into train mode."""
        super().train(mode)
        self.backbone.train(mode and not self.frozen)
        return self

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> dict[str, Tensor]:
        """Features by name, each on its own grid."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.backbone(x, self.names)


class Gather(nn.Module):
    """Each stage through a 1x1 convolution and group norm, brought to one grid, activated; side by side in the end.

    `widths` are the channels of each stage afterwards; `align(feature, from, to, size)` is ops/geometry's.
    """

    def __init__(
        self, taps: tuple[Tap, ...], grid: Tap, widths: tuple[int, ...], align: Align, act: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.taps, self.grid, self.align, self.act = taps, grid, align, act
        self.units = nn.ModuleList(
            nn.Sequential(nn.Conv2d(tap.channels, width, 1, bias=False), _norm(width))
            for tap, width in zip(taps, widths, strict=True)
        )

    def forward(self, features: Mapping[str, Tensor]) -> Float[Tensor, "n d h w"]:
        """All stages on the grid, along the channels."""
        fine = features[self.grid.name].shape[2:]
        found = []
        for tap, unit in zip(self.taps, self.units, strict=True):
            own = unit(features[tap.name])
            found.append(self.act(own if tap == self.grid else self.align(own, tap, self.grid, (fine[0], fine[1]))))
        return torch.cat(found, 1)


class EdgeNet(nn.Module):
    """IRN: where the label changes, on the stride-4 grid; with `displacement` also the way to the object's centre.

    Reads all blocks of the backbone from stride 2 on. `tap` says where the cells of the output lie.
    """

    def __init__(
        self, backbone: Backbone, *, align: Align, width: int = 32, displacement: bool = False, frozen: bool = True
    ) -> None:
        super().__init__()
        self.preprocess, self.min_size, self.tap = backbone.preprocess, backbone.min_size, backbone.tap("low")
        taps = blocks(backbone)
        widths = (width,) * len(taps)
        self.stages = Stages(backbone, taps, frozen)
        self.edge = Gather(taps, self.tap, widths, align, F.relu)
        self.score = nn.Conv2d(sum(widths), 1, 1)
        self.way = Gather(taps, self.tap, widths, align, F.relu) if displacement else None
        self.step = nn.Conv2d(sum(widths), 2, 1, bias=False) if displacement else None
        self.channels = 3 if displacement else 1

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k h2 w2"]:
        """Boundary logits in channel 0; with displacement, (dy, dx) in cells in channels 1 and 2."""
        features = self.stages(x)
        logits = self.score(self.edge(features))
        if self.way is None or self.step is None:
            return logits
        return torch.cat([logits, self.step(self.way(features))], 1)


class PairNet(nn.Module):
    """PSA: features whose distance between two cells says whether they belong together, on the stride-8 grid.

    Reads the last three blocks, `width`, 2 `width` and 4 `width` channels of each (64 in the paper).
    """

    def __init__(self, backbone: Backbone, *, align: Align, width: int = 64, frozen: bool = True) -> None:
        super().__init__()
        self.preprocess, self.min_size, self.tap = backbone.preprocess, backbone.min_size, backbone.tap("stride8")
        taps = blocks(backbone)[-3:]
        self.channels = 7 * width
        read = tuple(dict.fromkeys((*taps, self.tap)))  # the grid's stage is read for its size at least
        self.stages = Stages(backbone, read, frozen)
        self.gather = Gather(taps, self.tap, (width, 2 * width, 4 * width), align, F.elu)
        self.mix = nn.Conv2d(self.channels, self.channels, 1, bias=False)
        nn.init.xavier_uniform_(self.mix.weight, gain=4)  # as in the authors' code: distances start wide

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d h2 w2"]:
        """Pair features; `feature_affinity` compares them."""
        return F.elu(self.mix(self.gather(self.stages(x))))


def affinity_net(
    form: Form, backbone: Backbone, *, align: Align, width: int, displacement: bool = False, frozen: bool = True
) -> EdgeNet | PairNet:
    """The network of a form; a frozen backbone is not touched by training, in both forms."""
    if form == "psa":
        return PairNet(backbone, align=align, width=width, frozen=frozen)
    return EdgeNet(backbone, align=align, width=width, displacement=displacement, frozen=frozen)


def feature_affinity(
    features: Float[Tensor, "n d h w"], offsets: Iterable[tuple[int, int]]
) -> Float[Tensor, "n f h w"]:
    """exp(-mean |difference|) of the features of each cell and of the cell at each offset (dy >= 0, dx) from it.

    0 where the offset leaves the grid. The mean over channels is the authors' code; the paper writes the sum.
    """
    h, w = features.shape[2:]
    found = []
    for dy, dx in offsets:
        if dy >= h or abs(dx) >= w:
            found.append(features.new_zeros(len(features), h, w))
            continue
        left, right = max(0, -dx), max(0, dx)
        source = features[:, :, : h - dy, left : w - right]
        target = features[:, :, dy:, right : w - left]
        close = torch.exp(-(source - target).abs().mean(1))
        found.append(F.pad(close, (left, right, 0, dy)))
    return torch.stack(found, 1)


def blocks(backbone: Backbone) -> tuple[Tap, ...]:
    """What boundaries are read from: the ends of the backbone's stages at stride 2 or more, and its `low` features."""
    own = tuple(tap for tap in backbone.taps if tap.name.startswith("block") and tap.stride >= 2)
    low = backbone.tap("low")
    return own if low in own else (low, *own)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // 8 if channels % 8 == 0 else 1, channels)
