"""The pictures of a run: best, worst and least sure images with every step side by side."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tagseg.artifacts import LabelSet, MapSet, Scores
from tagseg.data.index import MaskedSet, TaggedSet
from tagseg.disk import write_atomic
from tagseg.methods.protocol import Apart, Fitted
from tagseg.ops.geometry import enlarge
from tagseg.report import pictures
from tagseg.runs.measure import Predicted
from tagseg.runs.setup import Prepared
from tagseg.store import Run
from tagseg.types import U8, ClassMaps

EACH = 4
SIDE = 320


def gallery(
    run: Run, prepared: Prepared, fitted: Fitted, predicted: Predicted, per_image: list[tuple[str, float]], folder: Path
) -> list[dict[str, Any]]:
    """Write the panels into `folder`/gallery and return their list for the report."""
    opened = prepared.val or prepared.opened
    rows = chosen(predicted.val, opened.images, per_image)
    tagged = opened.images.select([i for i, _ in rows])
    inputs = replace(prepared.inputs, tagged=tagged)
    maps = prepared.method.maps(run, tagged, fitted, prepared.cfg)
    pseudo = prepared.method.pseudo(run, inputs, fitted, prepared.cfg)
    steps = getattr(prepared.method, "steps", None)
    on_the_way = steps(run, inputs, fitted, prepared.cfg) if steps else {}
    apart = {name: kind for name, kind in on_the_way.items() if isinstance(kind, Apart)}
    scores = dict(per_image)
    out = []
    for number, (sample, group) in enumerate(rows):
        photo = opened.images.source.read(sample).transpose(1, 2, 0)
        found = maps.get(sample)
        true = _truth(prepared.val.truth if prepared.val else prepared.truth, sample)
        panels = {
            "photo": photo,
            "truth": None if true is None else pictures.overlay(photo, true),
            **{name: _step(photo, sample, kind) for name, kind in on_the_way.items() if not isinstance(kind, Apart)},
            "map": pictures.heat(photo, enlarge(found.scores, found.size), found.classes),
            "pseudo mask": pictures.overlay(photo, pseudo.get(sample).pixels),
            "prediction": pictures.overlay(photo, predicted.val.get(sample).pixels),
        }
        written = [
            [name, _write(folder, f"{number:03d}-{name.replace(' ', '-')}", image)]
            for name, image in panels.items()
            if image is not None
        ]
        by_class = []
        for c in np.flatnonzero(tagged.tags_of(sample)).tolist() if apart else []:
            mine = {n: one_class(photo, kind.maps.get(sample), c + 1, kind.cut) for n, kind in apart.items()}
            own = [[name, _write(folder, f"{number:03d}-{c + 1}-{name}", image)] for name, image in mine.items()]
            by_class.append([tagged.classes[c], own])
        out.append(
            {
                "id": sample,
                "group": group,
                "miou": scores.get(sample),
                "confidence": confidence(predicted.val, sample),
                "tags": _names(tagged, sample),
                "panels": written,
                "by_class": by_class,
            }
        )
    return out


def chosen(labels: LabelSet, images: TaggedSet, per_image: list[tuple[str, float]]) -> list[tuple[str, str]]:
    """(id, group): best and worst where there is truth, least sure by mean confidence, or a plain sample.

    Images with a tag come first: an empty image that was left empty is right, but shows little.
    """
    known = [sample for sample, _ in per_image if sample in labels]
    ranked = [sample for sample in known if images.tags_of(sample).any()] or known
    rows = [(i, "best") for i in ranked[::-1][:EACH]] + [(i, "worst") for i in ranked[:EACH]]
    taken = {i for i, _ in rows}
    looked = [i for i in labels.ids if i not in taken][:2000]
    unsure = sorted(looked, key=lambda i: confidence(labels, i))[:EACH]
    rows += [(i, "least sure") for i in unsure]
    rest = [i for i in looked if i not in set(unsure)]
    return rows + ([] if ranked else [(i, "sample") for i in rest[:: max(1, len(rest) // EACH)][:EACH]])


def one_class(photo: U8, found: ClassMaps, number: int, cut: float | None) -> U8:
    """The map of one class of a photo (H,W,3) alone, or the mask that it is cut to."""
    own = found.classes == number
    scores = enlarge(found.scores[own], found.size)
    if cut is None:
        return pictures.heat(photo, scores, found.classes[own])
    return pictures.overlay(photo, np.where((scores >= cut).any(0), number, 0).astype(np.uint8))


def _step(photo: U8, sample: str, kind: MapSet | LabelSet | Scores) -> U8:
    """A step on the way: maps, labels, or where taps go."""
    if isinstance(kind, LabelSet):
        return pictures.overlay(photo, kind.get(sample).pixels)
    if isinstance(kind, MapSet):
        found = kind.get(sample)
        return pictures.heat(photo, enlarge(found.scores, found.size), found.classes)
    entry = kind.read()[sample]
    offsets = np.array(entry["offsets"], np.float32)
    return pictures.sampling(photo, offsets, entry["stride"], entry["offset"], tuple(entry["shown"]))


def confidence(labels: LabelSet, sample: str) -> float:
    found = labels.get(sample).confidence
    return 1.0 if found is None else round(float(found.mean()) / 255, 4)


def _truth(truth: MaskedSet | None, sample: str) -> U8 | None:
    return truth.mask(sample) if truth is not None and sample in set(truth.ids) else None


def _names(tagged: TaggedSet, sample: str) -> list[str]:
    return [n for n, present in zip(tagged.classes, tagged.tags_of(sample), strict=True) if present]


def _write(folder: Path, name: str, picture: U8) -> str:
    image = Image.fromarray(np.ascontiguousarray(picture))
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    write_atomic(folder / "gallery" / f"{name}.jpg", buffer.getvalue())
    return f"gallery/{name}.jpg"
