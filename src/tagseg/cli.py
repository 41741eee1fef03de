"""The command line: each command is one call of a public function. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tagseg import options
from tagseg._version import VERSION
from tagseg.errors import Interrupted, TagsegError, UsageError

EXIT_INTERRUPTED = 130
_REFINE_EXAMPLE = "tagseg refine maps --images photos --with crf --out refined"


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code (0 ok, 2 usage, 3 data, 4 environment, 5 integrity, 130 interrupted)."""
    words = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(words)
    args.words = words
    try:
        return int(args.call(args) or 0)
    except (Interrupted, KeyboardInterrupt) as stop:
        say(str(stop) or "interrupted")
        say(f"go on with: tagseg {shlex.join(words)}")
        return EXIT_INTERRUPTED
    except TagsegError as error:
        if args.debug:
            raise
        say(f"error: {error}")
        return error.exit_code
    except BrokenPipeError:
        return 0
    except Exception as error:
        if args.debug:
            raise
        text, code = unexpected(error)
        say(f"error: {text}")
        return code


def unexpected(error: Exception) -> tuple[str, int]:
    """A message and an exit code for what no part of tagseg foresaw: the machine (4) or a fault of ours (1)."""
    told = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or "out of memory" in told or "can't allocate memory" in told:
        return f"out of memory ({told}); use fewer --workers, smaller images, or --device cpu", 4
    if isinstance(error, OSError):
        return f"{told}; check the path, its permissions and the disk", 4
    return f"{told}; this is a fault of tagseg: run again with --debug and report what it prints", 1


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def show(args: argparse.Namespace, document: Any, text: Callable[[], str]) -> None:
    """The result on standard output: JSON with --json, else text."""
    print(json.dumps(document, indent=1, ensure_ascii=False) if args.json else text(), flush=True)


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser("tagseg", description="Pixel masks from image tags.", allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"tagseg {VERSION}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    options.demo(_command(commands, "demo", demo, "make images, learn from their tags, show masks", "tagseg demo"))
    options.doctor(_command(commands, "doctor", doctor, "ten-second self-test of this machine", "tagseg doctor"))
    options.asked(_command(commands, "plan", plan, "the stages of a run and which are done", "tagseg plan cam photos"))
    options.asked(_command(commands, "run", run, "learn masks from tags", "tagseg run cam photos --out runs/first"))
    taught = "tagseg adapt runs/first new --out runs/second"
    anew = "teach a run of transfernet two or more other classes by their tags"
    options.adapt(_command(commands, "adapt", run, anew, taught))
    new = "tagseg predict runs/first new --out masks"
    options.predict(_command(commands, "predict", predict, "masks of new images", new))
    options.refine(_command(commands, "refine", refine, "sharper masks from maps made elsewhere", _REFINE_EXAMPLE))
    seen = "tagseg saliency photos --out salient --save map,overlay"
    options.saliency(_command(commands, "saliency", saliency, "what stands out in images, without any learning", seen))
    picked = "tagseg pick runs/first"
    options.pick(_command(commands, "pick", pick, "pick the best of several masks in the browser", picked))
    scored = "tagseg evaluate masks truth"
    options.evaluate(_command(commands, "evaluate", evaluate, "score masks against truth", scored))
    options.report(_command(commands, "report", report, "table and page of a run", "tagseg report runs/first"))
    kept = "tagseg cache ls runs/.tagseg-cache"
    options.cache(_command(commands, "cache", cache, "list or clean stored results", kept))
    return top


def _command(
    commands: Any, name: str, call: Callable[[argparse.Namespace], int | None], what: str, example: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=what, description=what.capitalize() + ".", epilog=f"example: {example}", allow_abbrev=False
    )
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command.set_defaults(call=call)
    return command


def _reading(args: argparse.Namespace) -> Any:
    """How the images of a command are read; tags and negatives where it takes them."""
    from tagseg.data.folder import Reading

    return Reading(
        tags=getattr(args, "tags", None),
        negative=tuple(getattr(args, "negative", ())),
        limit=args.limit,
        max_bad=args.max_bad,
        workers=args.workers,
        follow_links=args.follow_links,
        only=getattr(args, "only", ()),
        window=None if args.window is None else (args.window[0], args.window[1]),
    )


def _request(args: argparse.Namespace) -> Any:
    from tagseg.runs.setup import Request

    return Request(
        method=args.method,
        data=args.data,
        out=args.out,
        train=args.train,
        val=args.val,
        backbone=args.backbone,
        weights=args.weights,
        seed=args.seed,
        budget=args.budget,
        config=args.config,
        sets=tuple(args.sets),
        k_masks=args.k_masks,
        cache=args.cache,
        device=args.device,
        precision=args.precision,
        workers=args.workers,
        reading=_reading(args),
        picks=args.picks,
        aux=args.aux,
        aux_splits=args.aux_splits,
        aux_only=args.aux_only,
        aux_rest=args.aux_rest,
        adapt=getattr(args, "adapt", None),
        command=f"tagseg {shlex.join(portable(args.words))}",
        saliency=args.saliency,
        saliency_from=args.saliency_from,
    )


def portable(words: list[str]) -> list[str]:
    """The command without the folders of this machine: the last part of each path says enough in a report."""
    return [Path(w).name if w.startswith(("/", "..")) else w for w in words]


def demo(args: argparse.Namespace) -> None:
    from tagseg.runs.setup import Request

    request = Request(
        method="cam",
        data=args.data,
        out=args.out,
        budget="quick",
        seed=args.seed,
        device=args.device,
        workers=args.workers,
        command=f"tagseg {shlex.join(portable(args.words))}",
    )
    _run(args, request)


def run(args: argparse.Namespace) -> None:
    _run(args, _request(args))


def _run(args: argparse.Namespace, request: Any) -> None:
    from tagseg.report import tables
    from tagseg.report.progress import Lines
    from tagseg.runs.run import run, scores_document

    stopping = _on_signal()
    document = run(request, Lines(), stopping)
    show(args, scores_document(document), lambda: tables.plain(document))
    which = ", of the classes asked for" if request.aux or request.adapt else ""
    say(f"masks read by the fit{which}: {document['masks_read_by_fit']}")
    say(f"report: {request.out / 'report.html'}")


def _on_signal() -> Callable[[], bool]:
    """Ctrl-C and SIGTERM ask the work to end after its step; a second one ends it at once."""
    asked: list[int] = []

    def handler(number: int, frame: object) -> None:
        asked.append(number)
        if len(asked) > 1:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)
    return lambda: bool(asked)


