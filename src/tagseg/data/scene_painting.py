"""How generated scenes are drawn: noise fields, grounds, shapes as signed distances, and the look of every class.

Canvases are float32 (3, H, W) in 0..255. One rule makes masks exact: a pixel belongs to a shape when its centre
has a negative distance. The picture may blur that edge, the mask never does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float32

Rng = np.random.Generator
Field = Float32[np.ndarray, "h w"]
Canvas = Float32[np.ndarray, "3 h w"]
Rgb = tuple[int, int, int]


@dataclass(frozen=True)
class Ground:
    """A background texture: two colours, noise of `cells` (y, x) blobs, and `waves` (y, x) ripples over the image."""

    dark: Rgb
    light: Rgb
    cells: tuple[int, int] = (6, 6)
    waves: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Look:
    """What tells a class from the others: colour, pattern (or the outline of a stroke), and its habitat."""

    colour: Rgb
    pattern: str = "plain"
    habitat: Ground = Ground((120, 120, 120), (150, 150, 150))
    other: Rgb | None = None  # colour of the right half of a creature's head, where its kind has two


@dataclass(frozen=True, eq=False)
class Shape:
    """One object on its own square patch. All fields are float32 (p, p), p odd, the object centred.

    `distance` is in pixels, negative inside. `u`, `v` are the object's own axes in half-lengths. `rank` orders the
    pixels from the discriminative part outwards.
    """

    distance: Field
    u: Field
    v: Field
    rank: Field

    @property
    def inside(self) -> np.ndarray:
        """bool (p, p): pixel centres inside the shape. The one rule for masks."""
        return self.distance < 0


NEUTRAL = (
    Ground((96, 84, 70), (142, 126, 104), (7, 7)),
    Ground((104, 106, 108), (150, 152, 150), (14, 14)),
    Ground((84, 98, 74), (126, 138, 104), (5, 9)),
    Ground((128, 122, 110), (176, 166, 148), (4, 10)),
    Ground((70, 78, 92), (112, 120, 134), (10, 5)),
)
CREATURES = {
    "crab": Look((214, 48, 44), "dots", Ground((196, 170, 118), (232, 212, 164), (4, 10), (9, 1))),
    "jay": Look((58, 96, 216), "stripes", Ground((52, 66, 40), (142, 140, 84), (9, 9))),
    "frog": Look((84, 180, 58), "checks", Ground((44, 92, 108), (92, 148, 158), (3, 8), (6, 1))),
    "finch": Look((240, 212, 56), "plain", Ground((128, 92, 58), (186, 144, 96), (3, 16))),
    "moth": Look((152, 74, 204), "rings", Ground((30, 34, 58), (66, 70, 100), (12, 12))),
    "newt": Look((36, 178, 172), "stripes", Ground((66, 62, 60), (124, 116, 108), (5, 5), (4, 4))),
    "fox": Look((236, 130, 34), "plain", Ground((40, 84, 44), (102, 146, 74), (6, 24))),
    "pig": Look((242, 128, 178), "dots", Ground((74, 52, 40), (118, 86, 66), (8, 4))),
}
# More kinds than colours and patterns can tell apart on a small head: two colours on it, left and right.
TWO_COLOURED = {
    "bee": Look((240, 212, 56), other=(40, 40, 44)),
    "tit": Look((58, 96, 216), other=(240, 212, 56)),
    "swan": Look((244, 244, 240), other=(236, 130, 34)),
    "crow": Look((40, 40, 44), other=(58, 96, 216)),
    "lynx": Look((152, 74, 204), other=(84, 180, 58)),
    "goat": Look((244, 244, 240), other=(40, 40, 44)),
    "hare": Look((242, 128, 178), other=(36, 178, 172)),
    "seal": Look((36, 178, 172), other=(40, 40, 44)),
    "wren": Look((214, 48, 44), other=(244, 244, 240)),
    "toad": Look((84, 180, 58), other=(214, 48, 44)),
    "wasp": Look((236, 130, 34), other=(58, 96, 216)),
    "mole": Look((152, 74, 204), other=(240, 212, 56)),
    "duck": Look((84, 180, 58), other=(244, 244, 240)),
    "ibis": Look((214, 48, 44), other=(58, 96, 216)),
    "puma": Look((242, 128, 178), other=(40, 40, 44)),
}
STROKES = {
    "rod": Look((216, 60, 52), "rod"),
    "ring": Look((62, 104, 214), "ring"),
    "cross": Look((82, 176, 66), "cross"),
    "zigzag": Look((236, 202, 58), "zigzag"),
    "fork": Look((158, 82, 202), "fork"),
    "star": Look((44, 184, 178), "star"),
}
OPACITIES = {"opacity": Look((255, 255, 255))}
TISSUES = {
    "tumour": Look((112, 52, 140), "dots"),
    "stroma": Look((222, 84, 128), "stripes"),
    "lymphoid": Look((66, 62, 158), "grains"),
    "fat": Look((248, 240, 244), "cells"),
    "necrosis": Look((168, 112, 110), "plain"),
}
LOOKS: dict[str, dict[str, Look]] = {
    "creatures": CREATURES | TWO_COLOURED, "strokes": STROKES, "opacities": OPACITIES, "tissue": TISSUES,
}
# Segments of each stroke in half-lengths: (u0, v0, u1, v1). A ring has none.
_SEGMENTS = {
    "rod": ((-1.0, 0.0, 1.0, 0.0),),
    "cross": ((-0.8, 0.0, 0.8, 0.0), (0.0, -0.8, 0.0, 0.8)),
    "zigzag": ((-1.0, -0.3, -0.33, 0.3), (-0.33, 0.3, 0.33, -0.3), (0.33, -0.3, 1.0, 0.3)),
    "fork": ((-1.0, 0.0, 0.1, 0.0), (0.1, 0.0, 0.9, 0.55), (0.1, 0.0, 0.9, -0.55)),
    "star": ((-0.8, 0.0, 0.8, 0.0), (-0.4, -0.69, 0.4, 0.69), (-0.4, 0.69, 0.4, -0.69)),
}


def rgb(colour: Rgb | np.ndarray) -> np.ndarray:
    """A colour as float32 (3, 1, 1), ready to broadcast over a canvas."""
    return np.asarray(colour, np.float32).reshape(3, 1, 1)


@lru_cache(maxsize=128)
def _interpolation(length: int, cells: int) -> np.ndarray:
    """(length, cells + 1) smoothstep weights: a field is two small matrix products instead of a filter."""
    at = (np.arange(length, dtype=np.float32) + 0.5) / length * cells
    left = np.minimum(at.astype(np.int64), cells - 1)
    t = at - left
    t = t * t * (3 - 2 * t)
    weights = np.zeros((length, cells + 1), np.float32)
    weights[np.arange(length), left] = 1 - t
    weights[np.arange(length), left + 1] = t
    return weights


@lru_cache(maxsize=32)
def unit_grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres in 0..1 as y (H, 1) and x (1, W), float32."""
    y = (np.arange(height, dtype=np.float32) + 0.5) / height
    x = (np.arange(width, dtype=np.float32) + 0.5) / width
    return y[:, None], x[None, :]


