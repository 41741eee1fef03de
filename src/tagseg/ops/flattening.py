"""What keeps a map from living on its peaks alone: a cap on large activations, and the area of a map (ESOL)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tagseg.ops.scores import EPS


def clip_to_peak(x: Float[Tensor, "n d h w"], beta: float) -> Float[Tensor, "n d h w"]:
    """min(x, beta * max over pixels), for each image and channel. x >= 0; beta 1 changes nothing.

    Twice is not once: each use caps anew, clip_b(clip_b(x)) = clip_{b*b}(x).
    """
    return torch.minimum(x, beta * x.amax((2, 3), keepdim=True))  # esol Eq. 3


def clip_to_quantile(x: Float[Tensor, "n d h w"], share: float) -> Float[Tensor, "n d h w"]:
    """min(x, the quantile `share` over pixels), for each image and channel."""
    return torch.minimum(x, x.flatten(2).quantile(share, dim=2)[:, :, None, None].to(x.dtype))


def by_peak(
    maps: Float[Tensor, "n c h w"], peak: Float[Tensor, "n c"] | None = None, eps: float = EPS
) -> Float[Tensor, "n c h w"]:
    """Positive maps divided by their maximum over pixels plus `eps`, or by the given `peak`."""
    positive = maps.relu()
    top = positive.amax((2, 3)) if peak is None else peak
    return positive / (top + eps)[:, :, None, None]  # esol Eq. 8


def area(shares: Float[Tensor, "n c h w"], tags: Bool[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """The mean of a map over pixels, averaged over the classes that an image is tagged with; 0 without any tag."""
    present = tags.to(shares.dtype)
    return (shares.mean((2, 3)) * present).sum(1) / present.sum(1).clamp(min=1)  # esol Eq. 8
