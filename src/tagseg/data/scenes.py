"""Generated images with exact masks: every difficulty of learning masks from tags as one knob, no download.

    sample = render(preset("basic"), seed=0, index=7)

A sample depends on (preset name, seed, index) and the knobs alone. Arrangement, drawing, grain and tags draw from
separate random streams, so that changing the tag noise or the grain keeps the picture and the mask.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from tagseg.data import scene_painting as paint
from tagseg.data.scene_painting import Canvas, Look, Rng, Shape
from tagseg.data.scene_presets import PRESETS, SceneConfig, preset, sides
from tagseg.types import BACKGROUND, MaskedSample, UsageError

_BODY = (150, 126, 104)  # the colour that all creatures share
_TRIES = 40  # places tried for one object before it is left out
__all__ = ["PRESETS", "SceneConfig", "preset", "render", "sides"]


class _Streams(NamedTuple):
    layout: Rng
    drawing: Rng
    grain: Rng
    tags: Rng


class _Placed(NamedTuple):
    label: int
    shape: Shape
    top: int
    left: int


def render(cfg: SceneConfig, seed: int, index: int) -> MaskedSample:
    """Draw image `index` of the set that `cfg` and `seed` describe; the same arguments give the same arrays.

    image uint8 (3, H, W) RGB; mask uint8 (H, W), exact: a pixel belongs to the nearest shape that holds its centre;
    tags bool (C,) = the classes in the mask, then the config's tag noise. Raises `UsageError` for negative numbers.
    """
    if seed < 0 or index < 0:
        raise UsageError(f"scenes {cfg.name!r}: seed {seed}, index {index}, expected 0 or more for both")
    entropy = [seed, index, zlib.crc32(cfg.name.encode())]
    streams = _Streams(*(np.random.default_rng(s) for s in np.random.SeedSequence(entropy).spawn(4)))
    canvas, mask = _DRAW[cfg.style](cfg, streams)
    present = np.bincount(mask.ravel(), minlength=len(cfg.classes) + 1)[1:] > 0
    return MaskedSample(f"{index:06d}", _expose(cfg, streams.grain, canvas), _noisy(cfg, streams.tags, present), mask)


def _expose(cfg: SceneConfig, rng: Rng, canvas: Canvas) -> UInt8[np.ndarray, "3 h w"]:
    """Blur, grain (one grey grain for opacities, which stay grey) and rounding."""
    channels = 1 if cfg.style == "opacities" else 3
    grain = rng.standard_normal((channels, *canvas.shape[1:]), np.float32) * np.float32(cfg.noise)
    return np.clip(paint.soften(canvas, cfg.blur) + grain + 0.5, 0, 255).astype(np.uint8)


def _noisy(cfg: SceneConfig, rng: Rng, present: Bool[np.ndarray, " classes"]) -> Bool[np.ndarray, " classes"]:
    missing, wrong, pick = rng.random(len(present)) < cfg.missing_tags, rng.random() < cfg.wrong_tags, rng.random()
    tags, absent = present & ~missing, np.flatnonzero(~present)
    if wrong and len(absent):
        tags[absent[int(pick * len(absent))]] = True
    return tags


def _cast(cfg: SceneConfig, rng: Rng) -> list[int]:
    """Labels 1..C of the objects to place, each chosen class at least once; empty for a negative."""
    if rng.random() < cfg.negatives:
        return []
    kinds = min(int(rng.integers(cfg.tags[0], cfg.tags[1] + 1)), len(cfg.classes))
    count = max(kinds, int(rng.integers(cfg.objects[0], cfg.objects[1] + 1)))
    chosen = rng.permutation(len(cfg.classes))[:kinds] + 1
    return [int(label) for label in (*chosen, *rng.choice(chosen, count - kinds))]


def _window(item: _Placed, height: int, width: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a patch lies on the canvas, and which part of the patch that is: slices (y, x) of both."""
    side = item.shape.distance.shape[0]
    y0, x0 = max(item.top, 0), max(item.left, 0)
    y1, x1 = min(item.top + side, height), min(item.left + side, width)
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - item.top, y1 - item.top), slice(x0 - item.left, x1 - item.left))


