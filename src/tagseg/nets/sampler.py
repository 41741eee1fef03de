"""Deformable 3x3 convolution whose offsets are learned apart from its weights: it says where evidence is looked for."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

TAPS = 9


class Offsets(nn.Module):
    """A 3x3 convolution to the offsets of nine taps, zero at first, in float32 whatever the rest computes in.

    A hundredth of a cell is below bfloat16. It is no `nn.Conv2d`, so that what rounds those leaves it as it is.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2 * TAPS, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(2 * TAPS))

    def forward(self, x: Float[Tensor, "n d h w"]) -> Float[Tensor, "n 18 h w"]:
        """(dy, dx) of each tap, in cells."""
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x.float(), self.weight.float(), self.bias.float(), padding=1)


class Sampler(nn.Module):
    """3x3 convolution to `width` channels that samples where `offset`, a convolution of its input, sends each tap.

    Both offset tensors start at zero, where this is the plain convolution. `moves` False: it stays the plain one, and
    there are no offsets to learn. `limit` (cells): offsets are held inside by limit * tanh(o / limit); None: free.
    `detached`: no gradient passes through the offsets.
    """

    def __init__(self, channels: int, width: int, *, moves: bool, limit: float | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, channels, 3, 3))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        self.offset = Offsets(channels) if moves else None
        self.limit = limit
        self.detached = False

    def offsets(self, x: Float[Tensor, "n d h w"]) -> Float[Tensor, "n 18 h w"] | None:
        """Where each tap goes, in cells: (dy, dx) of tap 0, of tap 1, ...; None where nothing moves."""
        if self.offset is None:
            return None
        moved: Tensor = self.offset(x)  # esol Eq. 2
        held = moved if self.limit is None else self.limit * torch.tanh(moved / self.limit)
        return held.detach() if self.detached else held

    def plain(self, x: Float[Tensor, "n d h w"]) -> Float[Tensor, "n e h w"]:
        """The convolution without offsets."""
        return F.conv2d(x, self.weight, padding=1)

    def forward(self, x: Float[Tensor, "n d h w"]) -> Float[Tensor, "n e h w"]:
        """Features of the sampled neighbourhoods, before any activation."""
        offsets = self.offsets(x)
        if offsets is None:
            return self.plain(x)
        with torch.autocast(x.device.type, enabled=False):
            x, weight = x.float(), self.weight.float()
            return on_card(x, offsets, weight) if x.is_cuda else mixed_first(x, offsets, weight)


def on_card(
    x: Float[Tensor, "n d h w"], offsets: Float[Tensor, "n 18 h w"], weight: Float[Tensor, "e d 3 3"]
) -> Float[Tensor, "n e h w"]:
    """Deformable convolution by torchvision's operator."""
    from torchvision.ops import deform_conv2d  # seconds to import

    found: Tensor = deform_conv2d(x, offsets, weight, padding=1)  # esol Eq. 1
    return found


def mixed_first(
    x: Float[Tensor, "n d h w"], offsets: Float[Tensor, "n 18 h w"], weight: Float[Tensor, "e d 3 3"]
) -> Float[Tensor, "n e h w"]:
    """The same on a processor, several times as fast: channels are mixed before anything is sampled.

    Sampling is linear and so is mixing; done this way round, 9 e values of a cell are sampled in place of 9 d, by an
    operator that uses all lanes. Samples outside the grid are 0.
    """
    n, d, h, w = x.shape
    e = len(weight)
    taps = F.conv2d(x, weight.permute(2, 3, 0, 1).reshape(TAPS * e, d, 1, 1)).reshape(n * TAPS, e, h, w)
    at = offsets.reshape(n * TAPS, 2, h, w) + _positions(h, w, n, x.device)
    # grid_sample counts from -1 to 1 between the centres of the outer cells; a side of one cell has no such measure,
    # so it is given a second, empty cell
    if min(h, w) == 1:
        taps = F.pad(taps, (0, int(w == 1), 0, int(h == 1)))
    size = at.new_tensor([max(h, 2) - 1, max(w, 2) - 1]).view(1, 2, 1, 1)
    grid = (2 * at / size - 1).flip(1).permute(0, 2, 3, 1)
    found = F.grid_sample(taps, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    return found.view(n, TAPS, e, h, w).sum(1)  # esol Eq. 1


@lru_cache(maxsize=32)
def _positions(h: int, w: int, n: int, device: torch.device) -> Float[Tensor, "n_9 2 h w"]:
    """Where each tap of each cell samples at zero offsets: (y, x), image by image, tap by tap."""
    step = torch.arange(-1.0, 2.0)
    taps = torch.stack(torch.meshgrid(step, step, indexing="ij"), -1).view(TAPS, 2, 1, 1)
    cells = torch.stack(torch.meshgrid(torch.arange(float(h)), torch.arange(float(w)), indexing="ij"))
    return (cells + taps).repeat(n, 1, 1, 1).to(device)
