"""A few numbers of every stage of the tiny run: when they move, a stage's version must move with them.

`python tests/golden_values.py` writes methods/golden/cam.json anew; a changed file is a commit
of its own that names old and new numbers and the reason.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tagseg.artifacts import LabelSet, MapSet

FILE = Path(__file__).parent / "methods" / "golden" / "cam.json"


def shares(labels: LabelSet, classes: int) -> list[float]:
    """Share of pixels of each label 0..C."""
    counts = sum(np.bincount(one.pixels.ravel(), minlength=classes + 1)[: classes + 1] for one in labels)
    return [round(float(c), 4) for c in counts / counts.sum()]


def spread(maps: MapSet) -> dict[str, float]:
    """Mean and standard deviation of all scores."""
    scores = np.concatenate([one.scores.ravel() for one in maps])
    return {"mean": round(float(scores.mean()), 4), "sd": round(float(scores.std()), 4)}


def of(tiny: Any) -> dict[str, Any]:
    """The numbers of a finished tiny run, by stage, with the version that made each."""
    fitted, document = tiny.fitted, tiny.document
    classes = len(document["classes"])
    losses = {stage: round(history[-1][1], 4) for stage, history in document["histories"].items()}
    versions = {entry["stage"]: entry["version"] for entry in document["lineage"]}
    return {
        "versions": versions,
        "losses": losses,
        "maps": spread(fitted.maps),
        "threshold": document["operating_point"]["threshold"],
        "labels": shares(fitted.labels, classes),
        "miou": {f"{entry} {point}": round(scores["miou"], 4)
                 for entry, points in document["scores"].items() for point, scores in points.items()},
    }


if __name__ == "__main__":
    import tempfile

    import torch

    import tiny

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        FILE.write_text(json.dumps(of(tiny.make(Path(folder) / "run")), indent=1) + "\n")
