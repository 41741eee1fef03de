"""Labels of regions by hand, their restriction to tags as properties, and features of regions against plain means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tagseg.ops import regions
from tagseg.ops.geometry import resample

I = 255  # noqa: E741  (no label)


def test_mcof_s7_04_a_mean_at_a_cut_belongs_to_it() -> None:
    means = np.array([[0.5, 0.2], [0.1, 0.0], [0.3, 0.2], [0.6, 0.9], [0.7, 0.7], [0.499, 0.101]], np.float32)
    found = regions.seeds(means, np.array([2, 5]), fg=0.5, bg=0.1)
    assert found.tolist() == [2, 0, I, 5, 2, I]  # exactly fg, exactly bg, between, two above, a tie, between
    assert regions.seeds(means, np.array([2, 5]), fg=0.5, bg=0.1, has_background=False).tolist() == [2, I, I, 5, 2, I]
    nothing = np.zeros((3, 0), np.float32)
    assert regions.seeds(nothing, np.zeros(0, np.int64), fg=0.5, bg=0.1).tolist() == [0, 0, 0]
    assert regions.seeds(nothing, np.zeros(0, np.int64), fg=0.5, bg=0.1, has_background=False).tolist() == [I, I, I]


def test_restriction_to_tags_by_hand() -> None:
    shares = np.array([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0]], np.float32)
    held = regions.restricted(shares, regions.allowance(np.array([False, True])))
    np.testing.assert_allclose(held, [[0.4, 0, 0.6], [0, 0, 0]], atol=1e-7)
    bare = regions.allowance(np.array([False, True]), has_background=False)
    np.testing.assert_allclose(regions.restricted(shares, bare), [[0, 0, 1], [0, 0, 0]])


def test_tags_enter_by_bayes_rule() -> None:
    """Four classes that share a body and are tagged in a quarter of the images each: a body is as likely as it was."""
    shares = np.array([[0.4, 0.15, 0.15, 0.15, 0.15]], np.float32)
    one, usual = np.array([False, True, False, False]), np.full(4, 0.25)
    np.testing.assert_allclose(regions.restricted(shares, regions.allowance(one))[0, [0, 2]], [0.4 / 0.55, 0.15 / 0.55])
    np.testing.assert_allclose(
        regions.restricted(shares, regions.allowance(one, usual=usual))[0], [0.4, 0, 0.6, 0, 0], rtol=1e-6)
    always = regions.allowance(np.array([True]), usual=np.ones(1))
    np.testing.assert_array_equal(always, [1, 1])  # a tag that every image has says nothing


@given(st.integers(0, 99))
def test_bayes_rule_over_tags_equals_counting(seed: int) -> None:
    """A world where look and tags hang on the class alone: p(k | look, tags) counted from its table."""
    rng = np.random.default_rng(seed)
    share, look, usual = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(5), 4), rng.uniform(0.2, 0.9, 3)
    present = rng.random(3) < 0.7
    tags = np.where(present, usual, 1 - usual)
    given_k = np.array([tags.prod(), *(tags.prod() / tags[k] * present[k] for k in range(3))])  # a class brings its tag
    for v in range(5):
        plain = share * look[:, v]
        held = regions.restricted((plain / plain.sum())[None], regions.allowance(present, usual=usual))[0]
        joint = plain * given_k
        np.testing.assert_allclose(held, joint / joint.sum(), rtol=1e-4, atol=1e-7)


def test_mcof_s7_13_nothing_on_what_is_allowed_gives_no_label_instead_of_the_first() -> None:
    held = regions.restricted(np.array([[0.0, 1.0, 0.0]], np.float32), regions.allowance(np.array([False, True])))
    assert regions.confident(held, keep=0.0, present=np.array([False, True]), keep_tag=False).tolist() == [I]
    assert regions.confident(held, keep=0.0, present=np.array([False, True])).tolist() == [I]


def test_a_region_is_labelled_from_the_cut_on() -> None:
    held = np.array([[0.4, 0.6], [0.41, 0.59], [0.9, 0.1]], np.float32)
    present = np.array([True])
    assert regions.confident(held, keep=0.6, present=present).tolist() == [1, I, 0]


def test_a_class_that_would_vanish_keeps_its_likeliest_region() -> None:
    held = np.array([[0.9, 0.1, 0.0], [0.7, 0.25, 0.05], [0.6, 0.3, 0.1]], np.float32)
    both = np.array([True, True])
    assert regions.confident(held, keep=0.6, present=both, keep_tag=False).tolist() == [0, 0, 0]
    assert regions.confident(held, keep=0.6, present=both).tolist() == [0, 2, 1]  # 1 took the best, 2 the next
    assert regions.confident(held, keep=0.6, present=np.array([True, False])).tolist() == [0, 0, 1]
    assert regions.confident(held[2:], keep=0.6, present=both).tolist() == [1]  # one region cannot hold two


def table(rows: int, classes: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(classes + 1, 0.3), rows).astype(np.float32)


@given(st.integers(1, 8), st.integers(0, 2**5 - 1), st.floats(0, 1), st.booleans(), st.integers(0, 99))
def test_mcof_s7_05_mined_labels_are_background_tags_or_none(rows: int, tags: int, keep: float, background: bool,
                                                              seed: int) -> None:
    present = np.array([bool(tags >> k & 1) for k in range(5)])
    usual = np.random.default_rng(seed).random(5) if seed % 2 else None
    held = regions.restricted(table(rows, 5, seed), regions.allowance(present, background, usual))
    assert np.all((np.abs(held.sum(1) - 1) < 1e-5) | (held.sum(1) == 0))
    found = regions.confident(held, keep=keep, present=present)
    allowed = {I, *(np.flatnonzero(present) + 1).tolist(), *([0] if background else [])}
    assert set(found.tolist()) <= allowed
    if present.sum() <= rows and (held[:, 1:][:, present] > 0).all():
        assert {int(c) for c in np.flatnonzero(present) + 1} <= set(found.tolist())  # none vanishes
    sure = found != I
    plain = regions.confident(held, keep=keep, present=present, keep_tag=False)
    assert np.all(plain[(plain != found) & sure] != found[(plain != found) & sure])
    assert (plain != found).sum() <= present.sum()


def test_mcof_s7_03_votes_by_hand() -> None:
    ids = np.array([[0, 0, 0, 1], [2, 2, 3, 1], [2, 2, 3, 4]], np.int32)
    labels = np.array([[1, 1, 0, 2], [3, 3, I, 1], [1, 1, I, I]], np.uint8)
    labels_of = regions.votes(labels, ids, 0.5)
    # 0: two of three; 1: a tie goes to the lower; 2: a tie again; 3 and 4: only 255
    assert labels_of.tolist() == [1, 1, 1, I, I]
    assert regions.votes(labels, ids, 0.6).tolist() == [1, I, I, I, I]
    half = np.array([[2, I, I, I]], np.uint8)
    assert regions.votes(half, np.zeros((1, 4), np.int32), 1.0).tolist() == [2]  # 255 does not vote
    assert labels_of[ids].shape == ids.shape  # constant within a region


@given(st.integers(2, 7), st.integers(2, 7), st.integers(1, 5), st.floats(0.1, 1), st.integers(0, 99))
def test_votes_against_counting_one_by_one(h: int, w: int, count: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, count, (h, w)).astype(np.int32)
    ids.flat[:count] = np.arange(min(count, h * w))[: ids.size]
    labels = rng.choice([0, 1, 2, I], (h, w)).astype(np.uint8)
    for region, found in enumerate(regions.votes(labels, ids, share)):
        own = [v for v in labels[ids == region].tolist() if v != I]
        if not own:
            assert found == I
            continue
        best = min(set(own), key=lambda v: (-own.count(v), v))
        assert found == (best if own.count(best) >= share * len(own) else I)


def test_mcof_s7_07_means_over_regions() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 4, (6, 5)).astype(np.int32)
    features = torch.from_numpy(rng.normal(size=(1, 3, 6, 5)).astype(np.float32))
    cells = regions.coverage(ids, 4, stride=1, offset=0.0, in_size=(6, 5), grid=(6, 5))
    means = cells @ features[0].flatten(1).T.numpy()
    own = np.stack([features[0].numpy()[:, ids == j].mean(1) for j in range(4)])
    np.testing.assert_allclose(means, own, atol=1e-6)
    changed = features.clone()
    changed[0, :, torch.from_numpy(ids != 2)] += 100  # outside of region 2
    np.testing.assert_allclose(cells[2] @ changed[0].flatten(1).T.numpy(), own[2], atol=1e-6)
    np.testing.assert_allclose(cells @ np.full((30, 1), 7.0), np.full((4, 1), 7.0), atol=1e-5)
    pixels = np.bincount(ids.ravel())
    np.testing.assert_allclose(pixels @ means, features[0].flatten(1).sum(1).numpy(), atol=1e-5)


@given(st.sampled_from([(16, 7.5), (16, 0.0), (16, 15.0), (8, 3.5), (4, 1.5)]), st.integers(5, 60), st.integers(5, 60),
       st.integers(0, 9))
def test_coverage_reads_what_enlarging_the_features_to_pixels_and_averaging_reads(
    net: tuple[int, float], h: int, w: int, seed: int
) -> None:
    stride, offset = net
    rng = np.random.default_rng(seed)
    in_size, grid = (48, 64), (-(-48 // stride), -(-64 // stride))
    features = torch.from_numpy(rng.normal(size=(1, 2, *grid)).astype(np.float32))
    ids = rng.integers(-1, 5, (h, w)).astype(np.int32)  # -1 belongs to nothing, 5 and beyond are not asked for
    cells = regions.coverage(ids, 4, stride=stride, offset=offset, in_size=in_size, grid=grid)
    full = resample(features, stride=stride, offset=offset, in_size=in_size, out_size=(h, w))[0].numpy()
    means = cells @ features[0].flatten(1).T.numpy()
    for region in range(4):
        mask = ids == region
        own = full[:, mask].mean(1) if mask.any() else np.zeros(2)
        np.testing.assert_allclose(means[region], own, atol=2e-5)


def test_boxes_and_what_of_them_is_covered() -> None:
    ids = np.array([[0, 0, 1, -1], [0, 2, 1, -1], [0, 2, 2, -1]], np.int32)
    found = regions.boxes(ids, 4)
    assert found.tolist() == [[0, 0, 3, 2], [0, 2, 2, 3], [1, 1, 3, 3], [0, 0, 0, 0]]
    shares = regions.in_boxes(ids, found, 2)
    np.testing.assert_allclose(shares[1], np.ones((2, 2)), atol=1e-6)
    np.testing.assert_allclose(shares[2], [[1, 0], [1, 1]], atol=1e-6)
    np.testing.assert_allclose(shares[0], [[1, 2 / 3], [1, 0]], atol=1e-6)  # three rows in two cells: 1.5 pixels each
    assert shares[3].sum() == 0
    assert regions.in_boxes(ids, regions.boxes(ids, 0), 2).shape == (0, 2, 2)


def test_boxes_in_the_networks_input_are_scaled_and_ordered_as_roi_align_wants_them() -> None:
    ids = np.zeros((4, 8), np.int32)
    ids[1:3, 2:6] = 1
    found = regions.boxed(ids, 2, in_size=(8, 32), side=7)
    assert found.boxes.tolist() == [[0, 0, 32, 8], [8, 2, 24, 6]]
    assert found.masks.shape == (2, 7, 7)
    assert found.cells.shape == (2, 0)


@pytest.mark.parametrize("count", [1, 3])
def test_regions_for_means_have_no_boxes(count: int) -> None:
    found = regions.pooled(np.zeros((4, 4), np.int32), count, stride=4, offset=1.5, in_size=(8, 8), grid=(2, 2))
    assert found.cells.shape == (count, 4)
    assert found.cells[0].sum() == pytest.approx(1)
    assert found.cells[1:].sum() == 0
