"""Many images through a network: scales, flips, size buckets; every stage that predicts goes through here.

Memory is bounded by chunks of images, the same for any number of workers, and so are the batches and the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tagseg.data.index import ImageSource
from tagseg.nets.backbones import Preprocess
from tagseg.store import Work
from tagseg.training.loop import precision as autocast
from tagseg.training.memory import keep_freed
from tagseg.types import U8

Size = tuple[int, int]
Read = Callable[[Tensor, Size, Size], Tensor]
CHUNK_VALUES = 40_000_000  # output numbers that may wait at once: 160 MB


@dataclass(frozen=True)
class Views:
    """How an image is shown to the network: `size` is the square root of its area at scale 1, as in training."""

    size: int = 256
    scales: tuple[float, ...] = (1.0,)
    flip: bool = True
    batch: int = 8


class Seen(NamedTuple):
    """The merged output (K,h,w) float32 of one image over all views, and the image itself (3,H,W)."""

    id: str
    image: U8
    values: Tensor


@dataclass(frozen=True, eq=False)
class Network:
    """A module in eval mode and how to read it: `read(output, in_size, out_size)` brings its grid to (1,K,h,w)."""

    module: nn.Module
    preprocess: Preprocess
    read: Read
    channels: int
    min_size: int = 32


class _Job(NamedTuple):
    view: int
    shape: Size
    members: list[int]


def predict(
    work: Work,
    network: Network,
    source: ImageSource,
    ids: Sequence[str],
    views: Views,
    *,
    device: str,
    precision: str,
    out_size: Callable[[Size], Size] = lambda size: size,
) -> Iterator[Seen]:
    """Outputs of each image in the order of `ids`, summed over scales and flips (`count(views)` of them)."""
    keep_freed()
    network.module.to(device).eval()
    with one_thread(device):
        for chunk in _chunks(source, ids, network.channels, out_size):
            images = list(work.map(source.read, chunk))
            jobs = _jobs([(i.shape[1], i.shape[2]) for i in images], views, network.min_size)
            totals: list[Tensor | None] = [None] * len(chunk)

            def run(job: _Job, images: list[U8] = images) -> list[Tensor]:
                return _forward(network, job, [images[m] for m in job.members], views.flip, device, precision, out_size)

            for job, outputs in zip(jobs, work.map(run, jobs), strict=True):
                for member, output in zip(job.members, outputs, strict=True):
                    total = totals[member]
                    totals[member] = output if total is None else total + output  # cam Eq. 5
            yield from (Seen(i, image, t) for i, image, t in zip(chunk, images, totals, strict=True) if t is not None)


def count(views: Views) -> int:
    """How many views were summed."""
    return len(views.scales) * (2 if views.flip else 1)


@contextmanager
def one_thread(device: str) -> Iterator[None]:
    """Torch with one thread in every worker: the bytes do not depend on the number of workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if device == "cpu" else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def net_shape(size: Size, area: int, scale: float, least: int) -> Size:
    """The network's input for an image of `size`: area (area·scale)², the image's shape, sides multiples of 16."""
    factor = area * scale / (size[0] * size[1]) ** 0.5
    h, w = (max(least, round(side * factor / 16) * 16, 16) for side in size)
    return h, w


def _chunks(
    source: ImageSource, ids: Sequence[str], channels: int, out_size: Callable[[Size], Size]
) -> Iterator[list[str]]:
    """Consecutive ids whose outputs together stay under `CHUNK_VALUES`; a function of the list alone."""
    chunk: list[str] = []
    held = 0
    for sample in ids:
        h, w = out_size(source.size(sample))
        values = channels * h * w
        if chunk and (held + values > CHUNK_VALUES or len(chunk) >= 64):
            yield chunk
            chunk, held = [], 0
        chunk.append(sample)
        held += values
    if chunk:
        yield chunk


def _jobs(sizes: list[Size], views: Views, least: int) -> list[_Job]:
    """Batches of images that get the same input size, scale by scale."""
    jobs = []
    for view, scale in enumerate(views.scales):
        buckets: dict[Size, list[int]] = {}
        for index, size in enumerate(sizes):
            buckets.setdefault(net_shape(size, views.size, scale, least), []).append(index)
        for shape, members in sorted(buckets.items()):
            jobs += [_Job(view, shape, members[i : i + views.batch]) for i in range(0, len(members), views.batch)]
    return jobs


@torch.inference_mode()
def _forward(
    network: Network,
    job: _Job,
    images: list[U8],
    flip: bool,
    device: str,
    precision: str,
    out_size: Callable[[Size], Size],
) -> list[Tensor]:
    """The outputs of one batch on each image's own output grid, mirrored view added after it was mirrored back."""
    batch = torch.from_numpy(np.stack([resized(i, job.shape) for i in images])).to(device)
    x = network.preprocess(batch.float() / 255)
    targets = [out_size((i.shape[1], i.shape[2])) for i in images]
    with autocast(device, precision):
        plain = network.module(x)
        mirrored = network.module(x.flip(3)) if flip else None
    outputs = [network.read(plain[i : i + 1], job.shape, t) for i, t in enumerate(targets)]
    if mirrored is not None:
        outputs = [
            o + network.read(mirrored[i : i + 1], job.shape, t).flip(3)
            for i, (o, t) in enumerate(zip(outputs, targets, strict=True))
        ]
    return [o[0].float().cpu() for o in outputs]


def resized(image: U8, shape: Size) -> U8:
    """An image (3,H,W) at another size (antialiased bilinear): (3,h,w)."""
    if image.shape[1:] == shape:
        return image
    photo = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    small = photo.resize((shape[1], shape[0]), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1))
