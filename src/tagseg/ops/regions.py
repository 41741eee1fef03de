"""Regions instead of pixels: seeds, restriction to tags, votes, and which cells of a feature map a region covers.

Regions are superpixel ids int32 (H,W), 0..J-1. A region's label is uint8: 0 background, 1..C classes, 255 none.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32, Int64, UInt8

from tagseg.ops.geometry import areas, corners
from tagseg.types import BACKGROUND, IGNORE

Tags = Literal["bayes", "allow"]


def seeds(means: Float[np.ndarray, "j k"], classes: Int64[np.ndarray, " k"], *, fg: float, bg: float,
          has_background: bool = True) -> UInt8[np.ndarray, " j"]:
    """The class of a region whose mean score reaches `fg`, background where none is above `bg`, else 255.

    `classes` ascending ids of the maps; a tie goes to the lower id. Without any class all regions are background. A set
    that has no background gets none.
    """
    if not len(classes):
        return np.full(len(means), BACKGROUND if has_background else IGNORE, np.uint8)
    top = means.max(1)
    labels = np.where(top >= np.float32(fg), classes[means.argmax(1)], IGNORE)
    if has_background:
        labels[top <= np.float32(bg)] = BACKGROUND
    return labels.astype(np.uint8)


def allowance(present: Bool[np.ndarray, " c"], has_background: bool = True,
              usual: Float[np.ndarray, " c"] | None = None) -> Float32[np.ndarray, " c1"]:
    """What the probabilities of background and the C classes are multiplied by once an image's tags are known.

    0 for a class that is not tagged. A tagged one gets 1, or with `usual`, how often the tag was given among what the
    network learned from, one over it. That is Bayes' rule for p(k | look, tags) where look and tags say their parts
    independently given k: a class's pixels always come with its tag, those of background as often as the tag does. So
    what looks like one of ten classes (a body that they share) is not taken for background only because nine of them
    are not in the image.
    """
    weights = present.astype(np.float32)
    if usual is not None:
        weights = np.where(present, 1 / np.maximum(usual, 1e-6), 0).astype(np.float32)
    return np.concatenate([np.array([has_background], np.float32), weights])


def restricted(shares: Float[np.ndarray, "j c1"],
               allowed: Float32[np.ndarray, " c1"]) -> Float32[np.ndarray, "j c1"]:
    """Probabilities of background and the C classes held to the image's tags (`allowance`), rows summing to 1.

    A row that holds nothing of what is allowed stays 0: it says nothing.
    """
    kept = shares * allowed
    total = kept.sum(1, keepdims=True)
    return np.divide(kept, total, out=np.zeros_like(kept), where=total > 0).astype(np.float32)


def confident(shares: Float[np.ndarray, "j c1"], *, keep: float, present: Bool[np.ndarray, " c"],
              keep_tag: bool = True) -> UInt8[np.ndarray, " j"]:
    """The likeliest label of each region where its probability reaches `keep`, else 255; `shares` as `restricted`.

    `keep_tag`: a present class that would vanish keeps the region where it is likeliest (where it has any probability;
    two vanishing classes do not take the same region, and none takes the last region of another).
    """
    best = shares.argmax(1)
    labels = np.where((shares.max(1) >= np.float32(keep)) & (shares.max(1) > 0), best, IGNORE).astype(np.uint8)
    if keep_tag:
        for label in np.flatnonzero(present) + 1:
            if not (labels == label).any():
                _keep_best(labels, shares[:, label], int(label))
    return labels


def _keep_best(labels: np.ndarray, share: np.ndarray, label: int) -> None:
    """Give `label` its likeliest region, unless that is another class's only one."""
    counts = np.bincount(labels, minlength=IGNORE + 1)
    for region in np.argsort(-share, kind="stable"):
        if share[region] <= 0:
            return
        if labels[region] in (BACKGROUND, IGNORE) or counts[labels[region]] > 1:
            labels[region] = label
            return


def votes(labels: UInt8[np.ndarray, "h w"], ids: Int32[np.ndarray, "h w"], share: float) -> UInt8[np.ndarray, " j"]:
    """The label that most pixels of a region carry, if they are at least `share` of those that vote; else 255.

    Pixels of 255 do not vote; a tie goes to the lowest label; a region of 255 alone stays 255.
    """
    count = int(ids.max()) + 1
    table = np.bincount(ids.ravel().astype(np.int64) * (IGNORE + 1) + labels.ravel(),
                        minlength=count * (IGNORE + 1)).reshape(count, -1)[:, :IGNORE]
    voters, winner = table.sum(1), table.argmax(1)
    enough = (voters > 0) & (table.max(1) >= share * voters)
    return np.where(enough, winner, IGNORE).astype(np.uint8)