def plan(args: argparse.Namespace) -> None:
    from tagseg.runs.run import plan

    steps, prepared = plan(_request(args))
    tagged, opened = prepared.inputs.tagged, prepared.opened
    say(f"{len(tagged)} tagged images, {len(tagged.classes)} classes, {len(opened.bad)} bad files; {opened.layout}")
    for warning in prepared.warnings:
        say(f"note: {warning}")
    rows = [{"stage": s.stage, "state": s.state, "key": s.key[:12]} for s in steps]
    show(args, rows, lambda: "\n".join(f"{r['state']:6s} {r['stage']:32s} {r['key']}" for r in rows))


def predict(args: argparse.Namespace) -> None:
    from tagseg.report.progress import Lines
    from tagseg.runs.predict import predict

    result = predict(
        args.run,
        args.images,
        args.out,
        save=args.save,
        post=args.post,
        device=args.device,
        workers=args.workers,
        reading=_reading(args),
        progress=Lines(),
        stopping=_on_signal(),
    )
    show(
        args,
        result,
        lambda: (
            f"{result['images']} images -> {result['out']}"
            + (f" ({result['bad_files']} unreadable, see bad_files.csv)" if result["bad_files"] else "")
        ),
    )


def refine(args: argparse.Namespace) -> None:
    from tagseg.report.progress import Lines
    from tagseg.runs.refine import refine

    result = refine(_refine_request(args), Lines(), _on_signal())
    for note in result["notes"]:
        say(f"note: {note}")
    background, bad = result["background"], result["bad_files"]
    chosen = f"{background['threshold']:g}, " if "threshold" in background else ""
    say(f"background: {chosen}{background['origin']}")
    left = f" ({bad} unusable, see bad_files.csv)" if bad else ""
    show(args, result, lambda: f"{result['images']} images -> {result['out']}{left}")


