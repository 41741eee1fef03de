"""Attention to one class of an image, and a decoder that draws what it looks at, whatever class that is (TransferNet).

Rows are pairs of an image and one class. The encoder runs once for each image; its features are repeated for the rows.
Class identity enters by the attention alone: `Decoder.forward` has no argument that could carry it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.func import functional_call

from tagseg.nets.backbones import Backbone, Tap, freeze_batch_norm
from tagseg.nets.deconvnet import is_plain, unpool
from tagseg.types import UsageError

Size = tuple[int, int]
Form = Literal["conv", "fc", "fc_pooled"]
Up = Literal["any", "switch", "switch_shared", "bilinear"]
POOLED = 10  # the grid of "fc_pooled"
FEW = 32  # channels of a norm up to which they are brought together


@dataclass(frozen=True)
class Shape:
    """What the two networks look like; see `Attention` and `Decoder`.

    `up` "any": "switch" where a network's pools allow it, else "switch_shared". `highlight`: what the decoder is given,
    the densified attention or attention itself (a control).
    """

    attention: Form = "conv"
    width: int = 1024
    combine_layer: bool = True
    up: Up = "any"
    norm: Literal["gn", "none"] = "gn"
    init: Literal["kaiming", "gaussian"] = "kaiming"
    highlight: Literal["dense", "attention"] = "dense"


def levels_of(backbone: Backbone) -> tuple[Tap, ...]:
    """The features that the decoder comes by on its way to the image, coarse to fine: one for each stride."""
    last = backbone.tap("last")
    by_stride = {tap.stride: tap for tap in backbone.taps if tap.name.startswith("block") and tap.stride < last.stride}
    return tuple(by_stride[stride] for stride in sorted(by_stride, reverse=True))


class Attention(nn.Module):
    """Where in the features a class lies: alpha (r,h,w), summing to 1, and the feature z (r,D) that it attends to.

    Both are never in half precision, as alpha sums to 1 over hundreds of cells; what it is made of may be.
    `form`: "fc" sees the whole flattened map, so that the grid is fixed; "fc_pooled" sees it averaged to 10x10; "conv"
    scores each cell by its own features, on any grid. Without `combine_layer` eq. 5 is its ReLU alone.
    """

    def __init__(self, channels: int, classes: int, shape: Shape, grid: Size | None = None) -> None:
        super().__init__()
        self.form, self.grid = shape.attention, (POOLED, POOLED) if shape.attention == "fc_pooled" else grid
        width = shape.width
        if self.form != "conv" and self.grid is None:
            raise UsageError("attention \"fc\": found no grid, expected the (h, w) of the features that it will see")
        cells = 1 if self.grid is None or self.form == "conv" else self.grid[0] * self.grid[1]
        self.look = nn.Linear(channels * cells, width)
        self.name = nn.Linear(classes, width)
        self.combine = nn.Sequential(nn.Linear(width, width), nn.ReLU()) if shape.combine_layer else nn.ReLU()
        self.out = nn.Linear(width, cells)
        for layer in (self.look, self.name, *self.combine.modules()):
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, features: Float[Tensor, "r d h w"], classes: Bool[Tensor, "r k"]
    ) -> tuple[Float[Tensor, "r h w"], Float[Tensor, "r d"]]:
        """Exactly one class in each row."""
        if not bool((classes.sum(1) == 1).all()):
            raise UsageError(f"attention: found rows with {sorted(set(classes.sum(1).tolist()))} classes, expected one "
                             "in each: an image with several tags gives several rows")
        size = (features.shape[2], features.shape[3])
        named = self.name(classes.to(features))  # transfernet Eq. 3
        scores = self.scores(features, named, size)
        with torch.autocast(features.device.type, enabled=False):
            alpha = scores.float().flatten(1).softmax(1)  # transfernet Eq. 6
            z = torch.einsum("rp,rdp->rd", alpha, features.flatten(2).float())  # transfernet Eq. 7
        return alpha.unflatten(1, size), z

    def scores(self, features: Tensor, named: Tensor, size: Size) -> Tensor:
        """What alpha is the softmax of (r,h,w); `named` (r,width) is the class."""
        if self.form == "conv":
            cells = self.look(features.flatten(2).transpose(1, 2))  # (r,p,width): Eq. 2 to 5, cell by cell
            found: Tensor = self._out(self.combine(cells * named[:, None]))[:, :, 0]
            return found.unflatten(1, size)
        if self.form == "fc_pooled":
            features = F.adaptive_avg_pool2d(features, POOLED)
        elif size != self.grid:
            raise UsageError(f"attention \"fc\": found features of {size[0]}x{size[1]} cells, expected {self.grid}, "
                             "the grid it was built for; show images at that size, or choose attention=conv")
        u = self.look(features.flatten(1))  # transfernet Eq. 2
        g = self.combine(u * named)  # transfernet Eq. 4, 5
        grid = self.grid
        assert grid is not None
        fine = self._out(g).unflatten(1, grid)
        if self.form == "fc_pooled":
            fine = F.interpolate(fine[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        return fine


    def _out(self, g: Tensor) -> Tensor:
        with torch.autocast(g.device.type, enabled=False):
            found: Tensor = self.out(g.float())
        return found


class AttendedClassifier(nn.Module):
    """Which of all classes an attended feature (r,D) shows: logits (r,K). It sees the image only through alpha."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, classes))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, z: Float[Tensor, "r d"]) -> Float[Tensor, "r k"]:
        found: Tensor = self.layers(z)  # transfernet Eq. 8
        return found


