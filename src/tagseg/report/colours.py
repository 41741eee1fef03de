"""254 class colours that colour-blind people can tell apart as far as that goes, always the same ones."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float, UInt8

from tagseg.types import BACKGROUND, IGNORE, MAX_CLASSES

Rgb = tuple[int, int, int]

BACKGROUND_COLOUR: Rgb = (22, 24, 29)
IGNORE_COLOUR: Rgb = (226, 228, 232)
IGNORE_STRIPE: Rgb = (168, 172, 181)

# The seven of Okabe and Ito (2008) without black, then five that stay away from all before them with normal sight,
# protanopia and deuteranopia: no two of the twelve, the background and 255 are nearer than 15 in CIELAB.
PICKED = (
    "#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#f0e442", "#0072b2", "#d55e00",
    "#5e2ca5", "#b7e4a0", "#8c2a2a", "#4055f0", "#4c4c70",
)  # fmt: skip

# Machado, Oliveira, Fernandes (2009), severity 1, on linear RGB: what people without red or green cones see.
SIGHTS = np.array([
    np.eye(3),
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
])
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def seen(colours: UInt8[np.ndarray, "n 3"]) -> Float[np.ndarray, "sights n 3"]:
    """The colours in CIELAB as seen with normal sight, protanopia, deuteranopia; distances there are visible ones."""
    share = colours.astype(np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    as_seen = np.clip(linear[None] @ SIGHTS.transpose(0, 2, 1), 0, 1)
    xyz = as_seen @ _XYZ.T / _XYZ.sum(axis=1)
    root = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


@functools.cache
def class_colours() -> tuple[Rgb, ...]:
    """The colours of classes 1..254 in this order, as (red, green, blue) of 0..255."""
    picked = [_from_hex(text) for text in PICKED]
    steps = np.array([40, 76, 112, 148, 184, 220, 250], np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    taken = np.array([BACKGROUND_COLOUR, IGNORE_COLOUR, *picked], np.uint8)
    more = _farthest(grid, taken, MAX_CLASSES - len(picked))
    return tuple(picked) + tuple((int(r), int(g), int(b)) for r, g, b in more)


def _farthest(
    grid: UInt8[np.ndarray, "n 3"], taken: UInt8[np.ndarray, "t 3"], wanted: int
) -> UInt8[np.ndarray, "wanted 3"]:
    """Greedily the colour that is farthest from all before it, in the sight where it is nearest to one of them."""
    lab = seen(grid)
    # (sights, n, t) -> the nearest taken colour in the worst sight
    near = np.linalg.norm(lab[:, :, None] - seen(taken)[:, None], axis=-1).min(axis=(0, 2))
    chosen = []
    for _ in range(wanted):
        best = int(np.argmax(near))
        chosen.append(best)
        near = np.minimum(near, np.linalg.norm(lab - lab[:, best : best + 1], axis=-1).min(axis=0))
        near[best] = -1
    return grid[chosen]


@functools.cache
def palette() -> UInt8[np.ndarray, "256 3"]:
    """The colour of every mask value: background dark, 1..254 the classes, 255 light grey. Read-only."""
    table = np.empty((256, 3), np.uint8)
    table[BACKGROUND], table[IGNORE] = BACKGROUND_COLOUR, IGNORE_COLOUR
    table[1:IGNORE] = class_colours()
    table.flags.writeable = False
    return table


def hex_colour(value: int) -> str:
    """The colour of a mask value 0..255 as "#rrggbb"."""
    red, green, blue = palette()[value]
    return f"#{red:02x}{green:02x}{blue:02x}"


def _from_hex(text: str) -> Rgb:
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
