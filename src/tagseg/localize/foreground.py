"""What a recognition network responds to, whatever it is: a foreground map out of weights that have never seen a tag.

Layers of the fourth and fifth stage fire on objects, the fourth on all of one, the fifth on its telling parts (Saleh et
al. 2016). Nothing is learned here: the stage takes pretrained weights, not trained ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tagseg.artifacts import MapSet, write_maps
from tagseg.data.index import Images
from tagseg.data.weights import Pretrained
from tagseg.inference import Network, Views, coarser, predict
from tagseg.nets.backbones import Backbone, build
from tagseg.ops.geometry import align, resample
from tagseg.store import Work, stage
from tagseg.types import F32, ClassMaps, UsageError

Size = tuple[int, int]


@dataclass(frozen=True)
class Foreground:
    """`taps`: two or more features of the network by name; they need not share a grid, the finest one is taken.

    `tap_norm`: whether each is brought to 0..1 in its image before they are added ("per_layer"), or added as they are
    ("none", the paper's, for VGG), where the larger one rules: in other networks stages differ by far. `grid`: maps are
    stored at 1/grid of the image's sides.
    """

    backbone: str = "auto"
    stride: int = 8
    taps: tuple[str, ...] = ("block4", "block5")
    tap_norm: Literal["none", "per_layer"] = "per_layer"
    views: Views = field(default_factory=lambda: Views(size=384))
    grid: int = 2
    device: str = "auto"
    precision: str = "auto"

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {"views": Views(size=192)},
        "paper": {"views": Views(size=512, flip=False), "tap_norm": "none"},
    }


class Energies(nn.Module):
    """Images to the energy (n,1,h,w) of all taps together, on the grid of the finest: the mean over channels of each.

    Of signed activations the mean of the positive part; where they are not negative anyway, that is the plain mean.
    """

    def __init__(self, backbone: Backbone, taps: tuple[str, ...], tap_norm: str) -> None:
        super().__init__()
        self.backbone, self.names, self.tap_norm = backbone, taps, tap_norm
        self.taps = [backbone.tap(name) for name in taps]
        self.finest = min(self.taps, key=lambda tap: tap.stride)

    def forward(self, x: Tensor) -> Tensor:
        found = self.backbone(x, self.names)
        size = found[self.names[self.taps.index(self.finest)]].shape[2:]
        means = [found[name].float().relu().mean(1, keepdim=True) for name in self.names]
        if self.tap_norm == "per_layer":
            means = [minmax(one) for one in means]
        fine = [align(one, tap, self.finest, (size[0], size[1])) for one, tap in zip(means, self.taps, strict=True)]
        return torch.stack(fine).sum(0)


def minmax(maps: Tensor) -> Tensor:
    """Maps (n,1,h,w) brought to 0..1, each by its own range; a constant one is 0."""
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return torch.where(high > low, (maps - low) / torch.where(high > low, high - low, 1.0), 0.0)


@stage(MapSet, version=2)
def maps(work: Work, images: Images, pretrained: Pretrained, cfg: Foreground) -> None:
    """The foreground of every image as a map of one class, "object"."""
    if len(cfg.taps) < 1:
        raise UsageError("foreground.taps: found none, expected the names of features, such as [block4,block5]")
    if pretrained.is_random:
        work.event("the weights are random numbers: what they respond to is no foreground")
    network = network_of(build(cfg.backbone, stride=cfg.stride, weights_state=pretrained.start), cfg)

    def produce(ids: list[str]) -> Iterator[ClassMaps]:
        for seen in predict(work, network, images.source, ids, cfg.views, device=cfg.device, precision=cfg.precision,
                            out_size=coarser(cfg.grid)):  # fmt: skip
            size = (seen.image.shape[1], seen.image.shape[2])
            yield ClassMaps(seen.id, np.array([1]), scaled(np.asarray(seen.values.numpy(), np.float32)), size)

    write_maps(work, images.ids, produce, {"classes": ["object"], "grid": cfg.grid})


def network_of(backbone: Backbone, cfg: Foreground) -> Network:
    """A backbone read as energies, brought to the wanted size."""
    model = Energies(backbone, cfg.taps, cfg.tap_norm)

    def read(raw: Tensor, in_size: Size, out_size: Size) -> Tensor:
        tap = model.finest
        return resample(raw, stride=tap.stride, offset=tap.offset, in_size=in_size, out_size=out_size)

    return Network(model, backbone.preprocess, read, 1, backbone.min_size)


def scaled(energy: F32) -> F32:
    """An energy (1,h,w) as shares 0..1 of its own range in the image; 0 everywhere where it is the same."""
    found: F32 = minmax(torch.from_numpy(energy)[None])[0].numpy()  # priors Eq. 1
    return found
