"""Batches are a function of (seed, step), image and labels are cut alike, every image is drawn once in a pass."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tagseg.data.loader import (
    FILL,
    Augment,
    Draws,
    Shapes,
    Window,
    crop_shape,
    crop_shapes,
    cut,
    draw,
    jitter,
    lined_up,
    members,
    prefetched,
    window,
)
from tagseg.types import IGNORE, U8

CROP = (32, 48)
PLAIN = Augment(size=40, scale=(1.0, 1.0), flip=False, colour=0.0)


@dataclass(frozen=True)
class Noise:
    """An image source of random pixels, each image its own size; `pause` makes its timing uneven."""

    pause: float = 0.0
    threads: set[str] = field(default_factory=set)

    def size(self, id: str) -> tuple[int, int]:
        return 30 + int(id) % 7, 50 - int(id) % 5

    def read(self, id: str) -> U8:
        self.threads.add(threading.current_thread().name)
        time.sleep(self.pause * (int(id) % 3))
        return np.random.default_rng(int(id)).integers(0, 256, (3, *self.size(id)), np.uint8)

    def digest(self, id: str) -> str:
        return id


def draws(seed: int = 0, pause: float = 0.0, augment: Augment | None = None) -> Draws:
    ids = tuple(f"{i:02d}" for i in range(10))
    tags = np.arange(10)[:, None] % 3 == np.arange(3)
    augment = augment or Augment(size=40)
    shapes = Shapes((CROP,), np.zeros(10, int))
    return Draws(Noise(pause), ids, tags, shapes, augment, 4, seed, lambda i: Noise().read(i)[0] % 4, positives=0.5)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    forward = [draws()(step) for step in range(5)]
    backward = [draws(pause=0.002)(step) for step in reversed(range(5))][::-1]
    assert all(same(a, b) for a, b in zip(forward, backward, strict=True))
    assert not same(forward[0], forward[1])
    assert not same(forward[0], draws(seed=1)(0))


def test_prefetched_batches_are_the_plain_ones_made_in_another_thread() -> None:
    ahead = draws(pause=0.001)
    with prefetched(ahead) as fetch:
        early = [fetch(step) for step in range(4)]
        resumed = [fetch(step) for step in (9, 10)]  # a training that goes on elsewhere
        back = fetch(2)
    plain = draws()
    assert all(same(a, plain(step)) for a, step in zip([*early, *resumed, back], [0, 1, 2, 3, 9, 10, 2], strict=True))
    assert isinstance(ahead.source, Noise)
    assert all(name.startswith("batches") for name in ahead.source.threads)


def test_an_error_in_the_thread_reaches_the_training() -> None:
    def broken(step: int) -> dict[str, torch.Tensor]:
        raise ValueError(f"step {step}")

    with pytest.raises(ValueError, match="step 3"), prefetched(broken) as fetch:
        fetch(3)


def test_shapes_and_kinds_of_a_batch() -> None:
    batch = draws()(0)
    assert batch["images"].shape == (4, 3, *CROP)
    assert batch["images"].dtype == torch.uint8
    assert batch["tags"].shape == (4, 3)
    assert batch["tags"].dtype == torch.bool
    assert batch["labels"].shape == (4, *CROP)
    assert batch["labels"].dtype == torch.uint8


@settings(max_examples=60, deadline=None)
@given(st.integers(40, 90), st.integers(40, 90), st.integers(0, 10**6))
def test_labels_follow_the_image_through_window_and_flip(height: int, width: int, seed: int) -> None:
    image, labels = np.zeros((3, height, width), np.uint8), np.zeros((height, width), np.uint8)
    rows, columns = slice(height // 5, height // 2), slice(width // 6, width // 3)  # on one side: a flip shows
    image[:, rows, columns], labels[rows, columns] = 255, 1
    augment = Augment(size=40, scale=(0.7, 1.4), flip=True, colour=0.0)
    photo, mask = draw(image, labels, CROP, augment, np.random.default_rng(seed))
    assert mask is not None
    inside = mask != IGNORE
    bright = photo[0] > 127
    # bilinear and nearest may differ on the rim of the rectangle, by one pixel
    grown, shrunk = _grown(mask == 1), ~_grown(mask != 1)
    assert not (bright & inside & ~grown).any()
    assert not (shrunk & ~bright).any()


def _grown(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 1)
    return np.any([padded[1 + dy : 1 + dy + mask.shape[0], 1 + dx : 1 + dx + mask.shape[1]]
                   for dy in (-1, 0, 1) for dx in (-1, 0, 1)], axis=0)


def test_the_alignment_check_would_see_a_forgotten_flip() -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[10:30, 4:20] = 1
    view = Window((0.0, 0.0, 64.0, 64.0), True)
    flipped = np.asarray(cut(Image.fromarray(labels), view, (64, 64), fill=IGNORE, nearest=True))
    assert np.array_equal(flipped, labels[:, ::-1])
    assert not _grown(labels == 1)[flipped == 1].all()


def test_without_change_the_whole_image_comes_back() -> None:
    image = Noise().read("5")  # (3, 35, 50)
    photo, mask = draw(image, image[0], (35, 50), PLAIN, np.random.default_rng(0))
    assert np.array_equal(photo, image)
    assert mask is not None
    assert np.array_equal(mask, image[0])


@pytest.mark.parametrize(("box", "crop"), [((20, 10, 60, 40), (15, 20)), ((8, 4, 24, 16), (24, 32))])
def test_cutting_equals_resizing_the_whole_and_cropping(box: tuple[int, ...], crop: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    left, top, right, bottom = box
    factor = crop[1] / (right - left)
    view = Window((float(left), float(top), float(right), float(bottom)), False)
    x, y = round(left * factor), round(top * factor)
    for nearest, method in ((True, Image.Resampling.NEAREST), (False, Image.Resampling.BILINEAR)):
        photo = Image.fromarray(pixels)
        whole = np.asarray(photo.resize((round(80 * factor), round(60 * factor)), method)).astype(int)
        expected = whole[y : y + crop[0], x : x + crop[1]]
        found = np.asarray(cut(photo, view, crop, fill=FILL, nearest=nearest)).astype(int)
        inner = (slice(None),) * 2 if nearest else (slice(2, -2),) * 2  # at the rim the part knows no neighbours
        assert np.abs(found - expected)[inner].max() <= (0 if nearest else 1)


def test_what_lies_outside_is_ignored_in_labels_and_grey_in_the_image() -> None:
    view = Window((-10.0, -20.0, 30.0, 20.0), False)  # the image 20x30 in the lower right quarter of 40x40
    mask = np.asarray(cut(Image.fromarray(np.ones((20, 30), np.uint8)), view, (40, 40), fill=IGNORE, nearest=True))
    photo = np.asarray(cut(Image.fromarray(np.zeros((20, 30, 3), np.uint8)), view, (40, 40), fill=FILL, nearest=False))
    inside = np.zeros((40, 40), bool)
    inside[20:, 10:] = True
    assert (mask[inside] == 1).all()
    assert (mask[~inside] == IGNORE).all()
    assert (photo[inside] == 0).all()
    assert (photo[~inside] == FILL).all()


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 10**6))
def test_windows_lie_inside_or_hold_the_whole_side(height: int, width: int, seed: int) -> None:
    augment = Augment(size=40, scale=(0.5, 2.0))
    left, top, right, bottom = window((height, width), CROP, augment, np.random.default_rng(seed)).box
    for low, high, full in ((left, right, width), (top, bottom, height)):
        inside, around = low >= -1e-6 and high <= full + 1e-6, low <= 1e-6 and high >= full - 1e-6
        assert inside or around
    assert (right - left) / (bottom - top) == pytest.approx(CROP[1] / CROP[0])  # never stretched
    zoom_area = (CROP[0] * CROP[1]) / ((right - left) * (bottom - top)) / (CROP[0] * CROP[1] / (height * width))
    assert 0.25 - 1e-6 <= zoom_area <= 4 + 1e-6


@pytest.mark.parametrize(("sizes", "size", "expected"), [
    ([(300, 300)], 256, (256, 256)),
    ([(300, 400)], 256, (224, 288)),  # 221.7 x 295.6
    ([(400, 300)], 256, (288, 224)),
    ([(300, 300), (300, 400), (10, 1000)], 256, (224, 288)),  # the median
    ([(10, 1000)], 96, (48, 160)),  # aspect held at 3: 55.4 x 166.3
    ([(10, 10)], 4, (16, 16)),
])
def test_crop_shapes(sizes: list[tuple[int, int]], size: int, expected: tuple[int, int]) -> None:
    assert crop_shape(sizes, size) == expected


def test_tagged_images_are_repeated_to_the_share_that_was_asked_for() -> None:
    tags = np.zeros((10, 3), bool)
    tags[[2, 7], 1] = True
    line = lined_up(tags, 0.5)
    assert sorted(line) == sorted([0, 1, 3, 4, 5, 6, 8, 9, *[2] * 4, *[7] * 4])
    assert lined_up(tags, 0.2).tolist() == list(range(10))  # they are so many already
    assert lined_up(tags, 0.0).tolist() == list(range(10))
    assert lined_up(np.zeros((4, 3), bool), 0.5).tolist() == list(range(4))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 13), st.integers(1, 9), st.integers(0, 99))
def test_each_pass_draws_every_image_once(images: int, batch: int, seed: int) -> None:
    line = np.arange(100, 100 + images)
    steps = -(-3 * images // batch)
    drawn = [m for step in range(steps) for m in members([line], batch, seed, step)[1]]
    assert [number for _, number in drawn] == list(range(steps * batch))
    for epoch in range(3):
        assert sorted(i for i, _ in drawn[epoch * images : (epoch + 1) * images]) == line.tolist()


def test_groups_are_drawn_by_their_size_and_passes_within_them_are_whole() -> None:
    lines = [np.arange(0, 30), np.arange(30, 40)]
    seen: list[list[int]] = [[], []]
    for step in range(400):
        group, drawn = members(lines, 4, 7, step)
        assert [number for _, number in drawn] == list(range(4 * step, 4 * step + 4))
        assert {i for i, _ in drawn} <= set(lines[group].tolist())
        seen[group] += [i for i, _ in drawn]
    for line, found in zip(lines, seen, strict=True):
        passes = len(found) // len(line)
        assert all(sorted(found[p * len(line):(p + 1) * len(line)]) == line.tolist() for p in range(passes))
    assert 0.7 < len(seen[0]) / 1600 < 0.8  # 30 of 40 images


def test_crop_shapes_follow_the_aspect_ratio_where_enough_images_have_it() -> None:
    wide, square, odd = (100, 240), (150, 150), (300, 100)
    sizes = [wide] * 6 + [square] * 20 + [odd] * 2
    crops, group = crop_shapes(sizes, 160, few=5)
    assert crops == (crop_shape([square] * 20 + [odd] * 2, 160), crop_shape([wide], 160))  # odd ones join the nearest
    assert group.tolist() == [1] * 6 + [0] * 22
    assert len(crop_shapes(sizes, 160, few=2).crops) == 3
    assert crop_shapes([(100, 150), (110, 150), (100, 160)], 160, few=1).crops == (crop_shape([(100, 150)], 160),)


def test_an_image_of_a_group_is_shown_almost_whole() -> None:
    """What one shape for all would cut away: at zoom 1 the window covers at least 84 % of each side."""
    rng = np.random.default_rng(0)
    sizes = [(int(h), int(w)) for h, w in rng.integers(100, 260, (200, 2))]
    crops, group = crop_shapes(sizes, 160, few=1)
    for size, kind in zip(sizes, group, strict=True):
        box = window(size, crops[kind], Augment(size=160, scale=(1.0, 1.0)), rng).box
        assert (box[2] - box[0]) / size[1] > 0.8
        assert (box[3] - box[1]) / size[0] > 0.8


def test_passes_differ_in_order() -> None:
    line = np.arange(50)
    first, second = ([i for i, _ in members([line], 50, 0, step)[1]] for step in (0, 1))
    assert first != second
    assert first != [i for i, _ in members([line], 50, 1, 0)[1]]


def test_jitter_of_strength_zero_changes_nothing() -> None:
    photo = Image.fromarray(Noise().read("1").transpose(1, 2, 0))
    assert np.array_equal(np.asarray(jitter(photo, 0.0, np.random.default_rng(0))), np.asarray(photo))
    assert not np.array_equal(np.asarray(jitter(photo, 0.3, np.random.default_rng(0))), np.asarray(photo))
