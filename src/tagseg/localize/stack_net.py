"""One class map from all levels of a network that is run backwards (DFS, arXiv 1602.04984)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagseg.artifacts import Weights, write_weights
from tagseg.localize.classify import check_classes
from tagseg.nets.backbones import Backbone, Tap, build, freeze_batch_norm
from tagseg.nets.deconvnet import Mirror, Mirroring, columns_of, is_plain, last_of
from tagseg.ops import pooling
from tagseg.ops.geometry import align
from tagseg.store import Work
from tagseg.types import UsageError


@dataclass(frozen=True)
class Stack:
    """What the levels are and how they make one map for each class.

    `route`, `rectify`, `tie`, `bias`, `unpool`: as in `Mirroring`; route "any" is "conv" where the network allows it.
    `levels`: which, counted from 1, the finest; none named: all. `select`: "fixed" takes these, "learned" gives each a
    gate that costs `gate_cost`, "greedy" leaves out levels, the least missed first, while the mean tag loss grows by
    less than `spare`. `source`: "mirror", or "encoder": the encoder's own features, the last of each block, on the same
    grids (a hypercolumn, the control that shows what the mirror adds). `norm`: what brings levels to one scale: batch
    norm of each channel, "l2" (the root mean square of a level), "none". `pool`: class maps to image scores. `top`:
    what goes down: all that the top holds, or once for each class what speaks for it.
    """

    route: Literal["any", "conv", "vjp"] = "any"
    rectify: Literal["relu", "mask", "guided", "none"] = "relu"
    tie: Literal["shared", "detach", "free"] = "shared"
    bias: bool = False
    unpool: Literal["switch", "nearest", "bilinear"] = "switch"
    source: Literal["mirror", "encoder"] = "mirror"
    levels: tuple[int, ...] = ()
    select: Literal["fixed", "learned", "greedy"] = "fixed"
    gate_cost: float = 0.01
    spare: float = 0.02
    norm: Literal["bn", "l2", "none"] = "bn"
    pool: Literal["lse", "avg", "max", "topk"] = "lse"
    lse_r: float = 4.0
    topk_share: float = 0.05
    top: Literal["all", "class"] = "all"


class StackNet(nn.Module):
    """Normalised images (n,3,h,w) to class maps (n,C,h',w') on the finest chosen grid, and to the auxiliary logits.

    A head for each level, whose maps are added: the same as one head on the stack of all of them (Eq. 7), without ever
    holding that stack. The auxiliary branch pools the top and classifies it (Eq. 11).
    """

    def __init__(self, backbone: Backbone, classes: int, cfg: Stack) -> None:
        super().__init__()
        self.cfg, self.classes = cfg, classes
        freeze_batch_norm(backbone)
        route = cfg.route if cfg.route != "any" else "conv" if is_plain(backbone) else "vjp"
        self.mirror = Mirror(backbone, Mirroring(route, cfg.rectify, cfg.tie, cfg.bias, cfg.unpool))
        self.columns = columns_of(backbone) if cfg.source == "encoder" else ()
        self.grids = tuple(backbone.tap(name) for name in self.columns) or self.mirror.grids
        many = len(self.grids)
        self.levels = chosen(cfg.levels, many)
        norms = [nn.BatchNorm2d(g.channels) if cfg.norm == "bn" else nn.Identity() for g in self.grids]
        self.norms = nn.ModuleList(norms)
        self.heads = nn.ParameterList(torch.empty(classes, g.channels) for g in self.grids)
        for head in self.heads:
            nn.init.normal_(head, std=0.01)
        self.bias = nn.Parameter(torch.zeros(classes))
        self.gates = nn.ParameterList([torch.full((many,), 2.0)] if cfg.select == "learned" else [])
        self.aux = nn.Linear(self.mirror.top.channels, classes)
        nn.init.normal_(self.aux.weight, std=0.01)

    @property
    def backbone(self) -> Backbone:
        """The encoder, which the mirror holds."""
        return self.mirror.backbone

    @property
    def tap(self) -> Tap:
        """The grid of the maps."""
        return self.grids[self.levels[0] - 1]

    def new(self) -> list[nn.Parameter]:
        """Everything that is not the encoder's."""
        own = {id(p) for p in self.backbone.parameters()}
        return [p for p in self.parameters() if id(p) not in own]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps with their bias, and the logits of the auxiliary branch."""
        found, logits = self.found(x)
        return by_class(found, self.maps), logits

    def found(self, x: Tensor) -> tuple[list[Sequence[Tensor]], Tensor]:
        """Levels, finest first, of one way down (of one for each class where each has a top), and auxiliary logits."""
        if self.cfg.source == "encoder":
            last = last_of(self.backbone)
            features = self.backbone(x, (*self.columns, last))
            return [[features[name] for name in self.columns]], self.aux(features[last].mean((2, 3)))
        last, _, found = self.mirror(x, self.signals if self.cfg.top == "class" else lambda top: [top])
        return found, self.aux(last.mean((2, 3)))

    def signals(self, top: Tensor) -> list[Tensor]:
        """What of the top speaks for each class."""
        return [(top * row.view(1, -1, 1, 1)).relu() for row in self.aux.weight]

    def maps(self, levels: Sequence[Tensor]) -> Tensor:
        """Maps (n,C,h',w') of the chosen levels."""
        parts = [self.part(levels[b - 1], b) for b in self.levels]
        size = (parts[0].shape[2], parts[0].shape[3])
        total = parts[0]
        for b, part in zip(self.levels[1:], parts[1:], strict=True):
            total = total + align(part, self.grids[b - 1], self.tap, size)
        return total + self.bias.view(1, -1, 1, 1)  # dfs Eq. 8

    def empty(self, level: int | None = None) -> Tensor:
        """What a cell says of each class (C,) where nothing came down: the offsets of norms, and the bias; or the share
        of one level in it.
        """
        none = {b: self.heads[b - 1].new_zeros(1, self.grids[b - 1].channels, 1, 1) for b in self.levels}
        said = {b: self.part(zeros, b)[0, :, 0, 0] for b, zeros in none.items()}
        return said[level] if level else torch.stack(list(said.values())).sum(0) + self.bias

    def part(self, level: Tensor, b: int) -> Tensor:
        """What level b (from 1) adds to each class map, on its own grid."""
        if self.cfg.norm == "l2":
            level = level / level.square().mean((1, 2, 3), keepdim=True).clamp(min=1e-12).sqrt()
        head = self.heads[b - 1]
        if len(self.gates):
            head = head * self.gates[0][b - 1].sigmoid()
        return F.conv2d(self.norms[b - 1](level), head[:, :, None, None])  # dfs Eq. 7


def by_class(found: Sequence[Sequence[Tensor]], read: Callable[[Sequence[Tensor]], Tensor]) -> Tensor:
    """What `read` makes of levels (n,C,h,w): of the same ones for all classes, or for each class of its own.

    Levels of all classes are read in one batch: batch norms see them together, as they do when nothing is learned.
    """
    if len(found) == 1:
        return read(found[0])
    maps = read([torch.cat(same) for same in zip(*found, strict=True)]).unflatten(0, (len(found), -1))
    return torch.stack([one[:, k] for k, one in enumerate(maps)], 1)


def chosen(levels: tuple[int, ...], many: int) -> tuple[int, ...]:
    """The levels that are taken, ascending; `UsageError` for one that the network does not have."""
    if not set(levels) <= set(range(1, many + 1)):
        raise UsageError(f"stack.levels: found {list(levels)}, expected some of 1 (finest) to {many}, the levels that "
                         "this network has; none named: all")
    return tuple(sorted(set(levels))) or tuple(range(1, many + 1))


def pooled(maps: Tensor, cfg: Stack) -> Tensor:
    """Maps (n,C,h,w) to image logits (n,C)."""
    if cfg.pool == "lse":
        return pooling.lse(maps, cfg.lse_r)  # dfs Eq. 9
    if cfg.pool == "topk":
        return pooling.topk(maps, cfg.topk_share)
    return pooling.gap(maps) if cfg.pool == "avg" else maps.amax((2, 3))


def write(work: Work, model: StackNet, meta: dict[str, Any]) -> None:
    """A stack and what is needed to build it again."""
    write_weights(work, model.state_dict(), {**meta, "stack": asdict(replace(model.cfg, levels=model.levels))})


def load(weights: Weights, classes: tuple[str, ...]) -> StackNet:
    """The trained stack, in eval mode; its class names must be those of the data."""
    meta = weights.meta
    check_classes(meta["classes"], classes, str(weights.path))
    cfg = Stack(**{**meta["stack"], "levels": tuple(meta["stack"]["levels"])})
    model = StackNet(build(meta["backbone"], stride=meta["stride"]), len(classes), cfg)
    model.load_state_dict(weights.tensors())
    return model.eval()
