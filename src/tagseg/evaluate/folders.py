"""Score any two folders of masks, whoever made them, after looking hard at what they hold."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tagseg.evaluate.masks import Pair, score_masks
from tagseg.types import I64, IGNORE, MAX_CLASSES, U8, DataError

SHOWN = 5  # names listed in a message
Files = tuple[str, Path, Path]  # id, prediction, truth


def evaluate_folders(pred: Path, truth: Path, *, classes: Sequence[str] | None = None, has_background: bool = True,
                     white_is_object: bool | None = None) -> dict[str, Any]:
    """The scores (see `score_masks`) of the PNG masks under `pred` against those of the same relative name in `truth`.

    Every true mask needs a prediction of the same size; further predictions are left out, which `notes` says.
    `classes` are the C foreground names; without them, "class 1", ... up to the highest index found.
    Masks that hold only 0 and 255 are refused, as 255 means "ignored" here: `white_is_object=True` reads them as 0 and
    1, `False` takes 255 as ignored (truth) or unsure (prediction) all the same.
    Each folder is read twice: nothing is scored before everything was checked. Errors: `DataError` with counts.
    """
    files, notes = _matched(pred, truth)
    census = _census(files)
    white = _white_sides(census, pred, truth, white_is_object)
    predicted_values, true_values = (_as_classes(v, w) for v, w in zip(census, white, strict=True))
    names = _names(classes, predicted_values, true_values)
    scores = score_masks(_pairs(files, white), names, has_background)
    notes += _value_notes(white, predicted_values, true_values, unsure=sum(row[-1] for row in scores["confusion"]))
    return {"notes": notes, "classes": names, **scores}


def _matched(pred: Path, truth: Path) -> tuple[list[Files], list[str]]:
    """Each true mask with its prediction, by id, and notes on what is left out."""
    true, found = _masks(truth), _masks(pred)
    missing, extra = sorted(true.keys() - found.keys()), sorted(found.keys() - true.keys())
    if missing:
        strangers = len(missing) == len(true)
        hint = f"; no name is the same: the predictions are called {_listed(extra)}" if strangers else ""
        raise DataError(f"{len(missing)} of {len(true)} masks in {truth} have no prediction in {pred}: "
                        f"{_listed(missing)}; expected one for each, with the same name and subfolder{hint}")
    notes = [f"{len(extra)} predictions without truth were left out: {_listed(extra)}"] if extra else []
    return [(sample, found[sample], true[sample]) for sample in sorted(true)], notes


def _masks(folder: Path) -> dict[str, Path]:
    """The PNG files below a folder by id: relative posix path without suffix."""
    if not folder.is_dir():
        raise DataError(f"{folder}: found no such folder, expected a folder of PNG masks")
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
    masks = [p for p in files if p.suffix.lower() == ".png"]
    if not masks:
        others = sorted({p.suffix.lower() or "no suffix" for p in files})
        raise DataError(f"{folder}: found no PNG file ({len(files)} of other kinds: {_listed(others) or 'none'}); "
                        "expected masks as palette or grey PNG with class indices")
    by_id = {unicodedata.normalize("NFC", p.relative_to(folder).with_suffix("").as_posix()): p for p in masks}
    if len(by_id) < len(masks):
        raise DataError(f"{folder}: found {len(masks)} masks for {len(by_id)} names; expected one file for each "
                        "(names that differ only in .png and .PNG clash)")
    return by_id


def _census(files: list[Files]) -> tuple[I64, I64]:
    """How many pixels hold each value 0..255, in the predictions and in the truth; raises unless every pair fits."""
    predicted_values, true_values = np.zeros(256, np.int64), np.zeros(256, np.int64)
    problems = []
    for sample, pred, truth in files:
        try:
            p, t = _read(pred), _read(truth)
        except DataError as error:
            problems.append(str(error))
            continue
        if p.shape != t.shape:
            problems.append(f"{sample}: prediction {p.shape[1]}x{p.shape[0]}, truth {t.shape[1]}x{t.shape[0]} pixels")
        predicted_values += np.bincount(p.ravel(), minlength=256)
        true_values += np.bincount(t.ravel(), minlength=256)
    if problems:
        raise DataError(f"{len(problems)} of {len(files)} pairs of masks cannot be compared; expected one-channel PNG "
                        "with class indices, both of the same size: " + _listed(problems, "; "))
    return predicted_values, true_values


def _read(path: Path) -> U8:
    from tagseg.data.images import decode_mask  # here, so that scoring arrays does not load the image readers

    return decode_mask(path)


@dataclass(frozen=True)
class _White:
    """Which side reads 255 as class 1."""

    pred: bool
    truth: bool

    def __iter__(self) -> Iterator[bool]:
        return iter((self.pred, self.truth))


def _white_sides(census: tuple[I64, I64], pred: Path, truth: Path, white_is_object: bool | None) -> _White:
    black_white = [bool(v[IGNORE]) and not v[1:IGNORE].any() for v in census]
    if white_is_object is None and any(black_white):
        folders = " and ".join(str(f) for f, found in zip((pred, truth), black_white, strict=True) if found)
        raise DataError(f"the masks in {folders} hold only the values 0 and 255; expected class indices 0, 1, ..., "
                        "as 255 means ignored or unsure here. If 255 means the object, set --white object (read "
                        "as 0 and 1); if it does mean ignored, --white ignore")
    if white_is_object and not any(black_white):
        raise DataError(f"--white object is set, but neither {pred} nor {truth} holds masks of 0 and 255 alone: "
                        "expected such masks; leave the setting out")
    return _White(*(bool(white_is_object) and found for found in black_white))


def _as_classes(values: I64, white: bool) -> I64:
    if not white:
        return values
    moved = values.copy()
    moved[1], moved[IGNORE] = values[IGNORE], 0
    return moved


def _names(classes: Sequence[str] | None, predicted: I64, true: I64) -> list[str]:
    """The class names, given or made up, after a check that the values of both folders fit them."""
    in_pred, in_truth = np.flatnonzero(predicted[1:IGNORE]) + 1, np.flatnonzero(true[1:IGNORE]) + 1
    if classes is None:
        if len(in_pred) and len(in_truth) and not np.intersect1d(in_pred, in_truth).size:
            raise DataError(f"the predictions hold the classes {_listed(in_pred)}, the truth {_listed(in_truth)}: not "
                            "one in common, so these are not the same coding (0/1 against 0/128?); convert one of "
                            "them, or give the class names if it is meant so")
        highest = max([1, *in_pred, *in_truth])
        return [f"class {c}" for c in range(1, int(highest) + 1)]
    if not 1 <= len(classes) <= MAX_CLASSES:
        raise DataError(f"found {len(classes)} class names, expected 1..{MAX_CLASSES} foreground classes")
    for side, found, values in (("true masks", in_truth, true), ("predictions", in_pred, predicted)):
        bad = found[found > len(classes)]
        if len(bad):
            raise DataError(f"the {side} hold the values {_listed(bad)} ({values[bad].sum()} pixels); expected "
                            f"0..{len(classes)} or {IGNORE} for {len(classes)} foreground classes: complete the "
                            "class list, or convert the masks to class indices")
    return list(classes)


def _value_notes(white: _White, predicted: I64, true: I64, unsure: int) -> list[str]:
    sides = " and ".join(side for side, yes in zip(("predictions", "truth"), white, strict=True) if yes)
    notes = [f"255 was read as class 1 in: {sides}"] if sides else []
    if unsure:
        notes.append(f"{unsure} predicted pixels are 255 (unsure); each counts as wrong for its true class")
    strange = np.flatnonzero((predicted[:IGNORE] > 0) & (true[:IGNORE] == 0))
    if len(strange):
        notes.append(f"{len(strange)} predicted classes are nowhere in the truth and count with IoU 0: "
                     f"{_listed(strange)}")
    return notes


def _pairs(files: list[Files], white: _White) -> Iterator[Pair]:
    for sample, pred, truth in files:
        yield sample, _relabel(_read(truth), white.truth), _relabel(_read(pred), white.pred)


def _relabel(mask: U8, white: bool) -> U8:
    return (mask == IGNORE).astype(np.uint8) if white else mask


def _listed(items: Sequence[Any] | np.ndarray, separator: str = ", ") -> str:
    return separator.join(str(i) for i in items[:SHOWN]) + (f"{separator}..." if len(items) > SHOWN else "")
