"""Many images through a network: scales, flips, size buckets; every stage that predicts goes through here.

Memory is bounded by chunks of images, the same for any number of workers, and so are the batches and the bytes.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tagseg.config import added
from tagseg.data.index import ImageSource
from tagseg.nets.backbones import Preprocess
from tagseg.nets.captured import Captured
from tagseg.nets.folding import ConvAct, folded, fused
from tagseg.ops.rounding import keep_sums
from tagseg.store import Work
from tagseg.training.loop import precision as autocast
from tagseg.training.memory import keep_freed
from tagseg.types import I64, U8

Size = tuple[int, int]
Read = Callable[[Tensor, Size, Size], Tensor]
CHUNK_VALUES = 20_000_000  # outputs and images of a chunk, in numbers of 4 bytes: 80 MB; two chunks are held at once


@dataclass(frozen=True)
class Views:
    """How an image is shown to the network: `size` is the square root of its area at scale 1, as in training.

    At most `batch` views of images pass the network together (2 at least where images are mirrored). `captured`: on a
    graphics card passes are recorded once for each shape and replayed (`nets.captured`). A processor has nothing to
    record, and a network that may not be rewritten is run as it is.
    """

    size: int = 256
    scales: tuple[float, ...] = (1.0,)
    flip: bool = True
    batch: int = 8
    captured: bool = added(False)


class Seen(NamedTuple):
    """The merged output (K,h,w) float32 of one image over all views, and the image itself (3,H,W)."""

    id: str
    image: U8
    values: Tensor


@dataclass(frozen=True, eq=False)
class Network:
    """A module in eval mode and how to read it: `read(output, in_size, out_size)` brings its grid to (1,K,h,w).

    `rewrite`: whether its batch norms may be folded; not where a module reads the layers of another one. `rows` (K,D):
    the last layer, where the module leaves it out; it is computed for the channels alone that a batch is asked for.
    """

    module: nn.Module
    preprocess: Preprocess
    read: Read
    channels: int
    min_size: int = 32
    rewrite: bool = True
    rows: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """All channels of normalised images (n,3,h,w) on the network's grid, by the module as it was handed in."""
        grid: Tensor = self.module(x)
        return grid if self.rows is None else F.conv2d(grid, self.rows[:, :, None, None])


class _Batch(NamedTuple):
    """Images of a chunk, by their place in it, that get the same input size at every scale."""

    shapes: tuple[Size, ...]
    members: list[int]