def _place(rng: Rng, label: int, shape: Shape, room: np.ndarray, covered: np.ndarray, hidden: float) -> _Placed | None:
    """Centre a shape in `room` (H, W) so that `covered` (H, W) and the border hide at most this share of it.

    The first object of an image takes its best place if no place will do: only negatives are empty.
    """
    inside, radius, best, most = shape.inside, shape.distance.shape[0] // 2, None, 0
    wanted = (1 - hidden) * np.count_nonzero(inside)
    for y, x in rng.integers(0, room.shape, (_TRIES, 2)):
        if not room[y, x]:
            continue
        item = _Placed(label, shape, int(y) - radius, int(x) - radius)
        on, of = _window(item, *room.shape)
        seen = int(np.count_nonzero(inside[of] & ~covered[on]))
        if seen > most:
            best, most = item, seen
        if most and most >= wanted:
            return best
    return best if not covered.any() else None


def _arrange(cfg: SceneConfig, rng: Rng, room: np.ndarray) -> tuple[list[_Placed], UInt8[np.ndarray, "h w"]]:
    """Place the cast, nearest object first, and the mask that follows. What finds no place is left out."""
    mask, placed = np.full(room.shape, BACKGROUND, np.uint8), []
    for label in _cast(cfg, rng):
        shape = _shape(cfg, rng, label, min(room.shape))
        item = _place(rng, label, shape, room, mask > 0, cfg.occlusion)
        if item is not None:
            on, of = _window(item, *room.shape)
            mask[on] = np.where((mask[on] == BACKGROUND) & shape.inside[of], np.uint8(label), mask[on])
            placed.append(item)
    return placed, mask


def _shape(cfg: SceneConfig, rng: Rng, label: int, shorter: int) -> Shape:
    half = 0.5 * shorter * rng.uniform(*cfg.object_size)
    if cfg.style == "strokes":
        return paint.stroke(rng, half, _look(cfg, label).pattern, max(1.5, shorter * rng.uniform(*cfg.stroke_width)))
    return paint.blob(rng, half) if cfg.style == "opacities" else paint.creature(rng, half)


def _look(cfg: SceneConfig, label: int) -> Look:
    return paint.LOOKS[cfg.style][cfg.classes[label - 1]]


def _jittered(cfg: SceneConfig, rng: Rng, colour: paint.Rgb) -> np.ndarray:
    """A class's colour as one object wears it: (3, 1, 1), other hue and brightness each time."""
    shift = rng.normal(0, cfg.colour_jitter, 3).astype(np.float32)
    return np.clip(paint.rgb(colour) * np.float32(rng.uniform(0.85, 1.1)) + paint.rgb(shift), 0, 255)


def _objects(cfg: SceneConfig, streams: _Streams) -> tuple[Canvas, UInt8[np.ndarray, "h w"]]:
    """Creatures or strokes on grounds, with stones among them."""
    height, width, rng = cfg.size, round(cfg.size * cfg.aspect), streams.drawing
    placed, mask = _arrange(cfg, streams.layout, np.ones((height, width), bool))
    canvas = _land(cfg, rng, placed, height, width)
    _scatter(cfg, rng, canvas)
    _decoys(cfg, rng.spawn(1)[0], canvas)  # a stream of its own: with or without them the rest is the same
    for item in reversed(placed):
        _dress(cfg, rng, canvas, item)
    return canvas, mask


def _decoys(cfg: SceneConfig, rng: Rng, canvas: Canvas) -> None:
    """Creatures of no class, anywhere in the image."""
    height, width = canvas.shape[1:]
    for _ in range(int(rng.integers(cfg.decoys[0], cfg.decoys[1] + 1))):
        shape = _shape(cfg, rng, BACKGROUND, min(height, width))
        radius = shape.distance.shape[0] // 2
        top, left = int(rng.integers(height)) - radius, int(rng.integers(width)) - radius
        _dress(cfg, rng, canvas, _Placed(BACKGROUND, shape, top, left))