def noise_field(rng: Rng, height: int, width: int, cells: tuple[int, int]) -> Field:
    """Smooth noise (H, W) in [-1, 1] with about `cells` (y, x) blobs across the image."""
    nodes = rng.random((cells[0] + 1, cells[1] + 1), np.float32) * 2 - 1
    return _interpolation(height, cells[0]) @ nodes @ _interpolation(width, cells[1]).T


def paint_ground(rng: Rng, kind: Ground, height: int, width: int) -> Canvas:
    """A background of this kind: its two colours mixed by coarse and fine noise and by ripples."""
    coarse = noise_field(rng, height, width, kind.cells)
    fine = noise_field(rng, height, width, (4 * kind.cells[0], 4 * kind.cells[1]))
    mix = 0.5 + 0.35 * coarse + 0.3 * fine
    if kind.waves != (0, 0):
        y, x = unit_grid(height, width)
        mix += 0.3 * np.sin(2 * np.pi * (kind.waves[0] * y + kind.waves[1] * x) + 2 * coarse)
    return rgb(kind.dark) + (rgb(kind.light) - rgb(kind.dark)) * np.clip(mix, 0, 1)


def length(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Length of the vectors (a, b). Several times faster than np.hypot, whose care for overflow is not needed here."""
    return np.sqrt(a * a + b * b)


def blend(below: Canvas, above: np.ndarray, alpha: Field) -> None:
    """Lay `above` over `below` in place; `alpha` (h, w) in [0, 1]."""
    below += (above - below) * alpha


def coverage(distance: Field) -> Field:
    """Share of a pixel that a shape covers, from the distance of its centre: antialiased edges one pixel wide."""
    return np.clip(0.5 - distance, 0, 1)


def _axes(rng: Rng, half: float, reach: float) -> tuple[Field, Field]:
    """The object's axes u, v (p, p) in half-lengths, turned by any angle and shifted by less than a pixel."""
    angle, dy, dx = rng.uniform(0, 2 * np.pi), rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5)
    radius = int(np.ceil(reach * half)) + 1
    steps = np.arange(-radius, radius + 1, dtype=np.float32) / np.float32(half)
    y, x = steps[:, None] - np.float32(dy / half), steps[None, :] - np.float32(dx / half)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * x + s * y, c * y - s * x


