"""Every constructor says what was found and what was expected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagseg import types
from tagseg.types import ClassMaps, DataError, Labels, MaskedSample, Sample

IMAGE = np.zeros((3, 4, 5), np.uint8)
TAGS = np.array([True, False])
MASK = np.array([[0, 1, 2, 255, 0]] * 4, np.uint8)
ONE = np.array([2])


def maps(classes: np.ndarray = ONE, scores: np.ndarray | None = None, size: tuple[int, int] = (4, 4)) -> ClassMaps:
    return ClassMaps("a/b", classes, np.zeros((len(classes), 2, 2), np.float32) if scores is None else scores, size)


def test_the_good_ones_are_taken() -> None:
    Sample("a", IMAGE, TAGS)
    MaskedSample("a", IMAGE, TAGS, MASK)
    Labels("a", MASK, np.full((4, 5), 255, np.uint8))
    maps(np.array([1, 254]), np.stack([np.zeros((2, 2)), np.ones((2, 2))]).astype(np.float32))
    maps(np.zeros(0, np.int64))  # an image without tags


@pytest.mark.parametrize(
    ("image", "tags", "found", "expected"),
    [
        (IMAGE.astype(np.float32), TAGS, r"float32 \(3, 4, 5\)", r"uint8 \(3, H, W\) RGB"),
        (IMAGE[0], TAGS, r"uint8 \(4, 5\)", r"\(3, H, W\)"),
        (IMAGE.transpose(1, 2, 0), TAGS, r"uint8 \(4, 5, 3\)", r"\(3, H, W\)"),
        (IMAGE[:, :0], TAGS, r"\(3, 0, 5\)", "at least one pixel"),
        (IMAGE, TAGS.astype(np.uint8), r"uint8 \(2,\)", r"bool \(C,\)"),
        (IMAGE, TAGS[None], r"bool \(1, 2\)", r"bool \(C,\)"),
        (IMAGE, np.zeros(255, bool), r"bool \(255,\)", "C <= 254"),
    ],
)
def test_images_and_tags(image: np.ndarray, tags: np.ndarray, found: str, expected: str) -> None:
    for make in (lambda: Sample("x/1", image, tags), lambda: MaskedSample("x/1", image, tags, MASK)):
        with pytest.raises(DataError, match=rf"'x/1'.*found {found}, expected .*{expected}"):
            make()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (MASK.astype(np.int64), r"found int64 \(4, 5\), expected uint8 \(H, W\)"),
        (MASK[None], r"found uint8 \(1, 4, 5\)"),
        (MASK[:3], r"found size \(3, 5\), expected the image's size \(4, 5\)"),
        (MASK.T, r"found size \(5, 4\), expected the image's size \(4, 5\)"),
        (np.full((4, 5), 3, np.uint8), r"values 3 \(20 px\), expected 0\.\.2 or 255 .*converted to class indices"),
        (np.full((4, 5), 254, np.uint8), r"values 254 \(20 px\)"),
    ],
)
def test_masks(mask: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=rf"mask of 'x'.*{message}"):
        MaskedSample("x", IMAGE, TAGS, mask)


def test_at_most_five_offending_values_are_listed() -> None:
    with pytest.raises(DataError, match=r"10 \(1 px\).* 14 \(1 px\), expected"):
        types.check_mask(np.arange(10, 90, dtype=np.uint8)[None], 4, "m")


@given(st.integers(0, 255), st.integers(0, types.MAX_CLASSES))
def test_a_mask_value_is_good_up_to_the_classes_or_as_ignore(value: int, classes: int) -> None:
    mask = np.array([[0, value]], np.uint8)
    if value <= classes or value == types.IGNORE:
        types.check_mask(mask, classes, "m")
    else:
        with pytest.raises(DataError, match=rf"values {value} \(1 px\), expected 0\.\.{classes} or 255"):
            types.check_mask(mask, classes, "m")


@pytest.mark.parametrize("classes", [[0, 1], [2, 1], [1, 1], [255], [-1]])
def test_classes_are_ascending_and_in_range(classes: list[int]) -> None:
    with pytest.raises(DataError, match=r"classes of maps of 'a/b'.*expected ascending ids in 1\.\.254"):
        maps(np.array(classes))


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.zeros((1, 2, 2)), r"found float64 \(1, 2, 2\), expected float32 \(1, h, w\)"),
        (np.zeros((2, 2, 2), np.float32), r"found float32 \(2, 2, 2\), expected float32 \(1, h, w\)"),
        (np.zeros((1, 4), np.float32), r"found float32 \(1, 4\)"),
        (np.full((1, 1, 2), 1.5, np.float32), r"values in \[1.5, 1.5\], expected values in \[0, 1\]"),
        (np.full((1, 1, 2), -0.5, np.float32), r"values in \[-0.5"),
        (np.array([[[0, np.nan]]], np.float32), "nan"),
        (np.array([[[0, np.inf]]], np.float32), "inf"),
    ],
)
def test_scores(scores: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=rf"maps of 'a/b'.*{message}"):
        maps(ONE, scores)


def test_classes_are_int64_and_the_size_is_one() -> None:
    with pytest.raises(DataError, match=r"found int32 \(1,\), expected int64 \(K,\)"):
        maps(np.array([1], np.int32))
    with pytest.raises(DataError, match=r"size of maps.*found \(0, 4\)"):
        maps(size=(0, 4))


def test_labels() -> None:
    with pytest.raises(DataError, match=r"labels of 'a'.*found int64"):
        Labels("a", MASK.astype(np.int64))
    confidences: list[Any] = [MASK[:2], MASK.astype(np.float32)]
    for confidence in confidences:
        with pytest.raises(DataError, match=r"confidence of 'a'.*expected uint8 \(4, 5\)"):
            Labels("a", MASK, confidence)


def test_truth_is_a_sibling_of_tags_not_a_kind_of_it() -> None:
    assert not issubclass(MaskedSample, Sample)


def test_exit_codes() -> None:
    names = ("UsageError", "DataError", "EnvironmentFault", "IntegrityError", "Interrupted")
    assert [getattr(types, n).exit_code for n in names] == [2, 3, 4, 5, 130]
