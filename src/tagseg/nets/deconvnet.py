"""A recognition network run backwards: unpool with the pools' switches, convolve with its filters transposed (DFS).

Level b, counted from the finest, is a map on the grid where block b begins; level 1 lies behind the first convolution.
The mirror owns no filters: `tie="shared"` reads the encoder's parameters at every call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from tagseg.nets.backbones import Backbone, Chain, FixedBatchNorm, Tap
from tagseg.nets.two_way import Rectify, TwoWay, Way, obey, only
from tagseg.types import UsageError

Size = tuple[int, int]
Signals = Callable[[Tensor], Sequence[Tensor]]
FIRST = "first"  # the grid behind the first convolution of a plain chain


@dataclass(frozen=True)
class Mirroring:
    """How the mirror works.

    `route`: "conv" walks plain chains of convolutions and pools (VGG) backwards step by step, "vjp" lets autograd apply
    the transpose of whatever lies between two grids. `rectify`: what a ReLU does on the way back: "relu" cuts negative
    signals, "mask" lets pass where the encoder was active (back-propagation), "guided" both, "none" nothing.
    `tie`: "shared", "detach" (no gradient reaches the filters through the mirror) or "free" (filters of its own, which
    begin as copies). `bias`: biases of its own. `unpool`: "switch", or for comparison "nearest", "bilinear".
    Only the conv route has detached or free filters, biases and other ways to unpool.
    """

    route: Literal["conv", "vjp"] = "conv"
    rectify: Rectify = "relu"
    tie: Literal["shared", "detach", "free"] = "shared"
    bias: bool = False
    unpool: Literal["switch", "nearest", "bilinear"] = "switch"


# ---- unpooling ----

def unpool(values: Float[Tensor, "n d h w"], switches: Int64[Tensor, "n #d h w"], size: Size,
           overlap: bool = False) -> Float[Tensor, "n d hh ww"]:
    """Zeros of `size`, but each value where its switch (row * width + column) points; the adjoint of the pool.

    One switch may be for all channels. Windows that `overlap` can point at one place: there the largest value counts,
    in whatever order they come. What lies channels last in memory comes back so.
    """
    (n, d), cells = values.shape[:2], size[0] * size[1]
    if overlap:
        zeros, where = values.new_zeros(n, d, cells), switches.expand_as(values).flatten(2)
        return zeros.scatter_reduce(2, where, values.flatten(2), "amax", include_self=False).unflatten(2, size)
    if switches.shape[1] == 1:
        rows = values.permute(0, 2, 3, 1).flatten(0, 2)  # one for each cell: all its channels go together
        where = (switches.flatten(1) + cells * torch.arange(n, device=values.device)[:, None]).flatten()
        placed = rows.new_zeros(n * cells, d).index_copy(0, where, rows)
        return placed.view(n, *size, d).permute(0, 3, 1, 2)
    if values.is_contiguous(memory_format=torch.channels_last) and not values.is_contiguous():
        where = (switches * d + torch.arange(d, device=values.device)[:, None, None]).permute(0, 2, 3, 1).flatten(1)
        flat = values.new_zeros(n, cells * d).scatter(1, where, values.permute(0, 2, 3, 1).flatten(1))
        return flat.view(n, *size, d).permute(0, 3, 1, 2)
    zeros = values.new_zeros(n, d, cells)
    return zeros.scatter(2, switches.flatten(2), values.flatten(2)).unflatten(2, size)  # dfs Eq. 3


def _pooled(x: Tensor, pool: nn.MaxPool2d) -> tuple[Tensor, Tensor]:
    """Values and switches of a max-pool."""
    found: tuple[Tensor, Tensor] = F.max_pool2d(
        x, pool.kernel_size, pool.stride, pool.padding, ceil_mode=pool.ceil_mode, return_indices=True)
    return found


def _reaches_twice(pool: nn.MaxPool2d) -> bool:
    return bool(pool.kernel_size > pool.stride)  # type: ignore[operator]


# ---- the conv route ----

class Step(NamedTuple):
    """A convolution of a chain with the batch norm that follows it, if any."""

    conv: nn.Conv2d
    norm: FixedBatchNorm | nn.BatchNorm2d | None


class Block(NamedTuple):
    """Convolutions and the pool after them."""

    steps: tuple[Step, ...]
    pool: nn.MaxPool2d


class Trace(NamedTuple):
    """What the way back needs of one block: activations X_{b,j} after each convolution, switches, size before them."""

    active: tuple[Tensor, ...]
    switches: Tensor
    size: Size


def blocks(backbone: Backbone) -> tuple[Block, ...]:
    """The blocks of a plain chain of convolutions, ReLUs and max-pools, the last pool included.

    Raises `UsageError` for a network that is built in another way.
    """
    found: list[Block] = []
    body = backbone.body
    stages = list(body.stages.values()) if isinstance(body, Chain) else []
    for stage, pool in zip(stages[::2], stages[1::2], strict=False):
        steps = _steps(stage)
        if not steps or not isinstance(pool, nn.MaxPool2d):
            break
        found.append(Block(steps, pool))
    if not stages or 2 * len(found) != len(stages):
        raise UsageError(f"network {backbone.name!r}: its layers are no plain chain of convolutions and max-pools, so "
                         "they cannot be walked backwards one by one; expected vgg16 or small. Choose route=vjp")
    return tuple(found)


def _steps(stage: nn.Module) -> tuple[Step, ...]:
    """The convolutions of Sequential(conv, [norm], relu, ...); nothing where it is something else."""
    steps: list[Step] = []
    for layer in stage if isinstance(stage, nn.Sequential) else ():
        if isinstance(layer, nn.Conv2d):
            steps.append(Step(layer, None))
        elif isinstance(layer, FixedBatchNorm | nn.BatchNorm2d) and steps:
            steps[-1] = Step(steps[-1].conv, layer)
        elif not (isinstance(layer, nn.ReLU) or (isinstance(layer, TwoWay) and layer.top == float("inf"))):
            return ()
    return tuple(steps)


def encoded(x: Tensor, parts: Sequence[Block]) -> tuple[Tensor, list[Trace]]:
    """The top P_B of normalised images (n,3,h,w), and what the way back needs of every block."""
    traces = []
    for block in parts:
        active = []
        for step in block.steps:
            x = step.conv(x)
            x = F.relu(step.norm(x) if step.norm is not None else x)  # dfs Eq. 1
            active.append(x)
        size = (x.shape[2], x.shape[3])
        x, switches = _pooled(x, block.pool)  # dfs Eq. 2
        traces.append(Trace(tuple(active), switches, size))
    return x, traces


def gain(norm: FixedBatchNorm | nn.BatchNorm2d | None) -> Tensor | None:
    """What a batch norm with stored statistics multiplies each channel by (1,d,1,1)."""
    if norm is None:
        return None
    assert norm.running_var is not None
    return (norm.weight / (norm.running_var + norm.eps).sqrt()).view(1, -1, 1, 1)


def rectified(v: Tensor, active: Tensor, rule: Rectify) -> Tensor:
    """What the way back through a ReLU lets pass of v; `active`: what the encoder's ReLU gave."""
    if rule in ("mask", "guided"):
        v = v * (active > 0)
    return F.relu(v) if rule in ("relu", "guided") else v


