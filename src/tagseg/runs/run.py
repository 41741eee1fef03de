"""`run`: fit on tags, predict without tags, measure, and leave one folder that tells all of it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tagseg import cache, config
from tagseg._version import VERSION
from tagseg.artifacts import png
from tagseg.data.files import spacing_of
from tagseg.data.folder import TooManyBad
from tagseg.data.images import mask_reads, reset_mask_reads
from tagseg.disk import lock, write_atomic
from tagseg.methods.protocol import Fitted
from tagseg.report import page
from tagseg.runs import setup
from tagseg.runs.gallery import gallery
from tagseg.runs.given import SEEN, seen_before
from tagseg.runs.measure import Measured, Predicted, measured, predict_all
from tagseg.runs.request import REQUEST, remembered
from tagseg.runs.setup import Prepared, Request, prepare
from tagseg.store import RECORD, Artifact, Run, Step, forget, library_versions, verify
from tagseg.types import IntegrityError

Progress = Callable[[str, int, int, str], None]
MARKER = ".tagseg-run"


def plan(request: Request) -> tuple[list[Step], Prepared]:
    """Every stage of fit and prediction with its state, and what was understood of the data; nothing is run."""
    prepared = prepare(request)
    return _planned(prepared), prepared


def _planned(prepared: Prepared) -> list[Step]:
    planning = Run(prepared.cache, planning=True)
    fitted = prepared.method.fit(planning, prepared.inputs, prepared.cfg)
    predict_all(planning, prepared, fitted)
    return planning.steps


def run(
    request: Request,
    progress: Progress = lambda stage, done, total, note: None,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Do everything, going on where an earlier try stopped; returns the document of report.json."""
    out = request.out
    setup.check_outside(request.data, out)
    setup.own_folder(out, MARKER)
    with lock(out / ".lock", wait=False):
        prepared = _prepared(out, request)
        steps = _planned(prepared)
        _write_asked(out, prepared, steps)
        cache.register(prepared.cache, out, [s.path for s in steps])
        logged = Logged(out / "log.jsonl", progress)
        commit = setup.commit()
        work = Run(prepared.cache, request.workers, progress=logged, stopping=stopping, commit=commit)
        fitted, reads = fit_without_truth(work, prepared)
        fit_steps = len(work.steps)
        predicted = predict_all(work, prepared, fitted)
        predict_steps = len(work.steps)
        _write_model(out, prepared, predicted, fitted)
        numbers = measured(work, prepared, fitted, predicted)
        pictures = gallery(work, prepared, fitted, predicted, numbers.per_image, out)
        cache.register(prepared.cache, out, [s.path for s in work.steps])
        parts = ["fit"] * fit_steps + ["predict"] * (predict_steps - fit_steps)
        lineage = _lineage(work.steps, parts + ["evaluate"] * (len(work.steps) - len(parts)))
        document = _document(prepared, fitted, numbers, lineage, reads, pictures)
        _write_results(out, {**document, "commit": commit})
        return {**document, "commit": commit}


def _prepared(out: Path, request: Request) -> Prepared:
    """`prepare`; a set that is refused for its bad files leaves the whole list of them."""
    try:
        return prepare(request)
    except TooManyBad as refused:
        write_atomic(out / "bad_files.csv", table([("file", "reason", "detail"), *refused.bad]))
        raise


@dataclass
class Logged:
    """Progress that also leaves a line in log.jsonl when a stage of work begins and ends."""

    file: Path
    progress: Progress
    _stage: str = ""

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        self.progress(stage, done, total, note)
        if stage != self._stage or done >= total > 0:
            line = {"time": round(time.time(), 3), "stage": stage, "done": done, "total": total, "note": note}
            with open(self.file, "a") as handle:
                handle.write(json.dumps(line) + "\n")
        self._stage = stage


def fit_without_truth(work: Run, prepared: Prepared) -> tuple[Fitted, int]:
    """The fit, and how many masks were opened during it: the decoder's own log, which must stay empty."""
    reset_mask_reads()
    fitted: Fitted = prepared.method.fit(work, prepared.inputs, prepared.cfg)
    reads = mask_reads()
    if reads:  # masks of other classes are counted apart
        raise IntegrityError(
            f"the fit opened {len(reads)} masks, the first is {reads[0]}: a method that learns from tags "
            "must not; this is a fault of the method's code"
        )
    return fitted, len(reads)


