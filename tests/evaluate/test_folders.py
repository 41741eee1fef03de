"""Folders of masks made by others: what fits is scored, what does not is refused with what to do about it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagseg.evaluate.folders import evaluate_folders
from tagseg.evaluate.masks import score_masks
from tagseg.types import DataError

A = np.array([[0, 1, 2], [0, 1, 255]], np.uint8)
B = np.array([[2, 2], [1, 0]], np.uint8)


def save(folder: Path, **masks: np.ndarray) -> Path:
    for name, pixels in masks.items():
        path = folder / f"{name.replace('__', '/')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def test_scores_are_those_of_the_arrays(tmp_path: Path) -> None:
    wrong = np.array([[0, 1, 1], [2, 1, 0]], np.uint8)
    pred, truth = save(tmp_path / "p", a=wrong, sub__b=B), save(tmp_path / "t", a=A, sub__b=B)
    got = evaluate_folders(pred, truth, classes=["cat", "dog"])
    assert got == {"notes": [], "classes": ["cat", "dog"],
                   **score_masks([("a", A, wrong), ("sub/b", B, B)], ["cat", "dog"])}
    unnamed = evaluate_folders(pred, truth)
    assert unnamed["classes"] == ["class 1", "class 2"]
    assert unnamed["miou"] == got["miou"]


def test_palette_masks_are_read_by_index(tmp_path: Path) -> None:
    truth = save(tmp_path / "t", a=A)
    image = Image.fromarray(A)
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    (tmp_path / "p").mkdir()
    image.save(tmp_path / "p" / "a.PNG")
    assert evaluate_folders(tmp_path / "p", truth)["miou"] == 1.0


def test_a_missing_prediction_is_listed_and_a_further_one_noted(tmp_path: Path) -> None:
    truth = save(tmp_path / "t", a=A, b=B)
    with pytest.raises(DataError, match=r"1 of 2 masks in .* have no prediction in .*: b;"):
        evaluate_folders(save(tmp_path / "p", a=A, c=B), truth)
    got = evaluate_folders(save(tmp_path / "p", b=B), truth)
    assert got["notes"] == ["1 predictions without truth were left out: c"]
    assert got["images"] == 2
    with pytest.raises(DataError, match="no name is the same: the predictions are called a_mask"):
        evaluate_folders(save(tmp_path / "q", a_mask=A), truth)


def test_sizes_that_differ_are_counted_and_named(tmp_path: Path) -> None:
    truth, pred = save(tmp_path / "t", a=A, b=B), save(tmp_path / "p", a=A.T.copy(), b=B)
    with pytest.raises(DataError, match=r"1 of 2 pairs .* a: prediction 2x3, truth 3x2 pixels"):
        evaluate_folders(pred, truth)


def test_coloured_and_damaged_masks_are_refused(tmp_path: Path) -> None:
    truth = save(tmp_path / "t", a=A, b=B)
    pred = save(tmp_path / "p", a=np.zeros((2, 3, 3), np.uint8), b=B)
    with pytest.raises(DataError, match=r"1 of 2 pairs .* class indices"):
        evaluate_folders(pred, truth)
    (pred / "a.png").write_bytes((truth / "a.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"1 of 2 pairs .*a\.png"):
        evaluate_folders(pred, truth)


def test_black_and_white_masks_are_explained_and_read_on_demand(tmp_path: Path) -> None:
    ones = np.array([[0, 1], [1, 1]], np.uint8)
    half = np.array([[0, 255], [0, 255]], np.uint8)
    pred, truth = save(tmp_path / "p", a=half), save(tmp_path / "t", a=ones)
    with pytest.raises(DataError, match=r"only the values 0 and 255.*--white object") as caught:
        evaluate_folders(pred, truth)
    assert str(pred) in str(caught.value)
    assert str(truth) not in str(caught.value)
    got = evaluate_folders(pred, truth, white_is_object=True)
    assert got["per_class"]["class 1"] == 2 / 3
    assert got["notes"] == ["255 was read as class 1 in: predictions"]
    as_unsure = evaluate_folders(pred, truth, white_is_object=False)
    assert as_unsure["per_class"]["class 1"] == 0.0
    assert "2 predicted pixels are 255 (unsure)" in as_unsure["notes"][0]
    both = evaluate_folders(pred, save(tmp_path / "w", a=ones * 255), white_is_object=True)
    assert both["per_class"]["class 1"] == 2 / 3
    with pytest.raises(DataError, match="leave the setting out"):
        evaluate_folders(truth, truth, white_is_object=True)


def test_values_outside_the_class_list_are_counted(tmp_path: Path) -> None:
    pred, truth = save(tmp_path / "p", a=np.full((2, 3), 9, np.uint8)), save(tmp_path / "t", a=A)
    with pytest.raises(DataError, match=r"predictions hold the values 9 \(6 pixels\); expected 0\.\.2"):
        evaluate_folders(pred, truth, classes=["cat", "dog"])
    with pytest.raises(DataError, match=r"true masks hold the values 2 \(1 pixels\)"):
        evaluate_folders(truth, truth, classes=["cat"])
    with pytest.raises(DataError, match="not one in common"):
        evaluate_folders(pred, truth)


def test_classes_that_truth_never_holds_are_noted(tmp_path: Path) -> None:
    soft = np.array([[0, 1, 100], [120, 1, 0]], np.uint8)
    got = evaluate_folders(save(tmp_path / "p", a=soft), save(tmp_path / "t", a=A))
    assert got["notes"] == ["2 predicted classes are nowhere in the truth and count with IoU 0: 100, 120"]


def test_folders_that_hold_no_masks(tmp_path: Path) -> None:
    truth = save(tmp_path / "t", a=A)
    (tmp_path / "jpg").mkdir()
    (tmp_path / "jpg" / "a.jpg").write_bytes(b"x")
    (tmp_path / "jpg" / ".hidden.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"no PNG file \(1 of other kinds: \.jpg\)"):
        evaluate_folders(tmp_path / "jpg", truth)
    with pytest.raises(DataError, match="no such folder"):
        evaluate_folders(tmp_path / "nowhere", truth)
    save(truth, A=A)
    (truth / "A.png").rename(truth / "a.PNG")
    with pytest.raises(DataError, match="2 masks for 1 names"):
        evaluate_folders(truth, truth)


def test_the_users_folders_are_left_as_they_were(tmp_path: Path) -> None:
    truth = save(tmp_path / "t", a=A)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in truth.iterdir()}
    evaluate_folders(truth, truth)
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in truth.iterdir()} == before