def densified(features: Float[Tensor, "r d h w"], z: Float[Tensor, "r d"]) -> Float[Tensor, "r 1 h w"]:
    """How alike each cell is to the attended feature: a few cells of attention become the whole object."""
    return torch.einsum("rdhw,rd->rhw", features, z)[:, None]  # transfernet Eq. 10


class Transposed(nn.ConvTranspose2d):
    """A transposed convolution, 3x3, computed as the convolution with the turned filter that it equals, which takes a
    CPU less time.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after, 3, padding=1)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        turned = self.weight.transpose(0, 1).flip(2, 3)
        return F.conv2d(x, turned.contiguous(memory_format=torch.channels_last), self.bias, padding=1)


class GroupNorm(nn.GroupNorm):
    """Group norm whose few channels are brought together on a processor, where PyTorch goes back through 16 channels
    that lie last in ten times the time (bf16, 192x192). With many channels the moving costs more than it saves.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.shape[1] > FEW:
            return super().forward(x)
        return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)


class Decoder(nn.Module):
    """The densified attention (r,1,h,w) and the encoder's switches to logits (r,2,H,W) of background and foreground.

    A mirror of the encoder: at every level of `levels`, coarse to fine, the map is unpooled to the level's grid and
    convolved. `up`: by the level's own switches, by one switch for all channels (where the activations are longest),
    or bilinearly.
    """

    def __init__(self, levels: Sequence[Tap], shape: Shape, convolutions: int = 2) -> None:
        super().__init__()
        self.levels, self.init = tuple(levels), shape.init
        self.first = self._unit(1, levels[0].channels, shape)
        after = [*(tap.channels for tap in levels[1:]), levels[-1].channels]
        self.stages = nn.ModuleList(
            nn.Sequential(*(self._unit(tap.channels, tap.channels, shape) for _ in range(convolutions - 1)),
                          self._unit(tap.channels, following, shape))
            for tap, following in zip(levels, after, strict=True))  # fmt: skip
        self.score = nn.Conv2d(after[-1], 2, 1)
        if shape.init == "kaiming":
            nn.init.kaiming_normal_(self.score.weight)
        else:
            nn.init.normal_(self.score.weight, std=0.01)
        assert self.score.bias is not None
        nn.init.zeros_(self.score.bias)

    @staticmethod
    def _unit(before: int, after: int, shape: Shape) -> nn.Sequential:
        layer = Transposed(before, after)
        if shape.init == "kaiming":
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")  # PyTorch counts fans of transposed layers swapped
        else:
            nn.init.normal_(layer.weight, std=0.01)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
        norm = [GroupNorm(8 if after % 8 == 0 else 1, after)] if shape.norm == "gn" else []
        return nn.Sequential(layer, *norm, nn.ReLU())

    def forward(self, dense: Float[Tensor, "r 1 h w"], switches: Sequence[Switches], size: Size
                ) -> Float[Tensor, "r 2 a b"]:  # fmt: skip
        """`switches` of the levels, a row of each for each row; `size` (H,W) of the image."""
        x = self.first(dense)
        for stage, found in zip(self.stages, switches, strict=True):
            x = stage(self._enlarged(x, found))
        logits: Tensor = self.score(x)  # transfernet Eq. 11
        if logits.shape[2:] != size:
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        return logits

    def _enlarged(self, x: Tensor, found: Switches) -> Tensor:
        if found.where is None:
            return F.interpolate(x, found.size, mode="bilinear", align_corners=False)
        return unpool(x, found.where, found.size)


@dataclass(frozen=True)
class Switches:
    """Where the cells of a coarser grid lie on a level's grid of `size`: flat indices (n,c or 1,h,w); None: nowhere."""

    size: Size
    where: Int64[Tensor, "n c h w"] | None

    def rows(self, images: Int64[Tensor, " r"]) -> Switches:
        """Those of the images that rows are of."""
        return self if self.where is None else Switches(self.size, self.where[images])


@dataclass(frozen=True)
class Encoded:
    """What the encoder gave of images of `size` (H,W): features (n,D,h,w), scaled, and the switches of the levels (none
    where they were not asked for).
    """

    features: Float[Tensor, "n d h w"]
    switches: list[Switches]
    size: Size

    def rows(self, images: Int64[Tensor, " r"]) -> Encoded:
        """The same for rows, each of one of the images."""
        return Encoded(self.features[images], [one.rows(images) for one in self.switches], self.size)