def _dress(cfg: SceneConfig, rng: Rng, canvas: Canvas, item: _Placed) -> None:
    """Paint an object on a canvas in place."""
    on, of = _window(item, *canvas.shape[1:])
    coat = _coat(cfg, rng, item)
    paint.blend(canvas[:, on[0], on[1]], coat[:, of[0], of[1]], paint.coverage(item.shape.distance[of]))


def _coat(cfg: SceneConfig, rng: Rng, item: _Placed) -> Canvas:
    """Colours of one object on its patch (3, p, p): a body that classes share, a head that tells them apart."""
    shape, side = item.shape, item.shape.distance.shape[0]
    look = _look(cfg, item.label) if item.label else Look(_BODY)
    own, shared = _jittered(cfg, rng, look.colour), _jittered(cfg, rng, _BODY)
    fur = 0.92 + 0.12 * paint.noise_field(rng, side, side, (8, 8))
    coat = (shared + (own - shared) * cfg.body_cue) * fur
    if item.label:  # a decoy has no mark
        head = own * paint.pattern(look.pattern, shape.u, shape.v)
        if look.other is not None:
            head = np.where(shape.v > 0, _jittered(cfg, rng, look.other), head)
        coat = coat + (head - coat) * paint.head_weight(shape, cfg.head_share)
    return coat * (0.72 + 0.28 * np.clip(-shape.distance / 3, 0, 1))  # a dark rim, so that shapes read as things


def _land(cfg: SceneConfig, rng: Rng, placed: list[_Placed], height: int, width: int) -> Canvas:
    """Two neutral grounds that meet along a wavy line, and a patch of habitat under each object where that is set."""
    first, second = rng.permutation(len(paint.NEUTRAL))[:2]
    canvas = paint.paint_ground(rng, paint.NEUTRAL[first], height, width)
    border = paint.noise_field(rng, height, width, (2, 2)) + 0.25 * paint.noise_field(rng, height, width, (9, 9))
    paint.blend(canvas, paint.paint_ground(rng, paint.NEUTRAL[second], height, width), np.clip(6 * border, 0, 1))
    for item in placed if cfg.habitat else ():
        own = rng.random() < cfg.habitat
        label = item.label if own else _another(cfg, rng, item.label)
        ground = paint.paint_ground(rng, _look(cfg, label).habitat, height, width)
        paint.blend(canvas, ground, _clearing(rng, item, height, width))
    return canvas


def _another(cfg: SceneConfig, rng: Rng, label: int) -> int:
    others = [other for other in range(1, len(cfg.classes) + 1) if other != label]
    return int(rng.choice(others)) if others else label


def _clearing(rng: Rng, item: _Placed, height: int, width: int) -> np.ndarray:
    """Alpha (H, W) of the habitat around an object: about twice its reach, with a ragged edge."""
    radius = item.shape.distance.shape[0] // 2
    y, x = paint.unit_grid(height, width)
    away = paint.length(y * height - item.top - radius, x * width - item.left - radius) / np.float32(radius)
    return np.clip(4 * (1.75 - away + 0.5 * paint.noise_field(rng, height, width, (7, 7))), 0, 1)


