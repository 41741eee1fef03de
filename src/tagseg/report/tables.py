"""The table of numbers and operating points: rows for the page, a rich table or plain text for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from tagseg.report.wording import (
    NOT_MEASURED,
    NOTHING,
    clean,
    count,
    duration,
    finite,
    listed,
    mapping,
    memory,
    percent,
    points,
    ratio,
)

MEANINGS = {
    "seed": "localisation maps, training images",
    "pseudo": "refined training masks, tags known",
    "val": "the trained network, images without tags",
    "val_post": "the same with several scales and CRF",
    "seed_val": "maps on val with given tags: not a result",
}
RESULTS = ("seed", "pseudo", "val", "val_post")
WITH_THRESHOLD = ("seed", "pseudo", "seed_val")
POINTS = ("auto", "k", "oracle")
_HEADS = ("number", "point", "threshold", "mIoU %", "precision %", "recall %", "images")


@dataclass(frozen=True)
class Row:
    """One number at one operating point, as text; `reason` says why where there is none."""

    name: str
    meaning: str
    point: str
    threshold: str
    miou: str
    precision: str
    recall: str
    images: str
    reason: str = ""


def score_rows(document: Mapping[str, Any]) -> list[Row]:
    """Every number at every operating point in the order of the protocol; `seed_val` only where it was asked for."""
    known = (*mapping(document.get("scores")), *mapping(document.get("missing")))
    names = [name for name in MEANINGS if name in RESULTS or name in known]
    return [row for name in names for row in _rows_of(document, name)]


def reason(document: Mapping[str, Any], name: str) -> str:
    """Why a number is not there, as the run wrote it: "split 'val' has no masks"; "" where it wrote nothing."""
    return clean(mapping(document.get("missing")).get(name) or "")


def miou(document: Mapping[str, Any], name: str, point: str = "auto") -> float | None:
    """The mIoU of one number at one operating point, None where it was not measured."""
    score = mapping(mapping(mapping(document.get("scores")).get(name)).get(point))
    return finite(score.get("miou"))


def gap(document: Mapping[str, Any], name: str) -> str:
    """auto - oracle in percent points: what choosing the threshold without truth costs."""
    auto, oracle = miou(document, name), miou(document, name, "oracle")
    return NOTHING if auto is None or oracle is None else points(auto - oracle)


def headline(document: Mapping[str, Any]) -> str:
    """One honest sentence: the val number where there is one, else the pseudo number and what it is not."""
    if (value := miou(document, "val")) is not None:
        images = mapping(mapping(mapping(document.get("scores")).get("val")).get("auto")).get("images")
        return f"{percent(value)} % mIoU on {count(images)} val images, segmented without their tags"
    if (value := miou(document, "pseudo")) is not None:
        return f"{percent(value)} % mIoU of the training masks, made with their tags; no number on new images"
    if (value := miou(document, "seed")) is not None:
        return f"{percent(value)} % mIoU of the localisation maps on training images; no number on masks"
    return "No score was measured for this run"


def supervision(document: Mapping[str, Any]) -> str:
    """What the fit was given, in one line, with the number of pixel masks it read."""
    given = [clean(item) for item in listed(document.get("supervision"))] or ["supervision not recorded"]
    masks = finite(document.get("masks_read_by_fit"))
    read = "masks read by fit not recorded" if masks is None else f"{masks:.0f} masks read by fit"
    return " + ".join(given) + " · " + read


def cost(document: Mapping[str, Any]) -> str:
    """Time, memory and device in one line."""
    spent = mapping(document.get("cost"))
    parts = [f"{duration(spent.get('seconds'))} of work", f"{memory(spent.get('peak_mb'))} peak",
             clean(spent.get("device") or "device not recorded")]
    if finite(spent.get("evaluation_seconds")) is not None:
        parts.insert(1, f"{duration(spent.get('evaluation_seconds'))} to evaluate")
    return " · ".join(parts)


def summary(document: Mapping[str, Any]) -> Group:
    """What `tagseg run` shows at its end in a terminal: headline, supervision, table, cost, warnings."""
    table = Table(*_HEADS, box=None, header_style="bold", pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in score_rows(document):
        style = "dim" if row.name == "seed_val" or row.reason or row.point == "k" else ""
        table.add_row(*(Text(cell) for cell in _cells(row)), style=style)
    lines = [Text(clean(document.get("title", "tagseg")) + ": " + headline(document), style="bold")]
    lines += [Text(text, style="dim") for text in (supervision(document), cost(document))]
    return Group(*lines, Text(), table, *(Text(text, style="yellow") for text in _notes(document)))


def plain(document: Mapping[str, Any]) -> str:
    """The same for a pipe or a log file: no colours, no box, columns lined up by spaces."""
    cells = [_HEADS, *(_cells(row) for row in score_rows(document))]
    widths = [max(len(row[i]) for row in cells) for i in range(len(_HEADS))]
    lines = [clean(document.get("title", "tagseg")) + ": " + headline(document), supervision(document), cost(document)]
    lines.append("")
    for row in cells:
        left = [text.ljust(w) for text, w in zip(row[:2], widths[:2], strict=True)]
        right = [text.rjust(w) for text, w in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(left + right).rstrip())
    return "\n".join(lines + _notes(document))


def folder_scores(scores: Mapping[str, Any]) -> str:
    """What `tagseg evaluate` found, as text: the means, each class, the contours, what was left out."""
    lines = [f"mIoU {percent(scores.get('miou'))} %  precision {percent(scores.get('precision'))} %  "
             f"recall {percent(scores.get('recall'))} %  boundary IoU {percent(scores.get('boundary_iou'))} %  "
             f"({count(scores.get('images'))} images)"]
    for name, iou in mapping(scores.get("per_class")).items():
        lines.append(f"  {clean(name):20s} {percent(iou):>6s} %")
    if named := mapping(scores.get("named")):
        lines.append(f"classes named in images: F1 {percent(named.get('f1'))} %  "
                     f"precision {percent(named.get('precision'))} %  recall {percent(named.get('recall'))} %")
    return "\n".join(lines + [f"note: {clean(note)}" for note in listed(scores.get("notes"))])


def _rows_of(document: Mapping[str, Any], name: str) -> list[Row]:
    scores = mapping(mapping(document.get("scores")).get(name))
    blank = Row(name, MEANINGS[name], NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING)
    if not scores:
        return [Row(**{**blank.__dict__, "reason": _unmeasured(reason(document, name))})]
    if not has_threshold(name, scores):  # so there are no operating points to choose from
        return [_row(name, "auto", mapping(scores.get("auto")))]
    return [_row(name, point, mapping(scores.get(point))) for point in POINTS]


def has_threshold(name: str, scores: Mapping[str, Any]) -> bool:
    """Whether a number hangs on a threshold: a segmenter has none, nor have labels that were not cut out of maps."""
    auto = mapping(scores.get("auto"))
    return name in WITH_THRESHOLD and (not auto or "threshold" in auto or len(scores) > 1)


def _unmeasured(why: str) -> str:
    return f"{NOT_MEASURED}: {why}" if why else NOT_MEASURED


def _row(name: str, point: str, score: Mapping[str, Any]) -> Row:
    absent = "" if score or point == "k" else NOT_MEASURED
    return Row(name, MEANINGS[name], point, ratio(score.get("threshold")), percent(score.get("miou")),
               percent(score.get("precision")), percent(score.get("recall")), count(score.get("images")), absent)


def _cells(row: Row) -> tuple[str, ...]:
    """A row for the terminal. The reason stands where the operating point would; notes below tell the rest."""
    point = NOT_MEASURED if row.reason else row.point
    return row.name, point, row.threshold, row.miou, row.precision, row.recall, row.images


def _notes(document: Mapping[str, Any]) -> list[str]:
    notes = []
    for name in ("seed", "pseudo"):
        if (difference := gap(document, name)) != NOTHING:
            notes.append(f"{name}: auto − oracle = {difference} points")
    notes += [f"{row.name} {row.reason}" for row in score_rows(document) if row.reason and row.reason != NOT_MEASURED]
    if "seed_val" in mapping(document.get("scores")):
        notes.append(f"seed_val: {MEANINGS['seed_val']}")
    notes += [f"warning: {clean(text)}" for text in listed(document.get("warnings"))]
    if bad := finite(document.get("bad_files")):
        notes.append(f"warning: {bad:.0f} files could not be read; see bad_files.csv")
    return ["", *notes] if notes else []
