"""Generated scenes: the same arguments give the same arrays, masks agree with pictures, each preset is what it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation, binary_erosion

from tagseg.data import scene_painting as paint
from tagseg.data import scenes
from tagseg.data.scenes import PRESETS, SceneConfig, preset, render, sides
from tagseg.types import MaskedSample, UsageError

NAMES = sorted(PRESETS)
any_preset = st.sampled_from(NAMES)
number = st.integers(0, 10_000)


def draw(cfg: SceneConfig, count: int, seed: int = 0) -> list[MaskedSample]:
    return [render(cfg, seed, index) for index in range(count)]


def present(mask: np.ndarray, classes: int) -> np.ndarray:
    return np.array([(mask == label).any() for label in range(1, classes + 1)])


@settings(max_examples=40, deadline=None)
@given(any_preset, number, number)
def test_tags_are_the_classes_of_the_mask(name: str, seed: int, index: int) -> None:
    cfg = preset(name)
    sample = render(cfg, seed, index)
    assert sample.id == f"{index:06d}"
    assert sample.image.shape == (3, cfg.size, cfg.size)
    assert sample.mask.max() <= len(cfg.classes)
    np.testing.assert_array_equal(sample.tags, present(sample.mask, len(cfg.classes)))
    assert sample.mask.any() or cfg.negatives


@settings(max_examples=20, deadline=None)
@given(any_preset, number, number)
def test_same_arguments_give_the_same_arrays(name: str, seed: int, index: int) -> None:
    first, second = render(preset(name), seed, index), render(preset(name), seed, index)
    for field in ("image", "mask", "tags"):
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field))


@pytest.mark.parametrize("name", NAMES)
def test_seed_index_and_name_change_the_picture(name: str) -> None:
    cfg = preset(name)
    images = [render(cfg, 0, 0), render(cfg, 1, 0), render(cfg, 0, 1), render(replace(cfg, name="other"), 0, 0)]
    assert len({sample.image.tobytes() for sample in images}) == 4


@settings(max_examples=25, deadline=None)
@given(any_preset, number)
def test_extreme_knobs_still_draw(name: str, seed: int) -> None:
    harsh = {"object_size": (0.05, 1.0), "occlusion": 0.0, "objects": (0, 9), "head_share": 1.0, "clutter": (0, 9)}
    cfg = replace(preset(name), size=24, aspect=2.5, negatives=0.0, blur=2.0, **harsh)
    sample = render(cfg, seed, 0)
    assert sample.mask.shape == (24, 60)
    np.testing.assert_array_equal(sample.tags, present(sample.mask, len(cfg.classes)))


def test_tag_noise_leaves_picture_and_mask_alone() -> None:
    clean, noisy = preset("crowd"), replace(preset("crowd"), missing_tags=0.3, wrong_tags=0.3)
    pairs = list(zip(draw(clean, 10), draw(noisy, 10), strict=True))
    assert all((a.image == b.image).all() and (a.mask == b.mask).all() for a, b in pairs)
    assert any((a.tags != b.tags).any() for a, b in pairs)


def test_tag_noise_has_the_rates_asked_for() -> None:
    cfg = replace(preset("crowd"), size=24, missing_tags=0.2, wrong_tags=0.3)
    samples = draw(cfg, 300)
    truth = np.array([present(s.mask, len(cfg.classes)) for s in samples])
    tags = np.array([s.tags for s in samples])
    assert (truth & ~tags).sum() / truth.sum() == pytest.approx(0.2, abs=0.04)
    assert (~truth & tags).any(1).mean() == pytest.approx(0.3, abs=0.07)
    assert (~truth & tags).sum(1).max() == 1


@pytest.mark.parametrize("name", ["basic", "crowd", "thin"])
def test_mask_covers_what_was_painted_to_within_the_soft_edge(name: str) -> None:
    """Recolouring the bodies changes the picture inside the masks and at most one pixel beyond."""
    cfg = replace(preset(name), noise=0.0, blur=0.0, head_share=0.01, colour_jitter=0.0)
    for index in range(8):
        one, other = render(replace(cfg, body_cue=0.0), 3, index), render(replace(cfg, body_cue=1.0), 3, index)
        assert (one.mask == other.mask).all()
        changed = (one.image != other.image).any(0)
        assert not (changed & ~binary_dilation(one.mask > 0, np.ones((3, 3))))[1:-1, 1:-1].any()
        core = binary_erosion(one.mask > 0)
        assert changed[core].mean() > 0.9 if core.any() else True


def test_pixels_wear_the_colour_of_the_class_that_the_mask_names() -> None:
    cfg = replace(preset("crowd"), occlusion=0.6, noise=0.0, blur=0.0, colour_jitter=0.0, body_cue=1.0, head_share=0.01)
    colours = np.array([paint.CREATURES[name].colour for name in cfg.classes], float)
    colours /= np.linalg.norm(colours, axis=1, keepdims=True)
    for sample in draw(cfg, 12):
        core = np.any([binary_erosion(sample.mask == k + 1) for k in range(len(cfg.classes))], axis=0)
        pixels = sample.image[:, core].astype(float)
        nearest = 1 + (colours @ (pixels / np.linalg.norm(pixels, axis=0))).argmax(0)
        assert np.mean(nearest == sample.mask[core]) > 0.98


def test_nearer_objects_hide_farther_ones_and_no_more_than_allowed() -> None:
    cfg = preset("crowd")
    for seed in range(6):
        placed, mask = scenes._arrange(cfg, np.random.default_rng(seed), np.ones((96, 96), bool))
        owner = np.full((96, 96), -1)
        for k in reversed(range(len(placed))):  # plain painter: farthest first, pixel by pixel
            for y, x in np.argwhere(placed[k].shape.inside) + np.array([placed[k].top, placed[k].left]):
                if 0 <= y < 96 and 0 <= x < 96:
                    owner[y, x] = k
        labels = np.array([0] + [item.label for item in placed])
        np.testing.assert_array_equal(mask, labels[owner + 1])
        seen = [np.mean(owner == k) * 96 * 96 / item.shape.inside.sum() for k, item in enumerate(placed)]
        assert min(seen[1:]) >= 1 - cfg.occlusion - 1e-9


@pytest.mark.parametrize(("outline", "length"), [("rod", 2.0), ("ring", 2 * np.pi * 0.85)])
def test_stroke_area_is_length_times_thickness(outline: str, length: float) -> None:
    half, thick = 30.0, 4.0
    ends = np.pi * thick**2 / 4 if outline == "rod" else 0.0
    shape = paint.stroke(np.random.default_rng(0), half, outline, thick)
    assert shape.inside.sum() == pytest.approx(length * half * thick + ends, rel=0.04)
    assert paint.coverage(shape.distance).sum() == pytest.approx(length * half * thick + ends, rel=0.03)


@pytest.mark.parametrize("share", [0.1, 0.35, 0.8])
def test_head_takes_its_share_of_the_object(share: float) -> None:
    for seed in range(5):
        shape = paint.creature(np.random.default_rng(seed), 30.0)
        head = paint.head_weight(shape, share)[shape.inside]
        assert head.mean() == pytest.approx(share, abs=0.03)


def test_blur_equals_scipy() -> None:
    from scipy.ndimage import gaussian_filter1d

    canvas = np.random.default_rng(0).random((3, 20, 31), np.float32) * 255
    radius = int(np.ceil(2.5 * 1.3))
    slow = gaussian_filter1d(gaussian_filter1d(canvas, 1.3, 1, mode="nearest", radius=radius), 1.3, 2,
                             mode="nearest", radius=radius)
    np.testing.assert_allclose(paint.soften(canvas, 1.3), slow, atol=1e-3)


def test_noise_field_stays_in_range_and_is_smooth() -> None:
    field = paint.noise_field(np.random.default_rng(0), 80, 120, (4, 6))
    assert field.shape == (80, 120)
    assert np.abs(field).max() <= 1
    assert field.std() > 0.2
    assert np.abs(np.diff(field, axis=1)).max() < 2 * 1.5 / 20  # smoothstep's steepest slope over a cell of 20 px


def area_per_object(cfg: SceneConfig) -> float:
    one = replace(cfg, objects=(1, 1), tags=(1, 1), negatives=0.0)
    return float(np.mean([(s.mask > 0).mean() for s in draw(one, 40)]))


def test_objects_grow_with_their_size() -> None:
    small, large = (area_per_object(replace(preset("basic"), object_size=(s, s))) for s in (0.25, 0.5))
    assert large / small == pytest.approx(4, rel=0.15)


def test_thin_objects_are_thin() -> None:
    thick = [binary_erosion(s.mask > 0, iterations=2).sum() / (s.mask > 0).sum() for s in draw(preset("basic"), 40)
             if s.mask.any()]
    thin = [binary_erosion(s.mask > 0, iterations=2).sum() / (s.mask > 0).sum() for s in draw(preset("thin"), 40)]
    assert np.mean(thick) > 0.5
    assert np.mean(thin) < 0.05
    assert area_per_object(preset("thin")) < 0.03


def test_parts_show_less_of_their_class_than_basic() -> None:
    """Pixels that are colourful, as a share of the objects: bodies of `parts` are nearly grey."""
    def colourful(name: str) -> float:
        cfg = replace(preset(name), negatives=0.0, noise=0.0)
        spread = [np.ptp(s.image.astype(int), axis=0)[s.mask > 0] > 90 for s in draw(cfg, 40)]
        return float(np.concatenate(spread).mean())

    assert colourful("parts") < 0.6 * colourful("basic")


def nearest_ground(cfg: SceneConfig, sample: MaskedSample) -> int:
    """The class whose habitat is closest in colour to the pixels 3 to 6 px around the object."""
    thing = sample.mask > 0
    ring = binary_dilation(thing, iterations=6) & ~binary_dilation(thing, iterations=3)
    around = sample.image[:, ring].mean(1)
    grounds = [paint.CREATURES[name].habitat for name in cfg.classes]
    middles = [(np.array(g.dark) + np.array(g.light)) / 2 for g in grounds]
    return 1 + int(np.argmin([np.abs(around - middle).sum() for middle in middles]))


@pytest.mark.parametrize(("habitat", "low", "high"), [(0.0, 0.0, 0.45), (0.5, 0.3, 0.7), (0.92, 0.8, 1.0)])
def test_habitat_ties_ground_to_class(habitat: float, low: float, high: float) -> None:
    cfg = replace(preset("habitat"), habitat=habitat, objects=(1, 1), tags=(1, 1), negatives=0.0, clutter=(0, 0))
    hits = [nearest_ground(cfg, s) == s.mask.max() for s in draw(cfg, 80)]
    assert low <= np.mean(hits) <= high


def test_crowd_has_several_tags_and_touching_objects() -> None:
    samples = draw(preset("crowd"), 40)
    counts = [s.tags.sum() for s in samples]
    assert np.mean(counts) > 3
    assert np.mean([s.tags.sum() for s in draw(preset("basic"), 40)]) < 2
    touching = [((s.mask[1:] != s.mask[:-1]) & (s.mask[1:] > 0) & (s.mask[:-1] > 0)).any() for s in samples]
    assert np.mean(touching) > 0.4


def test_lesions_are_grey_soft_and_often_absent() -> None:
    samples = draw(preset("lesions"), 120)
    assert all((s.image[0] == s.image[1]).all() and (s.image[0] == s.image[2]).all() for s in samples)
    assert np.mean([not s.tags.any() for s in samples]) == pytest.approx(0.5, abs=0.12)
    ill = [s for s in samples if s.tags.any()]
    around = [binary_dilation(s.mask > 0, iterations=8) & (s.mask == 0) for s in ill]
    lifts = [s.image[0][s.mask > 0].mean() - s.image[0][ring].mean() for s, ring in zip(ill, around, strict=True)]
    assert 10 < np.mean(lifts) < 90
    steps = [np.abs(np.diff(s.image[0].astype(int), axis=1))[s.mask[:, 1:] != s.mask[:, :-1]].mean() for s in ill]
    assert np.mean(steps) < 25  # no hard edge: the grain alone makes steps of about 6


def test_tissue_has_no_background() -> None:
    cfg = preset("tissue")
    samples = draw(cfg, 40)
    assert not cfg.has_background
    assert min(s.mask.min() for s in samples) >= 1
    assert {int(v) for s in samples for v in np.unique(s.mask)} == set(range(1, len(cfg.classes) + 1))


def test_each_class_appears_about_equally_often() -> None:
    counts = np.sum([s.tags for s in draw(replace(preset("basic"), size=32), 300)], axis=0)
    assert counts.min() > 0.7 * counts.max()


def test_transfer_has_disjoint_sides() -> None:
    cfg = preset("transfer")
    source, target = sides(cfg)
    assert source.classes == cfg.source
    assert target.classes == cfg.target
    assert set(source.classes) | set(target.classes) == set(cfg.classes)
    assert not set(source.classes) & set(target.classes)
    assert render(target, 0, 0).tags.shape == (len(cfg.target),)
    assert (render(source, 0, 0).mask > 0).tolist() != (render(target, 0, 0).mask > 0).tolist()
    with pytest.raises(UsageError, match="source"):
        sides(preset("basic"))


def test_herd_has_twenty_kinds_beside_three_and_every_kind_its_own_mark() -> None:
    cfg = preset("herd")
    source, target = sides(cfg)
    assert (len(source.classes), target.classes) == (20, sides(preset("transfer"))[1].classes)
    looks = [paint.LOOKS["creatures"][name] for name in cfg.classes]
    assert len({(look.colour, look.pattern, look.other) for look in looks}) == 23
    plain = replace(cfg, noise=0.0, blur=0.0, colour_jitter=0.0, objects=(1, 1), tags=(1, 1), decoys=(0, 0))
    for kind, look in zip(cfg.classes, looks, strict=True):
        one = render(replace(plain, classes=(kind,), source=()), 0, 0)
        bright = one.image[:, one.mask > 0].astype(float)
        shares = []
        for colour in (look.colour, look.other or look.colour):  # by direction: brightness and fur vary
            near = bright.T @ np.array(colour, float) / np.linalg.norm(bright, axis=0) / np.linalg.norm(colour)
            shares.append(float((near > 0.999).mean()))
        assert min(shares) > 0.03, (kind, shares)


def test_decoys_are_seen_and_named_by_nothing() -> None:
    """With and without them masks, tags and the pixels of the others are the same; elsewhere bodies appear."""
    cfg = replace(preset("herd"), noise=0.0, blur=0.0)
    for index in range(8):
        with_them, without = (render(replace(cfg, decoys=many), 1, index) for many in ((2, 2), (0, 0)))
        np.testing.assert_array_equal(with_them.mask, without.mask)
        np.testing.assert_array_equal(with_them.tags, without.tags)
        changed = (with_them.image != without.image).any(0)
        assert changed[binary_erosion(without.mask > 0, iterations=2)].mean() < 0.02  # edges are soft, joints softer
        assert changed[without.mask == 0].mean() > 0.02
    with pytest.raises(UsageError, match="decoys"):
        replace(preset("thin"), decoys=(1, 2))


# Mean of red, green, blue and share of labelled pixels over eight images: they move when drawing changes.
PINNED: dict[str, tuple[float, float, float, float]] = {
    "basic": (122.5, 120.1, 110.9, 0.230),
    "crowd": (112.8, 108.1, 97.7, 0.163),
    "habitat": (122.1, 119.8, 106.1, 0.119),
    "herd": (117.2, 113.8, 100.0, 0.201),
    "lesions": (122.1, 122.1, 122.1, 0.026),
    "parts": (121.0, 122.1, 110.7, 0.120),
    "thin": (124.4, 121.9, 111.9, 0.032),
    "tissue": (197.4, 145.9, 174.9, 1.000),
    "transfer": (117.9, 116.9, 109.7, 0.159),
}


@pytest.mark.parametrize("name", NAMES)
def test_pictures_have_not_drifted(name: str) -> None:
    samples = draw(preset(name), 8)
    colours = np.mean([s.image.mean((1, 2)) for s in samples], axis=0)
    np.testing.assert_allclose(colours, PINNED[name][:3], atol=1.0)
    assert np.mean([(s.mask > 0).mean() for s in samples]) == pytest.approx(PINNED[name][3], abs=0.005)


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"'lesion' is unknown.*basic.*nearest is 'lesions'"):
        preset("lesion")


@pytest.mark.parametrize(("knob", "value"), [
    ("style", "cubes"), ("classes", ("crab", "unicorn")), ("classes", ()), ("classes", ("crab", "crab")),
    ("head_share", 1.2), ("missing_tags", -0.1), ("objects", (3, 1)), ("object_size", (0.0, 0.5)), ("noise", -1.0),
    ("noise", float("nan")), ("tags", (0, 1)), ("occlusion", 1.0), ("decoys", (2, 1)), ("size", 8), ("aspect", 9.0),
    ("has_background", False), ("source", ("moose",)),
])
def test_impossible_knobs_are_refused_by_name(knob: str, value: object) -> None:
    with pytest.raises(UsageError, match=knob):
        replace(preset("basic"), **{knob: value})


def test_negative_numbers_are_refused() -> None:
    with pytest.raises(UsageError, match="seed -1"):
        render(preset("basic"), -1, 0)