def coverage(ids: Int[np.ndarray, "H W"], count: int, *, stride: int, offset: float, in_size: tuple[int, int],
             grid: tuple[int, int]) -> Float32[np.ndarray, "j cells"]:
    """How much each cell of a feature map counts in the mean over a region's pixels: (count, h·w), rows sum to 1.

    The mean of bilinearly resampled features over a region is a weighted mean of cells; these are the weights, so that
    features need not be enlarged to pixels. `ids` at any size (H, W) of the picture whose network input was `in_size`;
    pixels outside 0..count-1 belong to no region, and a region without pixels has a row of zeros.
    """
    (top, down), (left, right) = (corners(out, size, stride, offset, cells)
                                  for out, size, cells in zip(ids.shape, in_size, grid, strict=True))
    known = (ids >= 0) & (ids < count)
    region = np.where(known, ids, 0).astype(np.int64) * (grid[0] * grid[1])
    total = np.zeros(count * grid[0] * grid[1])
    for row, tall in ((top, 1 - down), (np.minimum(top + 1, grid[0] - 1), down)):
        for column, wide in ((left, 1 - right), (np.minimum(left + 1, grid[1] - 1), right)):
            cell = row[:, None] * grid[1] + column
            total += np.bincount((region + cell).ravel(), (known * (tall[:, None] * wide)).ravel(), len(total))
    table = total.reshape(count, -1)
    pixels = table.sum(1, keepdims=True)
    return np.divide(table, pixels, out=np.zeros_like(table), where=pixels > 0).astype(np.float32)


def boxes(ids: Int[np.ndarray, "H W"], count: int) -> Int64[np.ndarray, "j 4"]:
    """The smallest box around each region: top, left, bottom, right in pixels, ends excluded; zeros without pixels."""
    found = np.zeros((count, 4), np.int64)
    found[:, :2] = max(ids.shape)
    for axis, low, high in ((0, 0, 2), (1, 1, 3)):
        place = np.broadcast_to(np.arange(ids.shape[axis]).reshape((-1, 1) if axis == 0 else (1, -1)), ids.shape)
        inside = (ids >= 0) & (ids < count)
        np.minimum.at(found[:, low], ids[inside], place[inside])
        np.maximum.at(found[:, high], ids[inside], place[inside] + 1)
    found[found[:, 2] == 0] = 0
    return found


def in_boxes(ids: Int[np.ndarray, "H W"], frames: Int64[np.ndarray, "j 4"], side: int) -> Float32[np.ndarray, "j s s"]:
    """The share of each of side x side cells of a region's box that the region covers."""
    return np.stack([_shares(ids[t:b, x:r] == region, side) if b > t else np.zeros((side, side), np.float32)
                     for region, (t, x, b, r) in enumerate(frames)]) if len(frames) else np.zeros(
                         (0, side, side), np.float32)


def _shares(mask: np.ndarray, side: int) -> np.ndarray:
    rows, columns = (areas(n, side) for n in mask.shape)
    return (rows @ mask.astype(np.float32) @ columns.T).astype(np.float32)


class Described(NamedTuple):
    """Where J regions lie, for either form of RegionNet: `cells` (J,h·w) as `coverage`, or boxes (J,4) in the network's
    input (left, top, right, bottom) and the region's share of each of their cells, as `in_boxes`. The other is empty.
    """

    cells: Float32[np.ndarray, "j cells"]
    boxes: Float32[np.ndarray, "j 4"]
    masks: Float32[np.ndarray, "j s s"]


def pooled(ids: Int[np.ndarray, "H W"], count: int, *, stride: int, offset: float, in_size: tuple[int, int],
           grid: tuple[int, int]) -> Described:
    """Regions for the mean of features; arguments as `coverage`."""
    cells = coverage(ids, count, stride=stride, offset=offset, in_size=in_size, grid=grid)
    return Described(cells, np.zeros((count, 4), np.float32), np.zeros((count, 0, 0), np.float32))


def boxed(ids: Int[np.ndarray, "H W"], count: int, *, in_size: tuple[int, int], side: int) -> Described:
    """Regions for features of boxes, `side` cells along each side."""
    frames = boxes(ids, count)
    scale = np.array([in_size[0] / ids.shape[0], in_size[1] / ids.shape[1]] * 2)
    in_input = (frames * scale)[:, [1, 0, 3, 2]].astype(np.float32)
    return Described(np.zeros((count, 0), np.float32), in_input, in_boxes(ids, frames, side))