def _itself(top: Tensor) -> list[Tensor]:
    return [top]


def _effective(step: Step) -> Tensor:
    """A copy of the filters as their batch norm scales them."""
    scale, weight = gain(step.norm), step.conv.weight.detach().clone()
    return weight if scale is None else weight * scale.detach().view(-1, 1, 1, 1)


class Mirrored(NamedTuple):
    """The last features X_B, the top (n,d,h',w'), which is what its pool makes of them, and levels for each signal."""

    last: Tensor
    top: Tensor
    levels: list[list[Tensor]]


class Mirror(nn.Module):
    """The way back through a backbone: from normalised images to the top and the levels, finest first.

    `grids` are those of the levels. Batch norms must use stored statistics (`freeze_batch_norm`): the mirror ties to
    the filter that they make of a convolution, and is its transpose only while they stand still.
    """

    def __init__(self, backbone: Backbone, cfg: Mirroring = Mirroring()) -> None:
        super().__init__()
        self.cfg = cfg
        self.backbone = backbone
        if cfg.route == "vjp" and (cfg.tie != "shared" or cfg.bias or cfg.unpool != "switch"):
            raise UsageError(f"mirror: found tie={cfg.tie}, bias={cfg.bias}, unpool={cfg.unpool} with route=vjp, which "
                             "applies the network's own transpose; choose route=conv (vgg16, small) for these")
        self.parts = blocks(backbone) if cfg.route == "conv" else ()
        self.names = names_of(backbone)
        self.grids = tuple(_grid(backbone, name) for name in self.names[:-1])
        self.top = _grid(backbone, self.names[-1])
        convs = [step.conv for block in self.parts for step in block.steps][1:]  # the first is not walked back
        free = [_effective(step) for block in self.parts for step in block.steps][1:] if cfg.tie == "free" else []
        self.free = nn.ParameterList(free)
        self.biases = nn.ParameterList([torch.zeros(conv.in_channels) for conv in convs] if cfg.bias else [])
        self.way = Way(cfg.rectify)
        if cfg.route == "vjp":
            obey(backbone, self.way)

    def forward(self, x: Float[Tensor, "n 3 h w"], signals: Signals = _itself) -> Mirrored:
        """There and back: `signals` makes of the top what goes down (one: itself)."""
        if self.cfg.route == "vjp":
            return self._by_autograd(x, signals)
        top, traces = encoded(x, self.parts)
        return Mirrored(traces[-1].active[-1], top, [self.back(signal, traces) for signal in signals(top)])

    def back(self, top: Tensor, traces: Sequence[Trace]) -> list[Tensor]:
        """The levels, finest first, of a signal on the grid of the top."""
        level, found = top, list[Tensor]()
        left = sum(len(block.steps) for block in self.parts) - 1
        for block, trace in zip(reversed(self.parts), reversed(traces), strict=True):
            v = self._unpooled(level, trace, block.pool)
            for step, active in zip(reversed(block.steps), reversed(trace.active), strict=True):
                if left == 0:
                    break  # behind the first convolution: beyond it lie only three channels
                left -= 1
                v = self._transposed(rectified(v, active, self.cfg.rectify), step, left)  # dfs Eq. 4
            level = F.relu(v) if self.cfg.rectify == "relu" else v  # dfs Eq. 5
            found.append(level)
        return found[::-1]

    def _unpooled(self, v: Tensor, trace: Trace, pool: nn.MaxPool2d) -> Tensor:
        if self.cfg.unpool == "switch":
            return unpool(v, trace.switches, trace.size, _reaches_twice(pool))
        mode = self.cfg.unpool
        return F.interpolate(v, trace.size, mode=mode, **({"align_corners": False} if mode == "bilinear" else {}))

    def _transposed(self, v: Tensor, step: Step, place: int) -> Tensor:
        weight: Tensor = step.conv.weight
        scale = gain(step.norm)
        if self.cfg.tie == "detach":
            weight, scale = weight.detach(), None if scale is None else scale.detach()
        if self.cfg.tie == "free":
            weight, scale = self.free[place], None
        bias = self.biases[place] if self.cfg.bias else None
        padding, dilation = step.conv.padding, step.conv.dilation
        return F.conv_transpose2d(v if scale is None else v * scale, weight, bias, padding=padding,  # type: ignore[arg-type]
                                  dilation=dilation)

    def _by_autograd(self, x: Tensor, signals: Signals) -> Mirrored:
        """The same by vector-Jacobian products between neighbouring grids; works without grad mode, too."""
        learning = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        with torch.inference_mode(False), torch.enable_grad(), nullcontext() if learning else only():
            frozen = not any(p.requires_grad for p in self.backbone.parameters())
            *points, last = self.points(x.clone().requires_grad_(True) if frozen else x.clone())
            top, last = (t if learning else t.detach() for t in (points[-1], last))
            found = [self._pulled(signal, points, learning) for signal in signals(top)]
        return Mirrored(last, top, found if learning else [[v.detach() for v in one] for one in found])

    def _pulled(self, v: Tensor, points: Sequence[Tensor], learning: bool) -> list[Tensor]:
        found = list[Tensor]()
        for low, high in zip(reversed(points[:-1]), reversed(points[1:]), strict=True):
            with self.way.back() if learning else nullcontext():
                (v,) = torch.autograd.grad(high, low, v, create_graph=learning, retain_graph=True)
            v = F.relu(v) if self.cfg.rectify == "relu" else v
            found.append(v)
        return found[::-1]

    def points(self, x: Tensor) -> list[Tensor]:
        """The features where levels lie, finest first, the top, and what lies before the pool at its end, if any."""
        end = last_of(self.backbone)
        if FIRST not in self.names:
            features = self.backbone(x, (*self.names, end))
            return [features[name] for name in (*self.names, end)]
        found, body, last = list[Tensor](), self.backbone.body, x
        assert isinstance(body, Chain)
        for name, stage in body.stages.items():
            for layer in stage if isinstance(stage, nn.Sequential) else [stage]:
                x = layer(x)
                if not found and isinstance(layer, nn.ReLU | TwoWay):
                    found.append(x)
            last = x if name == end else last
            if name in self.names:
                found.append(x)
        return [*found, last]