def _refine_request(args: argparse.Namespace) -> Any:
    from tagseg import config
    from tagseg.data.foreign_maps import MapReading
    from tagseg.runs.refine import Config, RefineRequest, budgeted

    images = _reading(args)
    given = {name: getattr(args, name.replace("-", "_")) for name in options.CRF}
    sets = [f"crf.{name.replace('-', '_')}={value}" for name, value in given.items() if value is not None]
    return RefineRequest(
        maps=args.maps,
        images=args.images,
        out=args.out,
        steps=args.steps,
        reading=MapReading(args.classes, args.background, args.labels, args.gt_prob, args.floor, images),
        cfg=config.load(budgeted(Config(), args.budget), None, (*args.sets, *sets)),
        given=tuple(item.partition("=")[0].strip() for item in (*args.sets, *sets)),
        threshold=args.threshold,
        save=args.save,
        backbone=args.backbone,
        weights=args.weights,
        device=args.device,
        precision=args.precision,
        seed=args.seed,
        workers=args.workers,
        cache=args.cache,
    )


def saliency(args: argparse.Namespace) -> None:
    from tagseg import config
    from tagseg.report.progress import Lines
    from tagseg.runs.saliency import Config, SaliencyRequest, saliency

    kind = (f"saliency.kind={args.kind}",) if args.kind else ()
    request = SaliencyRequest(
        images=args.images,
        out=args.out,
        cfg=config.load(Config(), None, (*args.sets, *kind)),
        save=args.save,
        reading=_reading(args),
        workers=args.workers,
        cache=args.cache,
    )
    result = saliency(request, Lines(), _on_signal())
    left = f" ({result['bad_files']} unreadable, see bad_files.csv)" if result["bad_files"] else ""
    show(args, result, lambda: f"{result['images']} images -> {result['out']}{left}")


def pick(args: argparse.Namespace) -> None:
    from tagseg.report.progress import Lines
    from tagseg.runs.pick import prepare_picks, serve

    picking = prepare_picks(
        args.run, data=args.data, file=args.picks, limit=args.limit, progress=Lines(), stopping=_on_signal()
    )
    say(f"{len(picking.table.items)} images, {len(picking.table.picks)} picked before; Ctrl-C when you are done")
    serve(picking, port=args.port, say=say, opened=args.open)
    picks = picking.table.picks
    method, data = picking.prepared.request.method, Path(picking.prepared.request.data).name
    again = f"tagseg run {method} {data} ... --picks {picking.file}"
    show(args, {"picks": len(picks), "file": str(picking.file)}, lambda: f"{len(picks)} picks; use them: {again}")


def evaluate(args: argparse.Namespace) -> None:
    from tagseg.data.tags import read_classes
    from tagseg.evaluate.folders import evaluate_folders
    from tagseg.report import tables

    names = list(read_classes(args.classes)) if args.classes else None
    white = None if args.white is None else args.white == "object"
    scores = evaluate_folders(
        args.pred, args.truth, classes=names, has_background=not args.no_background, white_is_object=white
    )
    show(args, scores, lambda: tables.folder_scores(scores))


def report(args: argparse.Namespace) -> None:
    from tagseg.report import page, tables

    if not (args.run / "report.json").is_file():
        raise UsageError(f"{args.run}: holds no report.json; give the --out folder of a finished `tagseg run`")
    document = json.loads((args.run / "report.json").read_text())
    path = page.write(args.run)
    show(args, document["scores"], lambda: tables.plain(document))
    say(f"report: {path}")


def doctor(args: argparse.Namespace) -> int:
    from tagseg.runs.doctor import doctor

    found = doctor(args.device)
    lines = [f"{n:14s} {v}" for n, v in found["facts"].items()]
    lines += [f"{'ok  ' if c['ok'] else 'FAIL'} {c['name']}: {c['detail']}" for c in found["checks"]]
    show(args, found, lambda: "\n".join(lines))
    return 0 if found["ok"] else 4


def cache(args: argparse.Namespace) -> None:
    import os
    from dataclasses import asdict

    from tagseg.cache import gc, listing

    place = args.cache or Path(os.environ.get("TAGSEG_CACHE") or "runs/.tagseg-cache")
    if not place.is_dir():
        raise UsageError(f"{place}: no such cache; give the folder, or set TAGSEG_CACHE")
    entries = (
        listing(place) if args.action == "ls" else gc(place, forget_missing=args.forget_missing, dry_run=args.dry_run)
    )
    head = "" if args.action == "ls" else f"{'would remove' if args.dry_run else 'removed'} {len(entries)}\n"
    show(
        args,
        [asdict(e) for e in entries],
        lambda: (
            head
            + "\n".join(
                f"{e.megabytes:9.1f} MB {e.seconds:8.1f} s  {e.name}  {', '.join(e.used_by) or 'no run'}"
                for e in entries
            )
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