def _write_asked(out: Path, prepared: Prepared, steps: list[Step]) -> None:
    write_atomic(out / "bad_files.csv", table([("file", "reason", "detail"), *prepared.bad_files]))
    rows = [{"stage": s.stage, "key": s.key, "state": s.state, "inputs": s.inputs} for s in steps]
    write_atomic(out / "plan.json", json.dumps(rows, indent=1).encode())
    write_atomic(out / REQUEST, remembered(prepared.request))


def table(rows: list[Any]) -> bytes:
    """Rows as CSV bytes."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def _lineage(steps: list[Step], parts: list[str]) -> list[dict[str, Any]]:
    """One entry for each artifact, in the order of first use, with what it cost when it was made."""
    seen: dict[str, dict[str, Any]] = {}
    for step, part in zip(steps, parts, strict=True):
        record = verify(step.path)
        seen.setdefault(
            step.key,
            {
                "stage": step.stage,
                "part": part,
                "state": step.state,
                "key": step.key,
                "version": record["version"],
                "seconds": record["seconds"],
                "peak_mb": record["peak_mb"],
                "inputs": step.inputs,
                "events": record["events"],
                "commit": record.get("commit"),
            },
        )
    return list(seen.values())


def _document(
    prepared: Prepared,
    fitted: Fitted,
    numbers: Measured,
    lineage: list[dict[str, Any]],
    reads: int,
    pictures: list[dict[str, Any]],
) -> dict[str, Any]:
    request, tagged = prepared.request, prepared.inputs.tagged
    own = [s for s in lineage if s["part"] != "evaluate"]
    name = request.data if request.data.startswith("scenes:") else Path(request.data).resolve().name
    cost = {
        "seconds": round(sum(s["seconds"] for s in own), 1),
        "peak_mb": max(s["peak_mb"] for s in own),
        "device": setup.device_text(prepared.device, prepared.precision),
        "evaluation_seconds": round(sum(s["seconds"] for s in lineage if s["part"] == "evaluate"), 1),
    }
    point = {n: v for n, v in fitted.point.read().items() if n in ("rule", "origin", "threshold", "note", "curve")}
    return {
        "title": f"{request.method} on {name}",
        "method": request.method,
        "data": name,
        "seed": request.seed,
        "budget": request.budget,
        "backbone": prepared.backbone,
        "version": VERSION,
        "config": config_hash(prepared.cfg),
        "command": request.command,
        "classes": list(tagged.classes),
        "has_background": tagged.has_background,
        "supervision": setup.ledger(prepared),
        "masks_read_by_fit": reads,
        "cost": cost,
        "scores": numbers.scores,
        "missing": numbers.missing,
        "curves": numbers.curves,
        "operating_point": point,
        "detail": numbers.detail,
        "rounds": numbers.rounds,
        "findings": numbers.findings,
        "histories": _histories(lineage, prepared.cache),
        "lineage": lineage,
        "warnings": list(prepared.warnings),
        "bad_files": len(prepared.bad_files),
        "tags": {
            "images": len(tagged),
            "negatives": int((~tagged.tags.any(1)).sum()),
            "per_class": dict(zip(tagged.classes, tagged.tags.sum(0).tolist(), strict=True)),
        },
        "gallery": pictures,
    }


def config_hash(cfg: Any) -> str:
    """The first digits of the sha256 of every keyed setting."""
    return hashlib.sha256(json.dumps(config.canonical(cfg), sort_keys=True).encode()).hexdigest()[:16]


def _histories(lineage: list[dict[str, Any]], cache_folder: Path) -> dict[str, Any]:
    """The losses of every training by its stage's name, numbered where a stage was trained more than once."""
    found: dict[str, Any] = {}
    for step in lineage:
        file = cache_folder / f"{step['stage']}-{step['key'][:24]}" / "history.json"
        if file.exists():
            times = sum(name.split(" #")[0] == step["stage"] for name in found)
            found[step["stage"] + (f" #{times + 1}" if times else "")] = json.loads(file.read_text())
    return found


