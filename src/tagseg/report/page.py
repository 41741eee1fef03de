"""RUN/report.json and RUN/gallery -> one self-contained RUN/report.html."""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from tagseg.disk import write_atomic
from tagseg.report import plots, tables
from tagseg.report.colours import hex_colour
from tagseg.report.pictures import as_jpeg, as_png, thumbnail
from tagseg.report.wording import (
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
from tagseg.types import IGNORE, MAX_CLASSES, DataError

PANEL_SIDE = 320  # pixels of the longer side; shown at about 200, sharp on dense screens
GROUPS = ("best", "worst", "least sure", "sample")
_HERE = Path(__file__).parent
_MIX_UPS = 10


def write(folder: Path) -> Path:
    """Render the report of a finished run into `folder`/report.html and return its path.

    Reads `folder`/report.json and the pictures it names; whatever is absent is shown as "not measured". Raises
    `DataError` when report.json is missing or is no JSON object.
    """
    page = render(_read(folder / "report.json"), folder)
    target = folder / "report.html"
    write_atomic(target, page.encode("utf-8"))
    return target


def render(document: Mapping[str, Any], folder: Path) -> str:
    """The page as one HTML text; pictures come from inside `folder` only."""
    return _template().render(
        doc=document, css=Markup((_HERE / "page.css").read_text("utf-8")),
        headline=tables.headline(document), supervision=tables.supervision(document), cost=tables.cost(document),
        warnings=listed(document.get("warnings")), bad_files=finite(document.get("bad_files")),
        facts=_facts(document), scores=_scores(document), cards=_cards(document), ids=_class_ids(document),
        groups=_gallery(document, folder), charts=_charts(document), details=_details(document),
        curves_with_precision=_precision(document), lineage=_lineage(document), tag_counts=_tag_counts(document),
    )  # fmt: skip


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        finalize=_shown, undefined=jinja2.ChainableUndefined,
    )  # fmt: skip
    environment.filters.update(percent=percent, points=points, ratio=ratio, count=count, duration=duration,
                               memory=memory, number=finite, mapping=mapping, listed=listed, colour=_swatch)
    environment.globals.update(MANY=plots.MANY)
    return environment.get_template("page.html.j2")


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a report ({error}); expected the report.json of a finished run, "
                        "run `tagseg run` again to write it") from error
    if not isinstance(document, dict):
        raise DataError(f"{path}: found a JSON {type(document).__name__}, expected an object with the run's scores")
    return document


def _shown(value: object) -> object:
    """What the template prints: null as a dash, text without control characters."""
    if value is None:
        return NOTHING
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _swatch(ids: Mapping[str, int], name: str) -> str:
    return hex_colour(ids.get(name, IGNORE))


def _class_ids(document: Mapping[str, Any]) -> dict[str, int]:
    names = [str(name) for name in listed(document.get("classes"))[:MAX_CLASSES]]
    background = {"background": 0} if document.get("has_background", True) else {}
    return background | {name: i for i, name in enumerate(names, start=1)}


def _facts(document: Mapping[str, Any]) -> list[tuple[str, object]]:
    names = ("method", "data", "backbone", "budget", "seed")
    return [*((name, document.get(name)) for name in names), ("cost", tables.cost(document))]


