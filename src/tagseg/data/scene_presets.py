"""The knobs of generated scenes, and the named presets: each preset isolates one difficulty of learning from tags."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields, replace

import numpy as np

from tagseg.data.scene_painting import CREATURES, LOOKS, STROKES, TISSUES, TWO_COLOURED
from tagseg.types import UsageError

_SHARES = ("head_share", "body_cue", "habitat", "occlusion", "negatives", "missing_tags", "wrong_tags")
_ANIMALS = tuple(CREATURES)
_HERD = (*_ANIMALS[:5], *TWO_COLOURED)


@dataclass(frozen=True)
class SceneConfig:
    """The knobs of a generated set. Ranges are (lowest, highest), both included; shares lie in 0..1.

    Raises `UsageError` for a value that cannot be drawn, naming the knob.
    """

    name: str  # part of the random seed: sets of the same name and seed share their arrangement
    classes: tuple[str, ...]  # mask value i + 1 is classes[i]; names must be known to the style
    style: str = "creatures"  # creatures | strokes | opacities | tissue
    size: int = 96  # height in pixels
    aspect: float = 1.0  # width over height
    has_background: bool = True
    objects: tuple[int, int] = (1, 2)  # in each image (tissue: regions)
    tags: tuple[int, int] = (1, 2)  # different classes in each image
    object_size: tuple[float, float] = (0.4, 0.6)  # length over the image's shorter side (tissue: no effect)
    stroke_width: tuple[float, float] = (0.022, 0.036)  # of strokes, over the image's shorter side
    head_share: float = 0.5  # share of an object's area that tells its class
    body_cue: float = 0.3  # how far the shared body takes the class's colour
    colour_jitter: float = 14.0  # standard deviation of a class's colour between objects, grey levels
    habitat: float = 0.0  # chance that an object lies on its class's own ground; 0: no such grounds at all
    clutter: tuple[int, int] = (0, 2)  # things without a class in each image
    decoys: tuple[int, int] = (0, 0)  # bodies without a head's mark in each image, of no class and behind the others
    occlusion: float = 0.15  # largest share of an object that nearer ones or the border may hide
    blur: float = 0.4  # standard deviation in pixels
    noise: float = 7.0  # standard deviation of the grain, grey levels
    negatives: float = 0.0  # share of images without any object
    missing_tags: float = 0.0  # chance that a class in the image is not tagged
    wrong_tags: float = 0.0  # chance that an image gets one tag of a class that it does not hold
    source: tuple[str, ...] = ()  # classes whose masks may be used in training (TransferNet); the others are targets

    def __post_init__(self) -> None:
        _check(self)

    @property
    def target(self) -> tuple[str, ...]:
        """The classes that are not `source`: known by tags only."""
        return tuple(name for name in self.classes if name not in self.source)


def _fail(cfg: SceneConfig, knob: str, expected: str) -> None:
    raise UsageError(f"scenes {cfg.name!r}: {knob} is {getattr(cfg, knob)!r}, expected {expected}; change {knob}")


def _check(cfg: SceneConfig) -> None:
    if cfg.style not in LOOKS:
        _fail(cfg, "style", "one of " + ", ".join(LOOKS))
    known = LOOKS[cfg.style]
    if not cfg.classes or len(set(cfg.classes)) < len(cfg.classes) or not set(cfg.classes) <= set(known):
        _fail(cfg, "classes", f"one or more different names of {', '.join(known)} (style {cfg.style})")
    if not set(cfg.source) <= set(cfg.classes):
        _fail(cfg, "source", f"names from classes {cfg.classes}")
    if cfg.has_background == (cfg.style == "tissue"):
        _fail(cfg, "has_background", "false for style tissue and true for all others")
    _check_numbers(cfg)


def _check_numbers(cfg: SceneConfig) -> None:
    for field in fields(cfg):
        value = getattr(cfg, field.name)
        if field.name in _SHARES and not 0 <= value <= 1:
            _fail(cfg, field.name, "a share in 0..1")
        if field.name in ("objects", "tags", "clutter", "decoys") and not 0 <= value[0] <= value[1]:
            _fail(cfg, field.name, "(lowest, highest) counts, 0 or more")
        if field.name in ("object_size", "stroke_width") and not 0 < value[0] <= value[1] <= 1:
            _fail(cfg, field.name, "(lowest, highest) shares of the image above 0, at most 1")
        if field.name in ("colour_jitter", "blur", "noise") and not 0 <= value < np.inf:
            _fail(cfg, field.name, "0 or more")
    if cfg.tags[0] < 1:
        _fail(cfg, "tags", "at least 1; images without any are set by negatives")
    if cfg.occlusion > 0.9:
        _fail(cfg, "occlusion", "at most 0.9: an object that is all hidden is not in the image")
    if cfg.head_share == 0 and cfg.body_cue == 0:
        _fail(cfg, "head_share", "above 0 where body_cue is 0: nothing would tell the classes apart")
    if not cfg.has_background and cfg.negatives:
        _fail(cfg, "negatives", "0 where there is no background: every pixel has a class")
    if cfg.decoys[1] and cfg.style != "creatures":
        _fail(cfg, "decoys", f"0,0 for style {cfg.style}: only creatures have a head to lack")
    if cfg.size < 16 or not 0.25 <= cfg.aspect <= 4:
        _fail(cfg, "size" if cfg.size < 16 else "aspect", "size >= 16 and aspect in 0.25..4")


PRESETS: dict[str, SceneConfig] = {cfg.name: cfg for cfg in (
    # For the demo and the tests: large objects, the class is visible over more than half of each.
    SceneConfig("basic", _ANIMALS[:6], object_size=(0.45, 0.7), head_share=0.6, body_cue=0.3, negatives=0.05),
    # A classifier needs heads only: growing and mining must find the bodies.
    SceneConfig("parts", _ANIMALS[:6], head_share=0.18, body_cue=0.04, negatives=0.05),
    # The ground gives the class away: maps spill over and must shrink.
    SceneConfig("habitat", _ANIMALS[:6], head_share=0.35, body_cue=0.1, habitat=0.92, object_size=(0.3, 0.5),
                negatives=0.05),
    # Several tags in each image, objects in front of others.
    SceneConfig("crowd", _ANIMALS, objects=(4, 7), tags=(3, 5), object_size=(0.22, 0.36), head_share=0.45,
                body_cue=0.15, occlusion=0.4, clutter=(1, 3)),
    # Thin and small: coarse maps cannot follow.
    SceneConfig("thin", tuple(STROKES), style="strokes", objects=(1, 4), tags=(1, 3),
                object_size=(0.2, 0.38), head_share=0.5, body_cue=0.3, clutter=(0, 3), blur=0.3),
    # The medical case: one class, soft and faint, half of the images without it.
    SceneConfig("lesions", ("opacity",), style="opacities", objects=(1, 3), tags=(1, 1), object_size=(0.14, 0.34),
                head_share=0.4, body_cue=0.45, clutter=(2, 5), occlusion=0.5, blur=0.6, noise=6.0, negatives=0.5),
    # Masks of five classes help three others that carry tags only; `sides` gives the two sets.
    SceneConfig("transfer", _ANIMALS, head_share=0.35, body_cue=0.15, source=_ANIMALS[:5]),
    # The same for twenty and three: a mark of a seventh of a body is all that tells a kind, bodies without are no kind.
    SceneConfig("herd", (*_HERD, *_ANIMALS[5:]), head_share=0.15, body_cue=0.0, decoys=(0, 2), occlusion=0.05,
                source=_HERD),
    # No background: every pixel belongs to a class.
    SceneConfig("tissue", tuple(TISSUES), style="tissue", has_background=False, objects=(3, 6), tags=(2, 4),
                head_share=0.6, body_cue=0.15, colour_jitter=8.0, clutter=(0, 2)),
)}


def preset(name: str) -> SceneConfig:
    """The knobs of a named preset. An unknown name raises `UsageError` with the list and the nearest name."""
    if name in PRESETS:
        return PRESETS[name]
    nearest = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.0)[0]
    raise UsageError(f"scenes preset {name!r} is unknown, expected one of {', '.join(PRESETS)}; "
                     f"the nearest is {nearest!r}")


def sides(cfg: SceneConfig) -> tuple[SceneConfig, SceneConfig]:
    """The source set and the target set of a transfer config: each draws and lists its own classes only."""
    if not cfg.source or not cfg.target:
        _fail(cfg, "source", "some, but not all, of the classes (presets 'transfer' and 'herd' have both sides)")
    return (replace(cfg, name=f"{cfg.name}-source", classes=cfg.source, source=()),
            replace(cfg, name=f"{cfg.name}-target", classes=cfg.target, source=()))
