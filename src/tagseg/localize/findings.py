"""Maps of anything at all in images of which nothing is known: comparable between images, and a score for each image.

Class maps are divided by their own maximum, so an image without any object has one that looks like the others'. Here
nothing is divided: what counts is the score of a pixel's likeliest class, as a share between 0 and 1 (`shares`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tagseg.artifacts import write_maps
from tagseg.data.index import TaggedSet
from tagseg.inference import Network, Views, coarser, count, predict
from tagseg.nets.backbones import Backbone, Tap
from tagseg.ops.geometry import resample
from tagseg.store import Work
from tagseg.types import ClassMaps

Size = tuple[int, int]
NAME = "object"
SOFT = 8.0  # the score whose share is .75


class Looking(Protocol):
    """How images are shown, and how fine maps are stored."""

    @property
    def views(self) -> Views: ...
    @property
    def grid(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def precision(self) -> str: ...


def network_of(
    module: nn.Module, backbone: Backbone, tap: Tap, logits: Callable[[Tensor], Tensor],
    whole: Callable[[Tensor], Tensor],
) -> Network:  # fmt: skip
    """A module read as how sure it is of its likeliest class, in each pixel and, as a flat second map, in the image.

    Of what the module gives, `logits` makes maps (n,C,h,w) on the grid of `tap`, `whole` the image's logits (n,C).
    """

    def read(raw: Tensor, in_size: Size, out_size: Size) -> Tensor:
        fine = resample(logits(raw.float()), stride=tap.stride, offset=tap.offset, in_size=in_size, out_size=out_size)
        image = shares(whole(raw.float()).amax(1, keepdim=True))[:, :, None, None]
        return torch.cat([shares(fine.amax(1, keepdim=True)), image.expand(-1, -1, *out_size)], 1)

    return Network(module, backbone.preprocess, read, 2, backbone.min_size, rewrite=False)


def shares(logits: Tensor) -> Tensor:
    """Scores as shares between 0 and 1, 0 as .5, in their order.

    No logistic function: maps are stored in halves of floats, which cannot tell .9996 from .9999, and averaged class
    maps reach scores of 30 and more. Sure pixels would tie.
    """
    return (1 + logits / (SOFT + logits.abs())) / 2


def write_findings(work: Work, images: TaggedSet, network: Network, cfg: Looking) -> None:
    """One map (1,h,w) for each image, the mean over views, with its `ClassMaps.image`."""
    views = count(cfg.views)

    def produce(ids: list[str]) -> Iterator[ClassMaps]:
        for one in predict(work, network, images.source, ids, cfg.views, device=cfg.device, precision=cfg.precision,
                           out_size=coarser(cfg.grid)):  # fmt: skip
            said = (np.asarray(one.values.numpy(), np.float32) / np.float32(views)).clip(0, 1)
            size = (one.image.shape[1], one.image.shape[2])
            yield ClassMaps(one.id, np.array([1]), said[:1], size, said[1, :1, 0])

    write_maps(work, images.ids, produce, {"classes": [NAME], "grid": cfg.grid})