def _scores(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the score table, together for each number."""
    rows = tables.score_rows(document)
    return [{"name": name, "meaning": tables.MEANINGS[name], "rows": [r for r in rows if r.name == name],
             "gap": tables.gap(document, name)} for name in dict.fromkeys(row.name for row in rows)]


def _cards(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The four numbers, large: value, what it is, oracle and gap where they exist."""
    scores = mapping(document.get("scores"))
    return [{"name": name, "meaning": tables.MEANINGS[name], "miou": tables.miou(document, name),
             "oracle": tables.miou(document, name, "oracle"), "gap": tables.gap(document, name),
             "thresholded": tables.has_threshold(name, mapping(scores.get(name))),
             "reason": tables.reason(document, name)}
            for name in tables.RESULTS]


def _gallery(document: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Rows by group, best first, every row with the same columns; a picture that is not there has no source."""
    rows = [mapping(row) for row in listed(document.get("gallery"))]
    names = list(dict.fromkeys(str(panel[0]) for row in rows for panel in listed(row.get("panels")) if len(panel) == 2))
    found = list(dict.fromkeys(str(row.get("group", "sample")) for row in rows))
    order = [g for g in GROUPS if g in found] + [g for g in found if g not in GROUPS]
    return [{"name": group, "rows": [_gallery_row(row, names, folder) for row in rows
                                     if str(row.get("group", "sample")) == group]} for group in order]


def _gallery_row(row: Mapping[str, Any], names: list[str], folder: Path) -> dict[str, Any]:
    paths = {str(panel[0]): str(panel[1]) for panel in listed(row.get("panels")) if len(panel) == 2}
    panels = [(name, embedded(folder, paths[name]) if name in paths else None) for name in names]
    by_class = [(str(one[0]), [(str(panel[0]), embedded(folder, str(panel[1])))
                               for panel in listed(one[1]) if len(listed(panel)) == 2])
                for one in listed(row.get("by_class")) if len(listed(one)) == 2]  # fmt: skip
    return {"id": row.get("id"), "miou": row.get("miou"), "confidence": row.get("confidence"), "panels": panels,
            "by_class": by_class, "tags": [str(tag) for tag in listed(row.get("tags"))]}


def embedded(folder: Path, name: str) -> str | None:
    """A picture as a data URI: PNG for masks (few colours), JPEG for the rest; None if unreadable or outside."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        return None
    try:
        with Image.open(path) as image:
            picture = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    photo = path.suffix.lower() in (".jpg", ".jpeg")  # a grey photo has few colours too
    flat = not photo and Image.fromarray(picture).getcolors(256) is not None
    small = thumbnail(picture, PANEL_SIDE, exact=flat)
    kind, data = ("png", as_png(small)) if flat else ("jpeg", as_jpeg(small))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _charts(document: Mapping[str, Any]) -> dict[str, Any]:
    """Every SVG of the page but the confusion matrices."""
    curves, scores = mapping(document.get("curves")), mapping(document.get("scores"))
    expected = mapping(mapping(document.get("operating_point")).get("curve"))
    drawn = {name: plots.threshold_curve(name, mapping(curve), expected if name == "seed" else None)
             for name, curve in curves.items()}
    per_class = {name: mapping(mapping(mapping(scores.get(name)).get("auto")).get("per_class"))
                 for name in ("seed", "pseudo", "val")}
    losses = {name: plots.loss_curve(name, listed(rows)) for name, rows in mapping(document.get("histories")).items()}
    rounds = plots.round_curves([mapping(row) for row in listed(document.get("rounds"))])
    found = {str(name): mapping(one) for name, one in mapping(mapping(document.get("findings")).get("maps")).items()}
    findings = {kind: plots.finding_curves(kind, found) for kind in ("froc", "roc")}
    return {"curves": _inline(drawn), "losses": _inline(losses), "rounds": _inline({0: rounds}).get(0, ""),
            "findings": _inline(findings),
            "bars": list(_inline(dict(enumerate(plots.class_bars(per_class)))).values())}


def _precision(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Average precision of the maps for each class, for the curves that have it."""
    found = {n: mapping(mapping(c).get("average_precision")) for n, c in mapping(document.get("curves")).items()}
    return [{"name": name, "average_precision": values} for name, values in found.items() if values]


def _inline(drawn: Mapping[Any, str]) -> dict[Any, Markup]:
    """SVG texts marked as safe: an XML writer made them, so class names in them are escaped already."""
    return {name: Markup(svg) for name, svg in drawn.items() if svg}


def _details(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Confusion, kinds of error and the rest, val first: the first one is shown open."""
    detail = mapping(document.get("detail"))
    order = [n for n in ("val", "val_post", "pseudo") if n in detail] + [n for n in detail if n not in tables.RESULTS]
    names = list(_class_ids(document))
    return [_detail(name, mapping(detail[name]), names) for name in order]


def _detail(name: str, scores: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    counts = [listed(row) for row in listed(scores.get("confusion"))]
    if len(counts) == len(names) + 1:  # no background: row 0 is not scored, and a prediction of 0 is one of nothing
        counts = [[*row[1:-1], sum(finite(v) or 0.0 for v in (row[0], row[-1]))] for row in counts[1:] if row]
    drawn = plots.confusion_matrix(name, names, counts) if counts and len({len(row) for row in counts}) == 1 else ""
    return {"name": name, "meaning": tables.MEANINGS.get(name, ""), "scores": scores, "names": names,
            "matrix": _inline({0: drawn}).get(0, ""), "mix_ups": _mix_ups(names, counts) if drawn else []}


def _mix_ups(names: list[str], counts: list[list[Any]]) -> list[tuple[str, str, float]]:
    """The largest cells beside the diagonal of the row-normalised matrix: (truth, taken for, share of the truth)."""
    cells = []
    for truth, row in zip(names, counts, strict=True):
        numbers = [finite(v) or 0.0 for v in row]
        total = sum(numbers) or 1.0
        cells += [(truth, taken, v / total) for taken, v in zip(names, numbers, strict=False) if taken != truth and v]
    return sorted(cells, key=lambda cell: -cell[2])[:_MIX_UPS]


def _lineage(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages with the names of what they read and their share of the longest time and the largest memory."""
    steps = [mapping(step) for step in listed(document.get("lineage"))]
    made_by = {str(step.get("key")): step.get("stage") for step in steps}
    slowest = max((finite(s.get("seconds")) or 0.0 for s in steps), default=0.0) or 1.0
    largest = max((finite(s.get("peak_mb")) or 0.0 for s in steps), default=0.0) or 1.0
    return [{**step, "key": str(step.get("key") or NOTHING)[:8],
             "reads": [str(made_by.get(str(key)) or "the set") for key in listed(step.get("inputs"))],
             "time_share": 100 * (finite(step.get("seconds")) or 0.0) / slowest,
             "memory_share": 100 * (finite(step.get("peak_mb")) or 0.0) / largest} for step in steps]


def _tag_counts(document: Mapping[str, Any]) -> list[tuple[str, float | None, float]]:
    """Images of each class, with the share of the most frequent one."""
    numbers = {str(k): finite(v) for k, v in mapping(mapping(document.get("tags")).get("per_class")).items()}
    most = max((v or 0.0 for v in numbers.values()), default=0.0) or 1.0
    return [(name, value, 100 * (value or 0.0) / most) for name, value in numbers.items()]