def _segment(u: Field, v: Field, ends: tuple[float, float, float, float]) -> Field:
    u0, v0, u1, v1 = ends
    du, dv = u1 - u0, v1 - v0
    t = np.clip(((u - u0) * du + (v - v0) * dv) / (du * du + dv * dv), 0, 1)
    return length(u - u0 - t * du, v - v0 - t * dv)


def _smooth_min(a: Field, b: Field, k: float) -> Field:
    h = np.maximum(k - np.abs(a - b), 0) / k
    return np.minimum(a, b) - h * h * (0.25 * k)


def creature(rng: Rng, half: float) -> Shape:
    """An animal seen from above: body, head, ears and tail. Classes share this silhouette. `half` in pixels."""
    u, v = _axes(rng, half, 1.3)
    plump, skull, bend = rng.uniform(0.36, 0.54), rng.uniform(0.32, 0.42), rng.uniform(-0.45, 0.45)
    body = (length((u + 0.22) / 0.74, v / plump) - 1) * plump
    head = length(u - 0.6, v) - skull
    ears = length(u - 0.62, np.abs(v) - skull) - 0.14
    tail = _segment(u, v, (-0.8, 0.0, -1.15, bend)) - 0.07
    distance = np.minimum(_smooth_min(body, head, 0.25), np.minimum(ears, tail))
    return Shape(distance * np.float32(half), u, v, length(u - 0.75, v))


def stroke(rng: Rng, half: float, outline: str, thickness: float) -> Shape:
    """A thin drawing: rod, ring, cross, zigzag, fork or star. `half` and `thickness` in pixels."""
    u, v = _axes(rng, half, 1.0 + 0.6 * thickness / half)
    if outline == "ring":
        line = np.abs(length(u, v) - 0.85)
    else:
        line = np.minimum.reduce([_segment(u, v, ends) for ends in _SEGMENTS[outline]])
    return Shape(line * np.float32(half) - np.float32(thickness / 2), u, v, length(u - 1, v))


def blob(rng: Rng, half: float, roundness: tuple[float, float] = (0.55, 0.95)) -> Shape:
    """A stone or an opacity: an ellipse with a wobbling edge. `roundness` bounds width over length."""
    u, v = _axes(rng, half, 1.7)
    radius, turn = length(u, v / np.float32(rng.uniform(*roundness))), np.arctan2(v, u)
    a, b = rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)
    edge = 0.88 + 0.08 * np.cos(2 * turn + a) + 0.07 * np.cos(3 * turn + b)
    return Shape((radius - edge) * np.float32(0.8 * half), u, v, radius - edge)


