"""`python -m benchmarks.attention_picture RUN DATA OUT.jpg IMAGE...`: what a run of transfernet sees, class by class.

A row for each class of an image that the run knows and the image has: the photo, the class's own mask, attention,
densified attention, the decoder's drawing. Tags are given; DATA is a folder with masks.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.picture import saved
from tagseg.data.folder import open_set
from tagseg.inference import coarser
from tagseg.report.pictures import contact_sheet, heat, overlay
from tagseg.runs.predict import trained
from tagseg.segment.predict_decoder import at_point, drawn
from tagseg.segment.train_decoder import load

PARTS = {"attention": "attention", "densified": "dense", "decoder": "drawn"}


def rows(run: Path, data: Path, ids: list[str]) -> list[list[np.ndarray]]:
    """The pictures of every class of every image."""
    known, truth = trained(run), open_set(data).truth
    assert truth is not None, f"{data} has no masks"
    tagged, model, found = truth.without_masks(), load(known.model), []
    for id in ids:
        image, mask = tagged.source.read(id), truth.mask(id)
        photo = np.ascontiguousarray(image.transpose(1, 2, 0))
        here = {tagged.classes[c] for c in np.flatnonzero(tagged.tags_of(id))}
        for number, name in enumerate(known.classes):
            if name not in here:
                continue
            own = np.where(mask == tagged.classes.index(name) + 1, number + 1, 0).astype(np.uint8)
            row = [photo, overlay(photo, own)]
            for part in PARTS.values():
                cfg = at_point(replace(known.cfg.maps, device="cpu"), known.model)
                scores = drawn(model, image, np.array([number]), cfg, part, coarser(cfg.grid)(mask.shape))  # type: ignore[arg-type]
                row.append(heat(photo, scores, np.array([number + 1])))
            found.append(row)
    return found


if __name__ == "__main__":
    place, images, out, *names = sys.argv[1:]
    saved(Image.fromarray(contact_sheet(rows(Path(place), Path(images), names), ("photo", "truth", *PARTS), side=170)),
          Path(out))