def last_of(backbone: Backbone) -> str:
    """The last features that are no pool's."""
    return [tap.name for tap in backbone.taps if not tap.name.startswith("pool")][-1]


def columns_of(backbone: Backbone) -> tuple[str, ...]:
    """Features of the network itself on the grids of the levels: X_b of each block b, the last before the next level
    begins; those of the last level may be the top.
    """
    names, order = names_of(backbone), [tap.name for tap in backbone.taps]
    found = []
    for own, following in pairwise(names):
        begin = 0 if own == FIRST else order.index(own)
        end = order.index(following) + (following == names[-1])
        found.append([name for name in order[begin:end] if not name.startswith("pool")][-1])
    return tuple(found)


def names_of(backbone: Backbone) -> tuple[str, ...]:
    """The grids of the levels, finest first, and the top: where each mirrored block ends.

    Behind each pool where a network has max-pools, with the first convolution (`FIRST`) or, without it, the features
    before the first pool; else where the stride changes, and the last two stages.
    """
    known = [tap.name for tap in backbone.taps]
    pools = [name for name in known if name.startswith("pool")]
    if pools:
        finest = FIRST if is_plain(backbone) else known[0]
        return tuple(dict.fromkeys([finest, *pools, *([] if known[-1].startswith("pool") else known[-1:])]))
    wanted = ("stride2", "stride4", "stride8", "block4", "last")
    taps = {backbone.tap(name).name for name in wanted if name in (*known, *backbone.aliases)}
    return tuple(name for name in known if name in taps)


def is_plain(backbone: Backbone) -> bool:
    """Whether a network can be walked backwards step by step."""
    try:
        blocks(backbone)
    except UsageError:
        return False
    return True


def _grid(backbone: Backbone, name: str) -> Tap:
    if name != FIRST:
        return backbone.tap(name)
    return Tap(FIRST, blocks(backbone)[0].steps[0].conv.out_channels, 1, 0.0)
