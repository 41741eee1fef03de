"""Screening scores: hand-worked images, a slow reference for pixels, and the cases with one kind only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tagseg.artifacts import MapSet, write_maps
from tagseg.data.generated import scenes
from tagseg.evaluate import findings
from tagseg.evaluate.findings import Findings, FindingTally, bins, centres, of_labels
from tagseg.store import Run, Work, stage
from tagseg.types import IGNORE, ClassMaps, DataError


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A mask with two objects and an ignored corner, and a map with a peak on one, one next to it, one far."""
    truth, shares = np.zeros((100, 100), np.uint8), np.full((100, 100), 0.01, np.float32)
    truth[10:20, 10:20], truth[60:64, 60:64], truth[90:, 90:] = 1, 3, IGNORE
    shares[15, 15] = 0.9     # on the first
    shares[60, 66] = 0.6     # 3 pixels beside the second: 2 % of the diagonal are 2.8, rounded 3
    shares[30, 80] = 0.7     # on nothing
    shares[95, 95] = 0.99    # where nothing is known
    return truth, shares


def test_objects_points_and_images_by_hand() -> None:
    tally = FindingTally()
    tally.add(*scene(), image=0.8)
    tally.add(np.zeros((100, 100), np.uint8), np.full((100, 100), 0.02, np.float32), image=0.3)
    found = tally.scores()
    assert (found["images"], found["with_object"], found["objects"]) == (2, 1, 2)
    assert found["image_auc"] == 1.0
    # points from the top: .9 finds one, .7 is false, .6 finds the other; then level ground of both images
    assert found["froc_curve"][:3] == [[0, 0.5], [0.5, 0.5], [0.5, 1.0]]
    assert found["froc"]["0.125"] == 0.5
    assert found["froc"]["0.5"] == 1.0
    assert found["froc_mean"] == pytest.approx((0.5 + 0.5 + 5) / 7)
    assert found["pixel_share"] == pytest.approx(116 / (20000 - 100))


def test_pixels_against_a_slow_reference() -> None:
    rng, tally = np.random.default_rng(0), FindingTally()
    all_shares, all_true = [], []
    for _ in range(3):
        truth = (rng.random((20, 30)) < 0.2).astype(np.uint8)
        shares = (0.02 + 0.3 * rng.random((20, 30)) + 0.2 * truth).astype(np.float32)
        truth[:, -1] = IGNORE
        tally.add(truth, shares, float(shares.max()))
        all_shares.append(shares[:, :-1].ravel())
        all_true.append(truth[:, :-1].ravel() > 0)
    shares, true = np.concatenate(all_shares), np.concatenate(all_true)
    order = (shares[true][:, None] > shares[~true][None]).mean()
    found = tally.scores()
    assert found["pixel_auc"] == pytest.approx(order, abs=2e-3)
    cuts = np.unique(shares)
    iou = [(true & (shares >= c)).sum() / (true | (shares >= c)).sum() for c in cuts]
    dice = [2 * (true & (shares >= c)).sum() / (true.sum() + (shares >= c).sum()) for c in cuts]
    assert found["best_iou"] == pytest.approx(max(iou), abs=5e-3)
    assert found["best_dice"] == pytest.approx(max(dice), abs=5e-3)
    assert found["best_at"] == pytest.approx(cuts[int(np.argmax(iou))], abs=0.02)


def test_small_shares_are_told_apart() -> None:
    shares = np.array([0.0, 1e-6, 2e-6, 1e-3, 0.5, 0.999, 1.0], np.float32)
    assert len(set(bins(shares).tolist())) == len(shares)
    assert np.all(np.diff(bins(shares)) > 0)
    np.testing.assert_allclose(centres()[bins(shares[1:-1])], shares[1:-1], rtol=0.01)


@pytest.mark.parametrize("scale", [0.3, 1.0, 8.0])
def test_average_precision_does_not_hang_on_how_far_scores_lie_apart(scale: float) -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random((300, 400)) < 0.02).astype(np.uint8)
    scores = scale * (rng.normal(size=truth.shape) + 3 * truth)
    said = (1 + scores / (8 + np.abs(scores))) / 2  # as `localize.findings.shares`
    tally = FindingTally()
    tally.add(truth, said.astype(np.float32), 0.5)
    order = np.argsort(-scores, axis=None)
    hit = np.cumsum(truth.ravel()[order])
    precision = hit / np.arange(1, hit.size + 1)
    exact = float((precision * truth.ravel()[order]).sum() / hit[-1])
    assert tally.scores()["pixel_ap"] == pytest.approx(exact, abs=0.005)


def test_with_one_kind_only() -> None:
    empty = FindingTally()
    empty.add(np.zeros((9, 9), np.uint8), np.full((9, 9), 0.5, np.float32), 0.5)
    found = empty.scores()
    assert (found["objects"], found["image_auc"], found["pixel_auc"], found["pixel_ap"]) == (0, None, None, None)
    assert found["froc"] is None
    assert (found["best_iou"], found["best_dice"], found["best_at"]) == (None, None, None)
    full = FindingTally()
    full.add(np.ones((9, 9), np.uint8), np.full((9, 9), 0.5, np.float32), 0.5)
    assert (full.scores()["image_auc"], full.scores()["best_iou"]) == (None, 1.0)
    nothing = FindingTally().scores()
    assert (nothing["images"], nothing["froc_curve"], nothing["image_auc"]) == (0, [], None)
    with pytest.raises(DataError, match="expected the same size"):
        FindingTally().add(np.zeros((9, 9), np.uint8), np.zeros((9, 8), np.float32), 0.0)


def test_labels_as_one_class() -> None:
    confusion = [[80, 5, 0, 0], [4, 10, 2, 1], [0, 1, 7, 0]]
    found = of_labels(confusion)
    assert found["iou"] == pytest.approx(20 / (25 + 25 - 20))
    assert found["dice"] == pytest.approx(40 / 50)
    assert of_labels([[9, 1, 0], [0, 0, 0]]) == {"iou": None, "dice": None}


@dataclass(frozen=True)
class Blunt:
    """`whole`: whether maps carry a score of their image."""

    whole: bool = True


@stage(MapSet, version=1)
def drawn(work: Work, cfg: Blunt) -> None:
    """Maps of the true objects, blunted, for the test below."""
    truth = scenes("scenes:lesions?train=6&val=1&size=48", ("train",))

    def one(sample: str) -> ClassMaps:
        shares = np.where(truth.mask(sample)[None, ::2, ::2] > 0, 0.8, 0.1).astype(np.float32)
        return ClassMaps(sample, np.array([1]), shares, (48, 48), shares.max((1, 2)) if cfg.whole else None)

    write_maps(work, truth.ids, lambda ids: map(one, ids), {"classes": ["object"]})


def test_the_stage_reads_maps_and_truth(tmp_path: Path) -> None:
    run, truth = Run(tmp_path, workers=2), scenes("scenes:lesions?train=6&val=1&size=48", ("train",))
    found = findings.scores(run, drawn(run, Blunt()), truth, Findings()).read()
    assert found["images"] == 6
    assert 0 < found["with_object"] < 6
    assert found["image_auc"] == 1.0
    assert found["pixel_auc"] > 0.9
    assert found["froc"]["0.125"] > 0.7
    with pytest.raises(DataError, match="have no score of the whole image"):
        findings.scores(run, drawn(run, Blunt(whole=False)), truth, Findings())
