"""What a run finds in images of which nothing is known, where there are images without anything to find."""

from __future__ import annotations

from typing import Any

from tagseg.evaluate import findings
from tagseg.methods.protocol import Fitted
from tagseg.runs.setup import Prepared
from tagseg.store import Run


def screened(run: Run, prepared: Prepared, fitted: Fitted, detail: dict[str, Any]) -> dict[str, Any]:
    """The scores of `evaluate.findings` on the val images by what gave the maps, and IoU and Dice of `detail`'s labels.

    Empty without val truth, for sets in which every image has a tag, and for methods that have no such maps.
    """
    find = getattr(prepared.method, "findings", None)
    tagged, val = prepared.inputs.tagged, prepared.val
    if find is None or val is None or val.truth is None or tagged.tags.any(1).all() or not tagged.has_background:
        return {}
    images = val.truth.without_masks().without_tags()
    found = {name: findings.scores(run, maps, val.truth, findings.Findings()).read()
             for name, maps in find(run, images, fitted, prepared.cfg).items()}  # fmt: skip
    labels = {name: findings.of_labels(detail[name]["confusion"]) for name in ("val", "val_post") if name in detail}
    return {"maps": found, "labels": labels}