class TransferNet(nn.Module):
    """A frozen encoder, attention to one of K classes, a classifier of what is attended to, a class-agnostic decoder.

    `grid`: of the features that attention "fc" will see.
    """

    scale: Tensor

    def __init__(self, backbone: Backbone, classes: int, shape: Shape, grid: Size | None = None) -> None:
        super().__init__()
        check_up(backbone, shape.up)
        self.shape, self.up = shape, up_of(backbone, shape.up)
        freeze_batch_norm(backbone)
        self.backbone = backbone.requires_grad_(False)
        self.levels, channels = levels_of(backbone), backbone.tap("last").channels
        self.register_buffer("scale", torch.ones(()))
        self.attention = Attention(channels, classes, shape, grid)
        self.classifier = AttendedClassifier(channels, classes)
        self.decoder = Decoder(self.levels, shape)
        self.to(memory_format=torch.channels_last)  # looking through the encoder takes a third of the time on a CPU

    def learned(self, *, attention: bool, decoder: bool) -> list[nn.Parameter]:
        """What training moves: attention with its classifier, the decoder, or all of it."""
        parts = [*([self.attention, self.classifier] if attention else []), *([self.decoder] if decoder else [])]
        return [parameter for part in parts for parameter in part.parameters()]

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "n 3 h w"], switches: bool = True) -> Encoded:
        """Normalised images, once for all their classes; with `switches` for a decoder that shall draw."""
        levels = self.levels if switches else ()
        found = self.backbone(x, ["last", *(tap.name for tap in levels)])
        features = found["last"].relu() * self.scale  # transfernet Eq. 1
        return Encoded(features, switches_of(found, levels, found["last"], self.up), (x.shape[2], x.shape[3]))

    def seen(self, encoded: Encoded) -> Float[Tensor, "n k"]:
        """What the classifier says of whole images: the mean over their cells."""
        features = encoded.features
        cells = features.flatten(2).transpose(1, 2).flatten(0, 1)
        found: Tensor = self.classifier(cells).unflatten(0, (len(features), -1)).mean(1)
        return found

    def forward(self, rows: Encoded, classes: Bool[Tensor, "r k"], judged: bool = False
                ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Attention (r,h,w), its dense form (r,1,h,w), and the classifier's logits (r,K), of one class in each row;
        `judged`: the classifier does not learn from these.
        """
        features = rows.features.float()
        alpha, z = self.attention(features, classes)
        with torch.autocast(features.device.type, enabled=False):
            dense = densified(features, z)
        if self.shape.highlight == "attention":
            dense = alpha[:, None] * alpha[0].numel()  # 1 on average, whatever the grid
        fixed = {name: p.detach() if judged else p for name, p in self.classifier.named_parameters()}
        return alpha, dense, functional_call(self.classifier, fixed, (z,))

    def draw(self, dense: Float[Tensor, "r 1 h w"], rows: Encoded) -> Float[Tensor, "r 2 a b"]:
        """Logits of background and foreground."""
        found: Tensor = self.decoder(dense, rows.switches, rows.size)
        return found


def foreground_share(logits: Float[Tensor, "r 2 a b"], background: float) -> Float[Tensor, "r a b"]:
    """The probability of foreground, the background's own weighted by `background` before they are normed."""
    return torch.sigmoid(logits[:, 1] - logits[:, 0] - math.log(background))  # transfernet Eq. 14


def up_of(backbone: Backbone, up: Up) -> Up:
    """How the decoder of a network enlarges where "any" way will do."""
    return up if up != "any" else "switch" if is_plain(backbone) else "switch_shared"


def check_up(backbone: Backbone, up: Up) -> None:
    """Raise `UsageError` where a network has no switches of the kind that is asked for."""
    if up == "switch" and not is_plain(backbone):
        raise UsageError(f"up=switch: network {backbone.name!r} is no chain of convolutions with 2x2 max-pools, so "
                         "there are no switches that point back; choose up=switch_shared or bilinear")


def switches_of(found: Mapping[str, Tensor], levels: Sequence[Tap], last: Tensor, up: Up) -> list[Switches]:
    """The switches of every level from its features and the grid that follows it, coarse to fine."""
    made, below = [], (last.shape[2], last.shape[3])
    for tap in levels:
        level = found[tap.name]
        size = (level.shape[2], level.shape[3])
        where = None
        if up == "switch":
            _, where = F.max_pool2d(level, 2, 2, return_indices=True)
        elif up == "switch_shared":
            length = level.float().square().sum(1, keepdim=True)  # half precision would make ties
            where = shared_switches(length, below)
        made.append(Switches(size, where))
        below = size
    return made


def shared_switches(length: Float[Tensor, "n 1 hh ww"], below: Size) -> Int64[Tensor, "n 1 h w"]:
    """Where the longest activation of each window lies, row * width + column. Windows do not overlap: they are as large
    as the grids' sizes differ, rounded, and a last row or column that is left over is in none.
    """
    (high, wide), (h, w) = length.shape[2:], below
    window = round(high / h), round(wide / w)
    even = F.pad(length, (0, window[1] * w - wide, 0, window[0] * h - high), value=-1.0)  # or cut
    _, where = F.max_pool2d(even, window, return_indices=True)
    across: int = even.shape[3]
    return where // across * wide + where % across
