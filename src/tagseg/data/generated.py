"""Generated sets by name: "scenes:basic?seed=3&train=400&val=100&size=96&tag_noise=0.1" to a set with masks."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from jaxtyping import UInt8

from tagseg.data.images import record_mask_read
from tagseg.data.index import MaskedSet, TaggedSet, spread
from tagseg.data.scenes import SceneConfig, preset, render, sides
from tagseg.types import MaskedSample, UsageError

_DEFAULT_COUNTS = {"train": 200, "val": 100}
_STARTS = {"train": 0, "val": 1_000_000}  # the splits draw from indices that never meet
_KNOBS = tuple(f.name for f in fields(SceneConfig) if f.name not in ("name", "classes", "style", "has_background"))


@dataclass(frozen=True)
class Spec:
    """A parsed name: the knobs, the seed and how many images each split has."""

    config: SceneConfig
    seed: int
    counts: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class SceneImages:
    """Images drawn on demand; the digest is that of the pixels, so a changed generator is a changed set."""

    spec: Spec

    def read(self, id: str) -> UInt8[np.ndarray, "3 h w"]:
        """The image as uint8 (3,H,W) RGB."""
        return _draw(self.spec, id).image.copy()

    def size(self, id: str) -> tuple[int, int]:
        """(H, W) in pixels."""
        _, height, width = _draw(self.spec, id).image.shape
        return height, width

    def digest(self, id: str) -> str:
        """sha256 over shape and pixels."""
        return _digest(_draw(self.spec, id).image)


@dataclass(frozen=True)
class SceneMasks:
    """The exact masks of the same images; every look is recorded as for mask files."""

    spec: Spec
    ids: Collection[str]

    def read(self, id: str) -> UInt8[np.ndarray, "h w"]:
        """The mask as uint8 (H,W)."""
        record_mask_read(f"scenes:{self.spec.config.name}/{id}")
        return _draw(self.spec, id).mask.copy()

    def digest(self, id: str) -> str:
        """sha256 over shape and pixels."""
        record_mask_read(f"scenes:{self.spec.config.name}/{id}")
        return _digest(_draw(self.spec, id).mask)


def scenes(name: str, splits: Sequence[str] | None = None, *, limit: int | None = None) -> MaskedSet:
    """The images of `splits` ("train", "val"; None means both) of a generated set. Errors: `UsageError`."""
    spec = parse(name)
    chosen = tuple(splits) if splits is not None else tuple(split for split, _ in spec.counts)
    counts = dict(spec.counts)
    for split in chosen:
        if split not in counts:
            raise UsageError(f"{name}: split {split!r} is unknown, expected one of {', '.join(counts)}")
    ids = sorted({f"{split}/{k:06d}" for split in chosen for k in range(counts[split])})
    if not ids:
        raise UsageError(f"{name}: no image in {', '.join(chosen)}; give a count, as in ?train=200")
    ids = list(spread(ids, limit)) if limit is not None else ids
    tags = np.stack([_draw(spec, id).tags for id in ids])
    tagged = TaggedSet(f"scenes-{spec.config.name}:{'+'.join(chosen)}", spec.config.classes, tuple(ids), tags,
                       np.ones(len(ids), dtype=np.bool_), SceneImages(spec), spec.config.has_background)
    return MaskedSet(tagged, SceneMasks(spec, frozenset(ids)))


def parse(name: str) -> Spec:
    """Read "scenes:PRESET?key=value&...": seed, train, val, side (source or target), kinds, tag_noise, or any knob.

    `kinds` leaves the first so many of the set's (or its side's) classes, or those from one to another ("16-20");
    `tag_noise` sets missing_tags and wrong_tags alike. Errors: `UsageError` with the nearest key.
    """
    kind, _, rest = name.partition(":")
    base, _, query = rest.partition("?")
    if kind != "scenes" or not base:
        raise UsageError(f"{name!r}: expected a name such as 'scenes:basic' or 'scenes:basic?train=400&seed=3'")
    config, seed, counts, kinds = preset(base), 0, dict(_DEFAULT_COUNTS), None
    for key, value in _pairs(name, query):
        if key == "seed":
            seed = _whole(name, key, value)
        elif key in counts:
            counts[key] = min(_whole(name, key, value), _STARTS["val"])
        elif key == "side":
            config = _side(name, config, value)
        elif key == "kinds":
            kinds = value
        elif key == "tag_noise":
            config = replace(config, missing_tags=_share(name, key, value), wrong_tags=_share(name, key, value))
        else:
            config = _turn(name, config, key, value)
    return Spec(config if kinds is None else _some(name, config, kinds), seed, tuple(counts.items()))


# ---- inside ----

@lru_cache(maxsize=512)
def _draw(spec: Spec, id: str) -> MaskedSample:
    split, number = id.split("/")
    return render(spec.config, spec.seed, _STARTS[split] + int(number))


def _digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _pairs(name: str, query: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise UsageError(f"{name!r}: expected ?key=value&key=value after the preset") from None


def _whole(name: str, key: str, value: str) -> int:
    if not value.isascii() or not value.isdigit():
        raise UsageError(f"{name!r}: {key} is {value!r}, expected a whole number, 0 or more")
    return int(value)


def _share(name: str, key: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UsageError(f"{name!r}: {key} is {value!r}, expected a number") from None


def _side(name: str, config: SceneConfig, value: str) -> SceneConfig:
    if value not in ("source", "target"):
        raise UsageError(f"{name!r}: side is {value!r}, expected source or target")
    return sides(config)[0 if value == "source" else 1]


def _some(name: str, config: SceneConfig, kinds: str) -> SceneConfig:
    low, _, high = kinds.rpartition("-")
    first, last = _whole(name, "kinds", low or "1"), _whole(name, "kinds", high)
    if not 1 <= first <= last <= len(config.classes):
        raise UsageError(f"{name!r}: kinds is {kinds}, expected 1..{len(config.classes)}, or two of these as in 1-2: "
                         f"{', '.join(config.classes)}")
    some = config.classes[first - 1 : last]
    return replace(config, classes=some, source=tuple(one for one in config.source if one in some))


def _turn(name: str, config: SceneConfig, key: str, value: str) -> SceneConfig:
    """Set one knob, in the type of its present value; pairs are written low,high."""
    if key not in _KNOBS or key == "source":
        keys = ["seed", "train", "val", "side", "kinds", "tag_noise", *(k for k in _KNOBS if k != "source")]
        near = difflib.get_close_matches(key, keys, n=1)
        raise UsageError(f"{name!r}: {key!r} is unknown" + (f"; the nearest is {near[0]!r}" if near else "")
                         + f"; there are {', '.join(keys)}")
    now = getattr(config, key)
    if isinstance(now, tuple):
        parts = value.split(",")
        if len(parts) != len(now):
            raise UsageError(f"{name!r}: {key} is {value!r}, expected two numbers low,high")
        changed: dict[str, Any] = {key: tuple(_number(name, key, part, now[0]) for part in parts)}
    else:
        changed = {key: _number(name, key, value, now)}
    return replace(config, **changed)


def _number(name: str, key: str, value: str, like: object) -> int | float:
    return _whole(name, key, value) if isinstance(like, int) else _share(name, key, value)
