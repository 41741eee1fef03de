"""The sweep equals labelling at each threshold; average precision equals its definition; all in one pass."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagseg.evaluate.thresholds import AP_BINS, MapTally, average_precision, flat_within, sweep
from tagseg.ops.confusion import confusion, summary
from tagseg.ops.scores import to_labels
from tagseg.types import DataError

NAMES = ["a", "b", "c", "d"]
Item = tuple[str, np.ndarray, np.ndarray, np.ndarray]


def random_items(seed: int, images: int = 4, side: int = 12) -> list[Item]:
    rng = np.random.default_rng(seed)
    items = []
    for i in range(images):
        classes = np.sort(rng.permutation(4)[: rng.integers(0, 4)]).astype(np.int64) + 1
        scores = rng.random((len(classes), side, side)).astype(np.float32)
        scores = np.where(rng.random(scores.shape) < 0.5, np.round(scores, 1), scores).astype(np.float32)  # ties
        items.append((f"i{i}", rng.choice([0, 1, 2, 3, 4, 255], (side, side)).astype(np.uint8), classes, scores))
    return items


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.booleans(),
       st.lists(st.one_of(st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.0, 2.0, -1.0]), st.floats(0, 1)), max_size=8))
def test_sweep_is_exactly_labelling_at_each_threshold(seed: int, has_background: bool, thresholds: list[float]) -> None:
    items = random_items(seed)
    got = sweep(iter(items), NAMES, thresholds, has_background)
    assert len(got) == len(thresholds)
    for threshold, one in zip(thresholds, got, strict=True):
        counts = sum((confusion(t, to_labels(s, k, threshold, has_background), 4) for _, t, k, s in items),
                     np.zeros((5, 6), np.int64))
        assert one == summary(counts, NAMES, has_background)


def test_sweep_by_hand() -> None:
    truth = np.array([[0, 1], [1, 255]], np.uint8)
    scores = np.array([[[0.4, 0.6], [0.2, 0.9]]], np.float32)
    low, mid, high = sweep([("a", truth, np.array([1]), scores)], ["a"], [0.1, 0.5, 0.95])
    assert low.per_class == {"background": 0.0, "a": 2 / 3}
    assert mid.per_class == {"background": 1 / 2, "a": 1 / 2}
    assert high.per_class == {"background": 1 / 3, "a": 0.0}


def ap_by_definition(scores: np.ndarray, positive: np.ndarray) -> float:
    total, area, recall = positive.sum(), 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        chosen = scores >= threshold
        now = positive[chosen].sum() / total
        area += (now - recall) * positive[chosen].mean()
        recall = now
    return area


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_average_precision_is_its_definition_on_rounded_scores(seed: int) -> None:
    items = random_items(seed)
    got = average_precision(items, NAMES)
    for c, name in enumerate(NAMES, start=1):
        tagged = [(t, s[list(k).index(c)]) for _, t, k, s in items if c in k]
        positive = np.concatenate([(t[t != 255] == c) for t, _ in tagged]) if tagged else np.zeros(0, bool)
        if not positive.any():
            assert got[name] is None
            continue
        scores = np.concatenate([s[t != 255] for t, s in tagged])
        steps = np.minimum(np.floor(scores * AP_BINS), AP_BINS - 1)
        assert got[name] == pytest.approx(ap_by_definition(steps, positive))


def test_average_precision_by_hand() -> None:
    truth = np.array([[1, 0, 1, 2, 255]], np.uint8)
    scores = np.array([[[0.9, 0.8, 0.7, 0.1, 1.0]]], np.float32)
    got = average_precision([("i", truth, np.array([1]), scores)], ["a", "b"])
    assert got == {"a": pytest.approx(0.5 * 1 + 0.5 * 2 / 3), "b": None}  # b has no map, so nothing ranks it


def test_parts_merge_to_the_whole() -> None:
    items, thresholds = random_items(3, images=6), [0.5, 0.2]
    whole, first, second = (MapTally.empty(NAMES, thresholds) for _ in range(3))
    for i, item in enumerate(items):
        whole.add(*item)
        (first if i < 2 else second).add(*item)
    both = first.merged(second)
    assert both.summaries() == whole.summaries()
    assert both.average_precision() == whole.average_precision()
    with pytest.raises(DataError, match="different"):
        first.merged(MapTally.empty(NAMES, [0.5]))


@pytest.mark.parametrize(("truth", "classes", "scores", "says"), [
    (np.full((2, 2), 7), [1], np.zeros((1, 2, 2)), "found values 7"),
    (np.zeros((2, 2)), [5], np.zeros((1, 2, 2)), r"distinct ids in 1\.\.4"),
    (np.zeros((2, 2)), [1, 1], np.zeros((2, 2, 2)), "distinct"),
    (np.zeros((2, 2)), [1], np.zeros((1, 1, 2)), "resize the maps"),
    (np.zeros((2, 2)), [1], np.full((1, 2, 2), 1.5), "normalise"),
    (np.zeros((2, 2)), [1], np.full((1, 2, 2), np.nan), "normalise"),
])
def test_maps_that_do_not_fit_are_refused_by_name(truth: np.ndarray, classes: list[int], scores: np.ndarray,
                                                  says: str) -> None:
    item = ("odd", truth.astype(np.uint8), np.array(classes), scores.astype(np.float32))
    with pytest.raises(DataError, match=says) as caught:
        sweep([item], NAMES, [0.5])
    assert "'odd'" in str(caught.value)


def test_flat_range() -> None:
    thresholds = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert flat_within(thresholds, [0.30, 0.34, 0.345, 0.35, 0.34, 0.2]) == (0.2, 0.5)
    assert flat_within(thresholds, [0.35, 0.1, 0.345, 0.1, 0.1, 0.1]) == (0.1, 0.1)  # an island does not count
    assert flat_within(thresholds, [0.30, 0.34, 0.345, 0.35, 0.34, 0.2], points=0.0) == (0.4, 0.4)
    assert flat_within([0.5], [0.2]) == (0.5, 0.5)
    for bad in ([], [0.1]):
        with pytest.raises(DataError, match="expected at least one"):
            flat_within(thresholds if bad else [], bad)
    with pytest.raises(DataError, match="ascending"):
        flat_within([0.2, 0.1], [0.1, 0.1])


def test_a_hundred_thresholds_cost_about_as_much_as_five() -> None:
    items = random_items(11, images=6, side=150)

    def cost(count: int) -> float:
        tally = MapTally.empty(NAMES, np.linspace(0, 1, count))
        start = time.process_time()
        for item in items:
            tally.add(*item)
        return time.process_time() - start

    ratios = [cost(100) / cost(5) for _ in range(5)]
    assert min(ratios) < 5  # twenty times the thresholds
