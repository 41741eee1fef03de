"""`python -m benchmarks.attention_picture RUN DATA OUT.jpg IMAGE...`: what a run of transfernet sees, class by class.

A row for each class of an image that the run knows and the image has: the photo, the class's own mask, attention,
densified attention, the decoder's mask. Tags are given; DATA is a folder with masks.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.picture import saved
from tagseg.artifacts import Weights
from tagseg.data.folder import open_set
from tagseg.data.index import MaskedSet
from tagseg.methods.transfernet import HALF
from tagseg.report.pictures import contact_sheet, overlay
from tagseg.runs.gallery import one_class
from tagseg.runs.predict import trained
from tagseg.segment.predict_decoder import Drawn, at_point, drawn
from tagseg.segment.train_decoder import load
from tagseg.types import ClassMaps

PARTS = {"attention": "attention", "densified": "dense", "decoder": "drawn"}


def rows(model: Weights, shown: Drawn, classes: tuple[str, ...], truth: MaskedSet, ids: list[str]
         ) -> list[list[np.ndarray]]:  # fmt: skip
    """The pictures of every class of every image: of those `classes` that it has, in the model's order."""
    tagged, net, found = truth.without_masks(), load(model), []
    cfg = at_point(replace(shown, device="cpu", grid=1), model)
    for id in ids:
        image, mask = tagged.source.read(id), truth.mask(id)
        photo = np.ascontiguousarray(image.transpose(1, 2, 0))
        here = {tagged.classes[c] for c in np.flatnonzero(tagged.tags_of(id))}
        for number, name in enumerate(classes):
            if name not in here:
                continue
            own = np.where(mask == tagged.classes.index(name) + 1, number + 1, 0).astype(np.uint8)
            row = [photo, overlay(photo, own)]
            for part in PARTS.values():
                scores = drawn(net, image, np.array([number]), cfg, part, mask.shape)  # type: ignore[arg-type]
                maps = ClassMaps(id, np.array([number + 1]), scores, mask.shape)  # type: ignore[arg-type]
                row.append(one_class(photo, maps, number + 1, HALF if part == "drawn" else None))
            found.append(row)
    return found


def sheet(pictures: list[list[np.ndarray]], out: Path) -> None:
    """All of them as one picture."""
    saved(Image.fromarray(contact_sheet(pictures, ("photo", "truth", *PARTS), side=170)), out)


if __name__ == "__main__":
    place, images, out, *names = sys.argv[1:]
    known, masked = trained(Path(place)), open_set(Path(images)).truth
    assert masked is not None, f"{images} has no masks"
    sheet(rows(known.model, known.cfg.maps, known.classes, masked, names), Path(out))
