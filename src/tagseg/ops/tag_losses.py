"""Losses that teach every pixel from tags: by the image alone, or told which region an object lies in.

Class 0 is the background and always present. All losses take probabilities (n,C+1,h,w), not logits, and give one value
for each image.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tagseg.types import UsageError

LEAST = 1e-6  # probabilities under a logarithm


def lse_in(
    shares: Float[Tensor, "n k h w"], region: Bool[Tensor, "n k h w"], r: float
) -> tuple[Float[Tensor, "n k"], Bool[Tensor, "n k"]]:
    """Smooth maximum (1/r) log mean exp(r s) over the pixels of a region, and whether there are any (else it is 0)."""
    if not r > 0:
        raise UsageError(f"log-sum-exp pooling: found r = {r}, expected a sharpness above 0")
    count = region.sum((2, 3))
    inside = (r * shares).masked_fill(~region, -torch.inf).flatten(2)
    total = torch.logsumexp(inside.masked_fill(~region.flatten(2).any(2, keepdim=True), 0.0), 2)  # no gradient of NaN
    pooled = (total - count.clamp(min=1).to(shares.dtype).log()) / r  # priors Eq. 3
    return torch.where(count > 0, pooled, pooled.new_zeros(())), count > 0


def weak(shares: Float[Tensor, "n k h w"], tags: Bool[Tensor, "n c"], known: Bool[Tensor, "n h w"], r: float
         ) -> Float[Tensor, " n"]:  # fmt: skip
    """Present classes, background among them, somewhere in the image; absent ones nowhere. `known`: the image's pixels.
    """
    pooled, _ = lse_in(shares, known[:, None].expand_as(shares), r)
    present = torch.cat([tags.new_ones(len(tags), 1), tags], 1)
    seen = _mean(-_log(pooled), present)
    return seen + _mean(-_log(1 - pooled), ~present)  # priors Eq. 4


def masked(
    shares: Float[Tensor, "n k h w"], tags: Bool[Tensor, "n c"], regions: Bool[Tensor, "n k h w"], r: float,
    known: Bool[Tensor, "n h w"], empty: str = "skip",
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:  # fmt: skip
    """Each present class within its region, background within its own, absent classes suppressed at every pixel.

    `regions`: that of each class. `known`: the image's pixels. A present class whose region is empty is pooled over the
    regions of all the others; where these are empty, too, and for an empty background, `empty` says: "skip" the term,
    or "fallback" to all known pixels. The losses, and how often a region was empty.
    """
    mine = regions[:, 1:] & tags[:, :, None, None]
    union = mine.any(1, keepdim=True)
    lost = tags & ~mine.any((2, 3))
    mine = torch.where(lost[:, :, None, None], union, mine)
    ground = regions[:, :1]
    if empty == "fallback":
        bare = tags & ~mine.any((2, 3))
        mine = torch.where(bare[:, :, None, None], known[:, None], mine)
        ground = torch.where(ground.any((2, 3), keepdim=True), ground, known[:, None])
    inside, counted = lse_in(shares[:, 1:], mine, r)
    outside, there = lse_in(shares[:, :1], ground, r)
    present = _mean(-_log(inside), tags & counted)
    background = torch.where(there[:, 0], -_log(outside[:, 0]), 0.0)
    nowhere = -_log(1 - shares[:, 1:]) * known[:, None]
    pixels = (known.sum((1, 2)).clamp(min=1) * (~tags).sum(1).clamp(min=1)).to(shares.dtype)
    absent = (nowhere * ~tags[:, :, None, None]).sum((1, 2, 3)) / pixels
    missed = lost.sum(1) + ~regions[:, 0].any((1, 2)) * known.any((1, 2))
    return present + background + absent, missed.to(shares.dtype)  # priors Eq. 5, 8


def regions_of(labels: Tensor, tags: Bool[Tensor, "n c"], *, binary: bool) -> Bool[Tensor, "n k h w"]:
    """Labels uint8 (n,h,w) as regions (n,C+1,h,w); 255 is in none. `binary`: all tags lie wherever a label is not 0."""
    ground = labels == 0
    if binary:
        objects = ~ground & (labels != 255)
        return torch.cat([ground[:, None], objects[:, None] & tags[:, :, None, None]], 1)
    ids = torch.arange(1, tags.shape[1] + 1, device=labels.device).view(1, -1, 1, 1)
    return torch.cat([ground[:, None], labels[:, None] == ids], 1)


def _mean(values: Tensor, among: Tensor) -> Tensor:
    """Mean (n,) of values (n,k) among some; 0 where there are none."""
    return torch.where(among, values, 0.0).sum(1) / among.sum(1).clamp(min=1)


def _log(values: Tensor) -> Tensor:
    return values.clamp(min=LEAST).log()