def head_weight(shape: Shape, share: float, edge: float = 1.0) -> Field:
    """How far each pixel belongs to the discriminative part (p, p) in [0, 1]; `share` of the object's area does.

    `edge` is the width in pixels over which the part fades into the body.
    """
    ranks = np.sort(shape.rank[shape.inside])
    cut = ranks[min(int(share * len(ranks)), len(ranks) - 1)]
    step = abs(float(shape.u[0, 1] - shape.u[0, 0])) + abs(float(shape.v[0, 1] - shape.v[0, 0]))  # ~ one pixel
    return np.clip(0.5 + (cut - shape.rank) / (step * np.float32(edge)), 0, 1)


def pattern(kind: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Brightness factor of a class's pattern at (u, v), in about [0.45, 1.1]; unknown kinds are plain."""
    if kind == "stripes":
        return 0.8 + 0.3 * np.sin(14 * u)
    if kind == "dots":
        return np.where(np.sin(11 * u) * np.sin(11 * v) > 0.35, np.float32(0.5), np.float32(1.05))
    if kind == "checks":
        return np.where(np.sin(9 * u) * np.sin(9 * v) > 0, np.float32(0.68), np.float32(1.1))
    if kind == "rings":
        return 0.85 + 0.25 * np.sin(16 * length(u - 0.75, v))
    return np.ones_like(u)


def tissue_texture(kind: str, colour: np.ndarray, y: np.ndarray, x: np.ndarray) -> Canvas:
    """A tissue's own texture (3, H, W) at warped image coordinates y, x in about 0..1 (H, W): nuclei, fibres, fat."""
    pale = rgb((236, 196, 214))
    if kind == "stripes":
        amount = 0.6 + 0.4 * np.sin(60 * (0.6 * y + x))
    elif kind == "cells":
        amount = np.clip(2.6 * np.abs(np.sin(20 * (y + 0.5 * x)) * np.sin(20 * (x - 0.3 * y))) + 0.1, 0, 1)
    elif kind in ("dots", "grains"):
        turns, crowding = (44, 0.0) if kind == "dots" else (84, 0.35)
        spots = np.sin(turns * (y + 0.5 * x)) + np.sin(turns * (x - 0.3 * y))
        amount = np.clip(1.1 * (spots + crowding), 0.15, 1)
    else:
        amount = np.full_like(y, 0.9)
    return pale + (colour - pale) * amount


def chest(rng: Rng, height: int, width: int) -> tuple[Field, np.ndarray]:
    """A grey lung-like field (H, W) in 0..255, and where the two lungs are (H, W) bool."""
    y, x = unit_grid(height, width)
    lean, deep, wide = rng.uniform(-0.03, 0.03), rng.uniform(0.36, 0.42), rng.uniform(0.17, 0.2)
    left = length((x - 0.28 - lean) / wide, (y - 0.5) / deep) - 1
    right = length((x - 0.72 - lean) / wide, (y - 0.5) / deep) - 1
    edge = np.minimum(left, right) + 0.12 * noise_field(rng, height, width, (4, 4))
    lung = 1 / (1 + np.exp(np.clip(14 * edge, -30, 30)))
    ribs = np.sin(2 * np.pi * (rng.uniform(6, 8) * (y - 0.9 * (x - 0.5) ** 2) + rng.random()))
    spine = np.exp(-(((x - 0.5 - lean) / 0.07) ** 2))
    cloud = noise_field(rng, height, width, (5, 5)) * 8 + noise_field(rng, height, width, (24, 24)) * 7
    grey = rng.uniform(150, 175) - 95 * lung + 9 * ribs * (0.4 + 0.6 * lung) + 30 * spine * (1 - lung) + cloud
    return grey.astype(np.float32), edge < -0.1


def soften(canvas: Canvas, sigma: float) -> Canvas:
    """Gaussian blur by `sigma` pixels, edges repeated. 0 returns the canvas itself."""
    if sigma <= 0:
        return canvas
    radius = max(1, int(np.ceil(2.5 * sigma)))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    height, width = canvas.shape[1:]
    padded = np.pad(canvas, ((0, 0), (radius, radius), (radius, radius)), mode="edge")
    rows = sum(t * padded[:, i:i + height] for i, t in enumerate(taps))
    return sum(t * rows[:, :, i:i + width] for i, t in enumerate(taps))
