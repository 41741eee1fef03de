"""A run folder as the command line leaves it, with plausible but invented numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tagseg.data.scenes import preset, render
from tagseg.evaluate.masks import score_masks
from tagseg.report import pictures

Document = dict[str, Any]


def _score(miou: float, names: list[str], threshold: float | None = None) -> Document:
    score = {"miou": miou, "precision": miou + 0.1, "recall": miou + 0.05, "images": 12,
             "per_class": dict.fromkeys(["background", *names], miou)}
    return score if threshold is None else score | {"threshold": threshold}


def _curve(auto: float, oracle: float, names: list[str]) -> Document:
    thresholds = [round(0.05 * i, 2) for i in range(1, 20)]
    return {"thresholds": thresholds, "miou": [0.5 - (t - oracle) ** 2 for t in thresholds], "auto": auto,
            "oracle": oracle, "flat": [oracle - 0.1, oracle + 0.1], "images": 12, "note": "a note on the curve",
            "average_precision": dict.fromkeys(names, 0.7)}


def _masks(names: list[str]) -> Document:
    rng = np.random.default_rng(0)
    pairs = [(str(i), *rng.integers(0, len(names) + 1, (2, 24, 24), dtype=np.uint8)) for i in range(4)]
    scores = score_masks(pairs, names)
    scores.pop("per_image")
    return scores


def make_document(names: list[str]) -> Document:
    """A whole report.json for these classes; `val_post` was not measured."""
    masks = _masks(names)
    return {
        "title": "cam on scenes", "method": "cam", "data": "scenes", "seed": 0, "budget": "quick",
        "backbone": "mobilenet_v2", "version": "0.1.0", "commit": "abc1234", "command": "tagseg run cam scenes",
        "classes": names, "has_background": True, "supervision": ["tags of 12 images"], "masks_read_by_fit": 0,
        "cost": {"seconds": 3724.0, "peak_mb": 1800.0, "device": "cpu", "evaluation_seconds": 9.0},
        "scores": {
            "seed": {"auto": _score(0.451, names, 0.35), "oracle": _score(0.469, names, 0.55)},
            "pseudo": {"auto": _score(0.512, names, 0.35), "oracle": _score(0.529, names, 0.5)},
            "val": {"auto": _score(0.487, names)},
        },
        "missing": {"val_post": "it was not asked for"},
        "curves": {"seed": _curve(0.35, 0.55, names), "pseudo": _curve(0.35, 0.5, names)},
        "operating_point": {"rule": "area prior", "threshold": 0.35, "note": "It saw no masks.",
                            "curve": {"thresholds": [0.2, 0.4, 0.6], "evidence_left": [0.4, 0.5, 0.4]}},
        "detail": {"pseudo": masks, "val": masks},
        "histories": {"localize.classify.train": [[i, 1.0 / (i + 1), 0.01] for i in range(40)]},
        "lineage": [
            {"stage": "localize.classify.train", "state": "done", "seconds": 60.0, "peak_mb": 900.0,
             "key": "aa11bb22cc", "version": 1, "part": "fit", "inputs": ["set"],
             "events": ["batch halved for memory"]},
            {"stage": "localize.cam.maps", "state": "ran", "seconds": 12.3, "peak_mb": 400.0, "key": "dd33ee44ff",
             "version": 2, "inputs": ["aa11bb22cc"], "events": [], "part": "fit"},
        ],
        "warnings": ["two tags always come together"], "bad_files": 3,
        "tags": {"images": 12, "negatives": 2, "per_class": dict.fromkeys(names, 5)}, "gallery": [],
    }  # fmt: skip


@pytest.fixture
def document() -> Document:
    return make_document(["crab", "jay", "frog"])


@pytest.fixture
def make() -> Callable[[list[str]], Document]:
    return make_document


@pytest.fixture
def put(tmp_path: Path) -> Callable[[Document], Path]:
    """Write a document as the report.json of a run folder, and return the folder."""

    def write(document: Document) -> Path:
        (tmp_path / "report.json").write_text(json.dumps(document), "utf-8")
        return tmp_path

    return write


@pytest.fixture
def add_gallery(tmp_path: Path) -> Callable[[Document, int], Document]:
    """Give the document `rows` gallery rows of five panels, drawn from generated scenes."""

    def add(document: Document, rows: int) -> Document:
        (tmp_path / "gallery").mkdir(exist_ok=True)
        cfg = preset("basic")
        document["gallery"] = [_row(tmp_path, i, render(cfg, 0, i)) for i in range(rows)]
        return document

    return add


def _row(folder: Path, index: int, sample: Any) -> Document:
    photo = np.ascontiguousarray(sample.image.transpose(1, 2, 0))
    mask = pictures.colour_mask(sample.mask)
    drawn = {"photo": pictures.as_jpeg(photo), "truth": pictures.as_png(mask), "map": pictures.as_jpeg(photo),
             "pseudo mask": pictures.as_png(mask), "prediction": pictures.as_png(pictures.overlay(photo, sample.mask))}
    panels = []
    for name, data in drawn.items():
        path = f"gallery/{index:03d}-{name.replace(' ', '-')}.{_ending(data)}"
        (folder / path).write_bytes(data)
        panels.append([name, path])
    group = ("worst", "best", "least sure")[index % 3]
    return {"id": f"{index:04d}", "group": group, "miou": 0.4, "confidence": 0.7, "tags": ["crab"], "panels": panels}


def _ending(data: bytes) -> str:
    return "jpg" if data.startswith(b"\xff\xd8") else "png"
