"""The scores of a set of masks: hand-worked cases, a slow reference for each part, halves that merge to the whole."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagseg.evaluate.masks import MaskTally, score_masks
from tagseg.types import DataError

Pair = tuple[str, np.ndarray, np.ndarray]


def mask(*rows: str) -> np.ndarray:
    """Digits are labels, `x` is 255."""
    return np.array([[255 if c == "x" else int(c) for c in row] for row in rows], np.uint8)


def random_pairs(seed: int, images: int = 6, classes: int = 4, lowest: int = 0) -> list[Pair]:
    rng = np.random.default_rng(seed)
    pairs = []
    for i in range(images):
        size = rng.integers(2, 9, 2)
        values = [*rng.integers(lowest, classes + 1, rng.integers(1, 4)), 255]
        truth = np.kron(rng.choice(values, size), np.ones((4, 4))).astype(np.uint8)
        predicted = np.where(rng.random(truth.shape) < 0.7, truth, rng.choice([*range(classes + 1), 255]))
        pairs.append((f"i{i}", truth, predicted.astype(np.uint8)))
    return pairs


def iou_of(label: int, pairs: list[Pair]) -> float | None:
    """Over all pixels of all images at once, ignored ones left out."""
    t = np.concatenate([t[t != 255] for _, t, _ in pairs]) if pairs else np.zeros(0)
    p = np.concatenate([p[t != 255] for _, t, p in pairs]) if pairs else np.zeros(0)
    union = ((t == label) | (p == label)).sum()
    return float(((t == label) & (p == label)).sum() / union) if union else None


def mean_of(values: list[float | None]) -> float | None:
    seen = [v for v in values if v is not None]
    return sum(seen) / len(seen) if seen else None


def close(got: Any, expected: float | None) -> bool:
    return got is None if expected is None else got == pytest.approx(expected)


def test_two_images_by_hand() -> None:
    pairs = [("a", mask("001", "0x1"), mask("011", "00x")), ("b", mask("22", "00"), mask("22", "20"))]
    got = score_masks(pairs, ["cat", "dog", "cow"])
    # background: TP 2+1, truth 3+2, predicted 2+1 -> 3/5; cat: TP 1, truth 2, predicted 2 -> 1/3
    # dog: TP 2, truth 2, predicted 3 -> 2/3; cow: nowhere
    assert got["per_class"] == {"background": 3 / 5, "cat": 1 / 3, "dog": 2 / 3, "cow": None}
    assert got["miou"] == pytest.approx((3 / 5 + 1 / 3 + 2 / 3) / 3)
    assert got["absent"] == ["cow"]
    assert got["images"] == 2
    assert got["confusion"][0] == [3, 1, 1, 0, 0]
    assert got["confusion"][1] == [0, 1, 0, 0, 1]  # the unsure pixel is a miss of the cat
    assert got["per_image"] == [{"id": "a", "miou": pytest.approx((2 / 3 + 1 / 3) / 2)},
                                {"id": "b", "miou": pytest.approx((1 / 2 + 2 / 3) / 2)}]
    assert got["by_tag_count"]["1"] == {"miou": got["miou"], "images": 2}
    assert got["by_tag_count"]["4+"] == {"miou": None, "images": 0}
    assert got["by_company"] == {"cat": None, "dog": None, "cow": None}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_every_part_agrees_with_a_slow_reference(seed: int, has_background: bool) -> None:
    lowest = 0 if has_background else 1
    pairs = random_pairs(seed, lowest=lowest)
    names = ["a", "b", "c", "d"]
    got = score_masks(pairs, names, has_background)
    labels = ["background", *names]
    per_class = {labels[c]: iou_of(c, pairs) for c in range(lowest, 5)}
    assert all(close(got["per_class"][k], v) for k, v in per_class.items())
    assert close(got["miou"], mean_of(list(per_class.values())) or 0.0)
    for (_, truth, predicted), row in zip(pairs, got["per_image"], strict=True):
        assert close(row["miou"], mean_of([iou_of(c, [("", truth, predicted)]) for c in range(lowest, 5)]))
    for count in range(4):
        group = [p for p in pairs if len(set(p[1].ravel().tolist()) - {0, 255}) == count]
        entry = got["by_tag_count"][str(count)]
        assert entry["images"] == len(group)
        assert close(entry["miou"], (mean_of([iou_of(c, group) for c in range(lowest, 5)]) or 0.0) if group else None)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_naming_agrees_with_a_slow_reference(seed: int) -> None:
    names, pairs = ["a", "b", "c", "d"], random_pairs(seed)
    got = score_masks(pairs, names)["named"]
    true = [set(np.unique(t)) - {0, 255} for _, t, _ in pairs]
    said = [set(np.unique(p[t != 255])) - {0, 255} for _, t, p in pairs]

    def share(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    both = sum(len(t & p) for t, p in zip(true, said, strict=True))
    many_true, many_said = sum(map(len, true)), sum(map(len, said))
    assert close(got["precision"], share(both, many_said))
    assert close(got["recall"], share(both, many_true))
    assert close(got["f1"], share(2 * both, many_said + many_true))
    for c, name in enumerate(names, 1):
        hits = sum(c in t and c in p for t, p in zip(true, said, strict=True))
        whole = sum(c in t for t in true) + sum(c in p for p in said)
        assert close(got["f1_per_class"][name], share(2 * hits, whole))


def test_a_class_is_named_where_it_has_a_known_pixel_anywhere() -> None:
    pairs = [("a", mask("01x"), mask("102")), ("b", mask("02x"), mask("001"))]  # pixels of unknown truth do not count
    got = score_masks(pairs, ["cat", "dog", "cow"])["named"]
    assert got == {"f1": 2 / 3, "precision": 1.0, "recall": 0.5, "f1_per_class": {"cat": 1.0, "dog": 0.0, "cow": None}}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_areas_agree_with_a_slow_reference(seed: int) -> None:
    pairs = random_pairs(seed, images=8)
    got = score_masks(pairs, ["a", "b", "c", "d"])["by_area"]
    limits = {"<1%": (0, 0.01), "1-5%": (0.01, 0.05), "5-20%": (0.05, 0.2), ">20%": (0.2, 2)}
    for name, (low, high) in limits.items():
        per_class, objects = [], 0
        for c in range(1, 5):
            group = [p for p in pairs if low <= (p[1] == c).mean() < high and (p[1] == c).any()]
            objects += len(group)
            per_class.append(iou_of(c, group))
        assert got[name]["objects"] == objects
        assert close(got[name]["iou"], mean_of(per_class))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_company_agrees_with_a_slow_reference(seed: int) -> None:
    pairs = random_pairs(seed, images=8)
    names = ["a", "b", "c", "d"]
    got = score_masks(pairs, names)["by_company"]
    for c in range(1, 5):
        mine = [p for p in pairs if (p[1] == c).any()]
        often = [sum(bool((p[1] == k).any()) for p in mine) if k != c else 0 for k in range(1, 5)]
        if max(often) == 0:
            assert got[names[c - 1]] is None
            continue
        k = often.index(max(often)) + 1
        entry = got[names[c - 1]]
        together = [p for p in mine if (p[1] == k).any()]
        alone = [p for p in mine if not (p[1] == k).any()]
        assert (entry["companion"], entry["images_with"], entry["images_without"]) == (
            names[k - 1], len(together), len(alone))
        assert close(entry["with"], iou_of(c, together))
        assert close(entry["without"], iou_of(c, alone))


def test_an_area_on_the_edge_belongs_to_the_larger_group() -> None:
    truth = np.zeros((10, 10), np.uint8)
    truth[0, :5] = 1
    got = score_masks([("a", truth, truth)], ["a"])["by_area"]
    assert {k: v["objects"] for k, v in got.items()} == {"<1%": 0, "1-5%": 0, "5-20%": 1, ">20%": 0}


@pytest.mark.parametrize("cut", [0, 1, 3, 6])
def test_two_parts_merged_are_the_whole(cut: int) -> None:
    pairs, names = random_pairs(5), ["a", "b", "c", "d"]
    first, second = MaskTally.empty(names), MaskTally.empty(names)
    for pair in pairs[:cut]:
        first.add(*pair)
    for pair in pairs[cut:]:
        second.add(*pair)
    before = first.scores()
    assert first.merged(second).scores() == score_masks(pairs, names)
    assert first.scores() == before
    with pytest.raises(DataError, match="different classes"):
        first.merged(MaskTally.empty(["a"]))


def test_contours_of_the_set() -> None:
    truth = np.zeros((30, 30), np.uint8)
    predicted = truth.copy()
    truth[10:16, 10:16] = 1
    predicted[10:16, 11:17] = 1
    perfect = score_masks([("a", truth, truth)], ["a"])
    assert perfect["boundary_iou"] == 1.0
    assert perfect["trimap"] == dict.fromkeys(["1", "2", "5", "10", "20"], 1.0)
    shifted = score_masks([("a", truth, predicted)], ["a"])
    assert shifted["boundary_iou_per_class"]["a"] == pytest.approx(10 / 30)
    assert shifted["boundary_iou"] == pytest.approx(np.mean(list(shifted["boundary_iou_per_class"].values())))
    # within one step of the contour: 20 pixels of the object, 6 missed; 28 outside, 6 wrongly painted
    assert shifted["trimap"]["1"] == pytest.approx((14 / 26 + 22 / 34) / 2)
    widths = [shifted["trimap"][w] for w in ("1", "2", "5", "10", "20")]
    assert widths == sorted(widths)
    assert shifted["trimap"]["20"] == pytest.approx(shifted["miou"])


def test_the_result_is_json_and_empty_sets_are_not_nan() -> None:
    for pairs in ([], [("a", np.full((3, 3), 255, np.uint8), np.zeros((3, 3), np.uint8))], random_pairs(1)):
        got = score_masks(pairs, ["a", "b", "c", "d"])
        assert json.loads(json.dumps(got, allow_nan=False)) == got
    assert score_masks([], ["a"])["miou"] == 0.0
    assert score_masks([("a", mask("xx"), mask("01"))], ["a"])["per_image"] == [{"id": "a", "miou": None}]


@pytest.mark.parametrize(("truth", "predicted", "says"), [
    (mask("01"), mask("0", "1"), "size"),
    (mask("03"), mask("00"), r"truth of 'bad': found values 3"),
    (mask("00"), mask("04"), r"prediction of 'bad': found values 4"),
    (mask("00").astype(np.int64), mask("00"), "expected uint8"),
    (mask("00")[None], mask("00"), "expected uint8"),
    (np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.uint8), "not empty"),
])
def test_a_refused_image_is_named_and_not_counted(truth: np.ndarray, predicted: np.ndarray, says: str) -> None:
    tally = MaskTally.empty(["a", "b"])
    tally.add("good", mask("01"), mask("01"))
    before = tally.scores()
    with pytest.raises(DataError, match=says) as caught:
        tally.add("bad", truth, predicted)
    assert "'bad'" in str(caught.value)
    assert tally.scores() == before


def test_a_set_without_background_refuses_truth_zero() -> None:
    with pytest.raises(DataError, match="1 pixels of value 0"):
        score_masks([("a", mask("01"), mask("11"))], ["a"], has_background=False)


def test_evaluation_does_not_load_torch() -> None:
    code = ("import sys, tagseg.evaluate.masks, tagseg.evaluate.thresholds, tagseg.evaluate.folders; "
            "sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