def scores_document(document: dict[str, Any]) -> dict[str, Any]:
    """scores.json: the numbers and where they come from; `seed` is the maps' entry, not the random seed."""
    head = {n: document[n] for n in ("method", "data", "budget", "backbone", "version", "commit", "config")}
    return {
        **head,
        "command": document["command"],
        "random_seed": document["seed"],
        "ledger": document["supervision"],
        "masks_read_by_fit": document["masks_read_by_fit"],
        "cost": document["cost"],
        **document["scores"],
        **({"rounds": document["rounds"]} if document["rounds"] else {}),
        **({"findings": _without_curves(document["findings"])} if document["findings"] else {}),
        "missing": document["missing"],
    }


def _without_curves(findings: dict[str, Any]) -> dict[str, Any]:
    maps = {name: {n: v for n, v in scores.items() if not n.endswith("_curve")}
            for name, scores in findings["maps"].items()}  # fmt: skip
    return {**findings, "maps": maps}


def _write_model(out: Path, prepared: Prepared, predicted: Predicted, fitted: Fitted) -> None:
    """Model, config and masks, before anything is measured; what an earlier run left in this folder goes first."""
    for name in ("scores.json", "report.json", "report.html", "metrics.csv", "per_class.csv"):
        (out / name).unlink(missing_ok=True)
    for folder in ("masks", "gallery"):
        shutil.rmtree(out / folder, ignore_errors=True)
    if not _is_copy(fitted.model, out / "weights"):
        (out / "weights" / RECORD).unlink(missing_ok=True)  # from here on there is no model until its list is there
    if seen := masks_seen(prepared):
        write_atomic(out / SEEN, "".join(f"{digest}\n" for digest in sorted(seen)).encode())
    else:
        (out / SEEN).unlink(missing_ok=True)
    _copy(fitted.model, out / "weights")
    write_atomic(out / "config.yaml", yaml.safe_dump(config.canonical(prepared.cfg), sort_keys=False).encode())
    environment = {
        "method": prepared.request.method,
        "version": VERSION,
        "commit": setup.commit(),
        "command": prepared.request.command,
        "device": setup.device_text(prepared.device, prepared.precision),
        "window": prepared.request.reading.window,
        "libraries": library_versions(),
    }
    write_atomic(out / "environment.json", json.dumps(environment, indent=1).encode())
    for labels in predicted.val:
        spacing = spacing_of(predicted.images.source, labels.id)
        write_atomic(out / "masks" / f"{labels.id}.png", png(labels.pixels, palette=True, spacing=spacing))


def masks_seen(prepared: Prepared) -> frozenset[str]:
    """Digests of the images whose masks of other classes were learned from, here or by the run that was adapted; none
    also where that one has no list.
    """
    aux = prepared.inputs.aux
    if aux is not None:
        return frozenset(aux.tagged.source.digest(i) for i in aux.tagged.ids)
    return (prepared.request.adapt is not None and seen_before(prepared.request)) or frozenset()


def _write_results(out: Path, document: dict[str, Any]) -> None:
    per_class = [("entry", "point", "class", "iou")] + [
        (entry, point, name, iou)
        for entry, points in document["scores"].items()
        for point, scores in points.items()
        for name, iou in scores["per_class"].items()
    ]
    write_atomic(out / "per_class.csv", table(per_class))
    metrics = [("entry", "point", "miou", "precision", "recall", "threshold", "images")] + [
        (entry, point, s["miou"], s["precision"], s["recall"], s.get("threshold"), s["images"])
        for entry, points in document["scores"].items()
        for point, s in points.items()
    ]
    write_atomic(out / "metrics.csv", table(metrics))
    write_atomic(out / "report.json", json.dumps(document, allow_nan=False).encode())
    write_atomic(out / "scores.json", json.dumps(scores_document(document), indent=1, allow_nan=False).encode())
    page.write(out)


def _is_copy(artifact: Artifact, place: Path) -> bool:
    return (place / RECORD).exists() and (place / RECORD).read_bytes() == (artifact.path / RECORD).read_bytes()


def _copy(artifact: Artifact, place: Path) -> None:
    """The final model travels with the run: the same files, the record last."""
    if _is_copy(artifact, place):
        return
    forget(place)
    shutil.rmtree(place, ignore_errors=True)
    for name in (*artifact.record["outputs"], RECORD):
        write_atomic(place / name, (artifact.path / name).read_bytes())
