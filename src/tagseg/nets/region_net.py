"""RegionNet: what each region of an image is, read from features of the whole image (MCOF, Sec. 2, Eq. 3).

Two forms. "mean_pool": the mean of the features over the region's pixels. "roi_mask", as in Fast R-CNN: 7x7 features of
the region's box, and the same with what lies outside of the region set to 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import roi_align

from tagseg.nets.backbones import Backbone, Tap

Form = Literal["mean_pool", "roi_mask"]
SIDE = 7  # cells of a box along each side; ops/regions describes regions in as many


class RegionNet(nn.Module):
    """Normalised images (n,3,H,W) and their regions to logits (n,J,K).

    `body` gives features of the whole image (n,d,h,w), `head` reads the regions from them; `tap` says where cells lie.
    """

    def __init__(self, backbone: Backbone, outputs: int, *, form: Form = "mean_pool", width: int = 1024,
                 reduced: int = 256) -> None:
        super().__init__()
        self.preprocess, self.min_size, self.form = backbone.preprocess, backbone.min_size, form
        self.tap = backbone.tap("last")
        self.channels = self.tap.channels if form == "mean_pool" else reduced
        self.body = Body(backbone, self.channels)
        self.head: nn.Module = (MeanHead(self.channels, outputs, width) if form == "mean_pool"
                                else BoxHead(self.tap, self.channels, outputs, width))

    def forward(self, x: Float[Tensor, "n 3 h w"], cells: Float[Tensor, "n j c"], boxes: Float[Tensor, "n j 4"],
                masks: Float[Tensor, "n j s s"]) -> Float[Tensor, "n j k"]:
        """Logits of every region, described as ops/regions does; what a form does not read may be empty."""
        logits: Tensor = self.head(self.body(x), cells, boxes, masks)
        return logits


class Body(nn.Module):
    """The backbone's last features, through a 1x1 convolution where fewer channels are wanted."""

    def __init__(self, backbone: Backbone, channels: int) -> None:
        super().__init__()
        self.backbone = backbone
        own = backbone.tap("last").channels
        self.reduce = nn.Identity() if channels == own else nn.Sequential(nn.Conv2d(own, channels, 1), nn.ReLU())

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d h2 w2"]:
        features: Tensor = self.reduce(self.backbone(x, ["last"])["last"])
        return features


class MeanHead(nn.Module):
    """The mean of the features over a region, and two layers."""

    def __init__(self, channels: int, outputs: int, width: int) -> None:
        super().__init__()
        self.layers = _layers(channels, width, outputs, hidden=1)

    def forward(self, features: Tensor, cells: Tensor, boxes: Tensor, masks: Tensor) -> Tensor:
        means = cells @ features.flatten(2).transpose(1, 2)  # (n,j,c) @ (n,c,d)  # mcof Eq. 3
        logits: Tensor = self.layers(means)
        return logits


class BoxHead(nn.Module):
    """7x7 features of a region's box and of the region alone, side by side, and three layers."""

    def __init__(self, tap: Tap, channels: int, outputs: int, width: int) -> None:
        super().__init__()
        self.tap = tap
        self.layers = _layers(2 * channels * SIDE * SIDE, width, outputs, hidden=2)

    def forward(self, features: Tensor, cells: Tensor, boxes: Tensor, masks: Tensor) -> Tensor:
        n, j = boxes.shape[:2]
        # roi_align takes cell i's centre for stride * (i + 1/2); ours lies at stride * i + offset, pixel i at i + 1/2
        shift = self.tap.stride / 2 - 0.5 - self.tap.offset
        owner = torch.arange(n, device=boxes.device, dtype=boxes.dtype).repeat_interleave(j)
        rows = torch.cat([owner[:, None], boxes.flatten(0, 1) + shift], 1)
        with torch.autocast(features.device.type, enabled=False):
            scale = 1 / self.tap.stride
            pooled = roi_align(features.float(), rows.float(), SIDE, scale, sampling_ratio=2, aligned=True)
        both = torch.cat([pooled, pooled * masks.flatten(0, 1)[:, None]], 1)
        logits: Tensor = self.layers(both.flatten(1)).unflatten(0, (n, j))
        return logits


def _layers(inputs: int, width: int, outputs: int, hidden: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for k in range(hidden):
        layers += [nn.Linear(inputs if k == 0 else width, width), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(width, outputs))