class _Ready(NamedTuple):
    """A network as it is run: module rewritten and on the device, mean and deviation of its input beside it."""

    module: nn.Module
    mean: Tensor  # (3,1,1)
    deviation: Tensor  # (3,1,1)
    read: Read
    device: str
    precision: str
    rows: Tensor | None  # (K,D)


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
    channels: Callable[[str], I64] | None = None,
) -> Iterator[Seen]:
    """Outputs of each image in the order of `ids`, summed over scales and flips (`count(views)` of them).

    `channels`: which of the network's an image is asked for, where they are read independently of each other; the
    others cost nothing from there on. Each image is decoded once. While one chunk is computed and handed on, the next
    one is decoded and begun.
    """
    keep_freed()
    ready = _ready(network, device, precision, views.captured)

    def total(chunk: list[str], images: list[U8], batch: _Batch) -> list[Tensor]:
        asked = [channels(chunk[m]) for m in batch.members] if channels else None
        return _total(ready, batch.shapes, [images[m] for m in batch.members], views.flip, out_size, asked)

    with one_thread(device), ThreadPoolExecutor(work.run.workers) as pool:
        begun: deque[_Begun] = deque()
        try:
            for chunk in _chunks(source, ids, lambda id: len(channels(id)) if channels else network.channels, out_size):
                images = list(work.map(source.read, chunk))
                batches = _batches([(i.shape[1], i.shape[2]) for i in images], views, network.min_size)
                begun.append(_Begun(chunk, images, batches, [pool.submit(total, chunk, images, b) for b in batches]))
                if len(begun) > 1:
                    yield from _finished(begun.popleft())
            while begun:
                yield from _finished(begun.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _Begun(NamedTuple):
    """A chunk whose batches are being computed."""

    ids: list[str]
    images: list[U8]
    batches: list[_Batch]
    outputs: list[Future[list[Tensor]]]


def _finished(begun: _Begun) -> Iterator[Seen]:
    """What was seen in a chunk, in its order."""
    values: dict[int, Tensor] = {}
    for batch, outputs in zip(begun.batches, begun.outputs, strict=True):
        values.update(zip(batch.members, outputs.result(), strict=True))
    for place, (id, image) in enumerate(zip(begun.ids, begun.images, strict=True)):
        yield Seen(id, image, values.pop(place))


def count(views: Views) -> int:
    """How many views were summed."""
    return len(views.scales) * (2 if views.flip else 1)


def coarser(grid: int) -> Callable[[Size], Size]:
    """The size of a map that is stored at 1/grid of an image's sides, from the image's."""
    return lambda size: (-(-size[0] // grid), -(-size[1] // grid))


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
    source: ImageSource, ids: Sequence[str], channels: Callable[[str], int], out_size: Callable[[Size], Size]
) -> Iterator[list[str]]:
    """Consecutive ids whose images and outputs stay under `CHUNK_VALUES` together; a function of the list alone."""
    chunk: list[str] = []
    held = 0
    for sample in ids:
        size = source.size(sample)
        h, w = out_size(size)
        values = channels(sample) * h * w + 3 * size[0] * size[1] // 4
        if chunk and (held + values > CHUNK_VALUES or len(chunk) >= 64):
            yield chunk
            chunk, held = [], 0
        chunk.append(sample)
        held += values
    if chunk:
        yield chunk


def _batches(sizes: list[Size], views: Views, least: int) -> list[_Batch]:
    """Images that get the same input sizes at all scales, at most `views.batch` together, mirror images counted."""
    most = max(1, views.batch // 2) if views.flip else views.batch
    buckets: dict[tuple[Size, ...], list[int]] = {}
    for index, size in enumerate(sizes):
        shapes = tuple(net_shape(size, views.size, scale, least) for scale in views.scales)
        buckets.setdefault(shapes, []).append(index)
    return [
        _Batch(shapes, members[i : i + most])
        for shapes, members in sorted(buckets.items())
        for i in range(0, len(members), most)
    ]


_KEPT: WeakKeyDictionary[Network, tuple[object, _Ready]] = WeakKeyDictionary()


@torch.inference_mode(False)  # copies made in inference mode could not be looked through
def _ready(network: Network, device: str, precision: str, captured: bool) -> _Ready:
    """The network as it is run, kept until its weights change; the one handed in is only moved and set to eval mode."""
    network.module.to(device).eval()
    rows = network.rows
    weights = [*network.module.state_dict(keep_vars=True).values(), *([] if rows is None else [rows])]
    state = (device, precision, captured, [(id(t), t._version) for t in weights])
    if network not in _KEPT or _KEPT[network][0] != state:
        mean, deviation = (
            torch.tensor(values, device=device).view(3, 1, 1)  # once: each copy to a device waits for it
            for values in (network.preprocess.mean, network.preprocess.std)
        )
        module = _rewritten(network, device, precision)
        module = Captured(module) if captured and network.rewrite and device != "cpu" else module
        rows = None if rows is None else rows.detach().to(device)
        _KEPT[network] = (state, _Ready(module, mean, deviation, network.read, device, precision, rows))
    return _KEPT[network][1]


def _rewritten(network: Network, device: str, precision: str) -> nn.Module:
    """A faster copy: batch norm folded, channels last, and what else the device and the precision allow."""
    side = 16 * -(-max(64, network.min_size) // 16)
    example = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    if not network.rewrite:
        return copy.deepcopy(network.module).to(device)
    module = folded(copy.deepcopy(network.module).cpu(), example)
    if device == "cpu":
        module = fused(module, example, torch.bfloat16 if precision == "bf16" else torch.float32)
    if precision == "bf16":
        _round(module)
    return module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _round(module: nn.Module) -> None:
    """Bring the weights of convolutions to bfloat16, once and not in each pass; the sum of each filter is kept.

    The bias of a `ConvAct` stays in float32; torch's own convolutions take both in one precision. What rounding a
    bias shifts it shifts at every pixel: on the maps of a MobileNet that is as much as all other rounding.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | ConvAct):
            kept = keep_sums(part.weight.detach().float().flatten(1).numpy())
            part.weight.data = torch.from_numpy(kept).view_as(part.weight).bfloat16()
        if isinstance(part, nn.Conv2d):
            part.bfloat16()


@torch.inference_mode()
def _total(
    ready: _Ready, shapes: tuple[Size, ...], images: list[U8], flip: bool, out_size: Callable[[Size], Size],
    asked: list[I64] | None,
) -> list[Tensor]:  # fmt: skip
    """The outputs of one batch, each on its image's own output grid (K,h,w), summed over scales and mirrored views."""
    targets = [out_size((i.shape[1], i.shape[2])) for i in images]
    totals: list[Tensor] = []
    used, places = None, asked
    if ready.rows is not None and asked is not None:
        union = np.unique(np.concatenate(asked))
        union = union if len(union) else np.zeros(1, np.int64)  # no convolution has no output
        used, places = _moved(union, ready.device), [np.searchsorted(union, one) for one in asked]
    for shape in shapes:
        x = _input(ready, images, shape)
        with autocast(ready.device, ready.precision):
            grid = ready.module(torch.cat([x, x.flip(3)]) if flip else x)
            if ready.rows is not None:
                grid = F.conv2d(grid, (ready.rows if used is None else ready.rows[used])[:, :, None, None])
        grid = grid.contiguous()
        outputs = _outputs(ready, grid[: len(images)], shape, targets, places)
        if flip:
            mirrored = _outputs(ready, grid[len(images) :], shape, targets, places)
            outputs = [o + m.flip(2) for o, m in zip(outputs, mirrored, strict=True)]
        totals = [t + o for t, o in zip(totals, outputs, strict=True)] if totals else outputs  # cam Eq. 5
    return [t.cpu() for t in totals]  # only here does the host wait for the device


def _input(ready: _Ready, images: list[U8], shape: Size) -> Tensor:
    """Normalised images (n,3,h,w) on the device, channels last; bytes travel, floats are made there."""
    pixels = _moved(np.stack([resized(i, shape) for i in images]), ready.device)
    x = (pixels.float() / 255 - ready.mean) / ready.deviation
    return x.contiguous(memory_format=torch.channels_last)


def _outputs(ready: _Ready, grid: Tensor, shape: Size, targets: list[Size], asked: list[I64] | None) -> list[Tensor]:
    """What the network said of each image of a batch, float32 on its output grid; equal grids are read together."""
    outputs: dict[int, Tensor] = {}
    for target in dict.fromkeys(targets):
        members = [i for i, t in enumerate(targets) if t == target]
        if asked is None:
            found = list(ready.read(torch.stack([grid[i] for i in members]), shape, target).float())
        else:  # as images of one channel each: images differ in how many they are asked for
            counts = [len(asked[i]) for i in members]
            rows, columns = np.repeat(members, counts), np.concatenate([asked[i] for i in members])
            planes = grid[_moved(rows, ready.device), _moved(columns, ready.device)]
            found = list(ready.read(planes[:, None], shape, target).float()[:, 0].split(counts))
        outputs.update(zip(members, found, strict=True))
    return [outputs[i] for i in range(len(targets))]


def _moved(values: np.ndarray, device: str) -> Tensor:
    """An array on a device, without waiting for it."""
    here = torch.from_numpy(values)
    return here if device == "cpu" else here.pin_memory().to(device, non_blocking=True)


def resized(image: U8, shape: Size) -> U8:
    """An image (3,H,W) at another size (antialiased bilinear): (3,h,w)."""
    if image.shape[1:] == shape:
        return image
    photo = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    small = photo.resize((shape[1], shape[0]), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1))