def _scatter(cfg: SceneConfig, rng: Rng, canvas: Canvas) -> None:
    """Stones: things with an edge and no class, in the colours of bodies and grounds."""
    height, width = canvas.shape[1:]
    for _ in range(int(rng.integers(cfg.clutter[0], cfg.clutter[1] + 1))):
        stone = paint.blob(rng, min(height, width) * rng.uniform(0.05, 0.13))
        side = stone.distance.shape[0]
        item = _Placed(0, stone, int(rng.integers(height)) - side // 2, int(rng.integers(width)) - side // 2)
        on, of = _window(item, height, width)
        light = 1 - 0.25 * np.clip(stone.u[of] + stone.v[of], -1, 1)
        colour = _jittered(cfg, rng, (128, 118, 110)) * light
        paint.blend(canvas[:, on[0], on[1]], colour, paint.coverage(stone.distance[of]))


def _opacities(cfg: SceneConfig, streams: _Streams) -> tuple[Canvas, UInt8[np.ndarray, "h w"]]:
    """Soft bright opacities in a lung-like field, among small vessels. Their mask ends at half their light."""
    height, width, rng = cfg.size, round(cfg.size * cfg.aspect), streams.drawing
    grey, lungs = paint.chest(rng, height, width)
    placed, mask = _arrange(cfg, streams.layout, lungs)
    canvas = grey[None]
    for y, x in rng.integers(0, (height, width), (int(rng.integers(cfg.clutter[0], cfg.clutter[1] + 1)), 2)):
        vessel = paint.stroke(rng, min(height, width) * rng.uniform(0.03, 0.1), "rod", min(height, width) * 0.016)
        side = vessel.distance.shape[0]
        _glow(canvas, _Placed(0, vessel, int(y) - side // 2, int(x) - side // 2), 26 * paint.coverage(vessel.distance))
    for item in placed:
        soft = np.float32(max(0.8, 0.03 * item.shape.distance.shape[0]))
        bright = cfg.body_cue + (1 - cfg.body_cue) * paint.head_weight(item.shape, cfg.head_share, edge=5.0)
        profile = 1 / (1 + np.exp(np.clip(item.shape.distance / soft, -30, 30)))
        _glow(canvas, item, np.float32(rng.uniform(75, 110)) * bright * profile)
    return np.repeat(canvas, 3, axis=0), mask


def _glow(canvas: Float32[np.ndarray, "1 h w"], item: _Placed, light: np.ndarray) -> None:
    """Add `light` (p, p) to a canvas in place where the item lies."""
    on, of = _window(item, *canvas.shape[1:])
    canvas[:, on[0], on[1]] += light[of]


def _tissue(cfg: SceneConfig, streams: _Streams) -> tuple[Canvas, UInt8[np.ndarray, "h w"]]:
    """Regions that fill the image: a stain that classes share, and spots of each class's own texture."""
    height, width, rng = cfg.size, round(cfg.size * cfg.aspect), streams.drawing
    mask = _regions(cfg, streams.layout, height, width)
    spots = paint.noise_field(rng, height, width, (7, 7)) + 0.4 * paint.noise_field(rng, height, width, (15, 15))
    cut = np.quantile(spots, 1 - cfg.head_share)
    weight = np.clip(0.5 + 8 * (spots - np.float32(cut)), 0, 1)
    warp = (0.05 * paint.noise_field(rng, height, width, (5, 5)) for _ in range(2))
    y, x = (axis + shift for axis, shift in zip(paint.unit_grid(height, width), warp, strict=True))
    canvas = np.empty((3, height, width), np.float32)
    for label in np.unique(mask):
        look, shared = _look(cfg, int(label)), _jittered(cfg, rng, (226, 160, 192))
        own, here = _jittered(cfg, rng, look.colour), mask == label
        base = shared + (own - shared) * cfg.body_cue
        texture = paint.tissue_texture(look.pattern, own, y, x)
        canvas[:, here] = (base + (texture - base) * weight)[:, here]
    canvas *= 1 + 0.06 * paint.noise_field(rng, height, width, (12, 12))
    _scatter(cfg, rng, canvas)
    return canvas, mask


def _regions(cfg: SceneConfig, rng: Rng, height: int, width: int) -> UInt8[np.ndarray, "h w"]:
    """Labels 1..C for every pixel: the nearest of the cast's centres on a warped plane; slivers go to neighbours."""
    labels = np.array(_cast(cfg, rng), np.uint8)
    centres = rng.random((len(labels), 2), np.float32)
    y, x = (axis + 0.09 * paint.noise_field(rng, height, width, (5, 5)) for axis in paint.unit_grid(height, width))
    away = np.stack([paint.length(y - cy, x - cx) for cy, cx in centres])
    areas = np.bincount(labels[away.argmin(0)].ravel(), minlength=256)[labels]
    large = areas >= min(areas.max(), 0.02 * height * width)
    return labels[large][away[large].argmin(0)]


_DRAW: dict[str, Callable[[SceneConfig, _Streams], tuple[Canvas, UInt8[np.ndarray, "h w"]]]] = {
    "creatures": _objects, "strokes": _objects, "opacities": _opacities, "tissue": _tissue,
}
