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

from tagseg._version import VERSION
from tagseg.errors import Interrupted, TagsegError, UsageError

EXIT_INTERRUPTED = 130
_REFINE_EXAMPLE = "tagseg refine maps --images photos --with crf --out refined"
_CRF = {
    "sxy-gaussian": (float, "pixels (default: 3)"),
    "compat-gaussian": (float, "weight of the smoothness kernel (default: 3)"),
    "sxy-bilateral": (float, "pixels (default: 50)"),
    "srgb": (float, "grey levels (default: 5)"),
    "compat-bilateral": (float, "weight of the appearance kernel (default: 10)"),
    "iterations": (int, "mean-field steps (default: 10)"),
}


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
    _demo(_command(commands, "demo", demo, "make images, learn from their tags, show masks", "tagseg demo"))
    _doctor(_command(commands, "doctor", doctor, "ten-second self-test of this machine", "tagseg doctor"))
    _asked(_command(commands, "plan", plan, "the stages of a run and which are done", "tagseg plan cam photos"))
    _asked(_command(commands, "run", run, "learn masks from tags", "tagseg run cam photos --out runs/first"))
    _predict(_command(commands, "predict", predict, "masks of new images", "tagseg predict runs/first new --out masks"))
    _refine(_command(commands, "refine", refine, "sharper masks from maps made elsewhere", _REFINE_EXAMPLE))
    _evaluate(_command(commands, "evaluate", evaluate, "score masks against truth", "tagseg evaluate masks truth"))
    _report(_command(commands, "report", report, "table and page of a run", "tagseg report runs/first"))
    _cache(_command(commands, "cache", cache, "list or clean stored results", "tagseg cache ls runs/.tagseg-cache"))
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


def _names(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


def _asked(command: argparse.ArgumentParser) -> None:
    command.add_argument("method", metavar="METHOD", help="cam or esol")
    command.add_argument(
        "data", metavar="DATA", help="a folder of images with tags.csv, one folder a class, or scenes:NAME"
    )
    command.add_argument(
        "--out", type=Path, metavar="RUN", default=Path("runs/run"), help="the run folder (default: runs/run)"
    )
    command.add_argument(
        "--train", type=_names, default=(), metavar="SPLIT[,SPLIT]", help="splits to learn from (default: all images)"
    )
    command.add_argument(
        "--val", type=_names, default=(), metavar="SPLIT", help="splits to predict without tags and score"
    )
    command.add_argument(
        "--backbone", default="auto", metavar="NAME", help="mobilenet_v2, squeezenet1_1, vgg16, small, timm:NAME"
    )
    command.add_argument("--weights", metavar="PATH", help="pretrained weights: a file, a folder, or none")
    command.add_argument("--seed", type=int, default=0, metavar="N")
    command.add_argument("--budget", default="standard", metavar="NAME", help="quick, standard or paper")
    command.add_argument("--config", type=Path, metavar="FILE", help="settings as YAML")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        dest="sets",
        metavar="NAME=VALUE",
        help="one setting, for example classifier.schedule.epochs=3",
    )
    command.add_argument("--tags", type=Path, metavar="FILE", help="a tags file outside DATA")
    command.add_argument(
        "--negative", action="append", default=[], metavar="FOLDER", help="a folder of images without any class"
    )
    command.add_argument("--limit", type=int, metavar="N", help="use at most N images of each set")
    command.add_argument(
        "--max-bad", type=float, default=0.01, metavar="SHARE", help="share of unreadable files that is accepted"
    )
    command.add_argument("--follow-links", action="store_true", help="links that leave DATA count as images")
    command.add_argument(
        "--k-masks", type=int, default=0, metavar="K", help="also score the threshold that is best on K masks"
    )
    _machine(command)
    command.add_argument("--precision", default="auto", metavar="NAME", help="auto, fp32 or bf16")
    command.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="where finished stages are kept (TAGSEG_CACHE; default: beside the run)",
    )


def _machine(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu or cuda[:N]")
    command.add_argument("--workers", type=int, default=2, metavar="N", help="threads for work on single images")


def _demo(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="RUN")
    command.add_argument("--seed", type=int, default=0, metavar="N")
    command.add_argument("--data", default="scenes:basic?train=400&val=100", help="which generated scenes")
    _machine(command)


def _doctor(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu or cuda[:N]")


def _predict(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    command.add_argument("images", type=Path, metavar="IMAGES", help="a folder of images")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="where masks are written")
    command.add_argument("--save", type=_names, default=("mask",), metavar="KIND,...", help="mask, overlay, confidence")
    command.add_argument("--post", action="store_true", help="slower: several scales, flip and dense CRF")
    command.add_argument("--limit", type=int, metavar="N", help="at most N images")
    command.add_argument("--follow-links", action="store_true", help="links that leave IMAGES count as images")
    command.add_argument(
        "--max-bad", type=float, default=0.01, metavar="SHARE", help="share of unreadable files that is accepted"
    )
    _machine(command)


def _refine(command: argparse.ArgumentParser) -> None:
    command.add_argument("maps", type=Path, metavar="MAPS", help="ID.npy, ID.npz or ID.png, or CLASS/ID.png")
    command.add_argument("--images", type=Path, required=True, metavar="DIR", help="the images, same relative names")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="where results are written")
    command.add_argument(
        "--with",
        type=_names,
        default=("crf",),
        dest="steps",
        metavar="STEP,...",
        help="affinity, superpixels, crf, or several (default: crf)",
    )
    command.add_argument(
        "--save", type=_names, default=("mask",), metavar="KIND,...", help="mask, overlay, confidence, probabilities"
    )
    command.add_argument("--classes", type=Path, metavar="FILE", help="class names (default: MAPS/classes.txt)")
    command.add_argument(
        "--background",
        choices=("auto", "first", "none"),
        default="auto",
        help="whether the first map is the background's (default: told by the number of classes)",
    )
    command.add_argument("--labels", action="store_true", help="MAPS holds class indices, 255 unsure")
    command.add_argument("--gt-prob", type=float, default=0.7, metavar="P", help="trust in --labels (default: 0.7)")
    command.add_argument(
        "--threshold", type=float, metavar="T", help="the background's score where it has no map (default: Otsu's rule)"
    )
    command.add_argument(
        "--floor", type=float, default=0.0, metavar="P", help="leave out classes under P at every pixel (default: none)"
    )
    for name, (kind, text) in _CRF.items():
        command.add_argument(f"--{name}", type=kind, metavar="N" if kind is int else "X", help=text)
    command.add_argument("--backbone", default="auto", metavar="NAME", help="of the affinity network (mobilenet_v2)")
    command.add_argument("--weights", metavar="PATH", help="its pretrained weights: a file, a folder, or none")
    command.add_argument("--budget", default="standard", metavar="NAME", help="its training: quick, standard or paper")
    command.add_argument("--precision", default="auto", metavar="NAME", help="auto, fp32 or bf16")
    command.add_argument("--seed", type=int, default=0, metavar="N")
    command.add_argument(
        "--set", action="append", default=[], dest="sets", metavar="NAME=VALUE", help="such as superpixels.kind=slic"
    )
    command.add_argument("--limit", type=int, metavar="N", help="at most N images")
    command.add_argument("--follow-links", action="store_true", help="links that leave the folders count")
    command.add_argument(
        "--max-bad", type=float, default=0.01, metavar="SHARE", help="share of unusable files that is accepted"
    )
    command.add_argument("--cache", type=Path, metavar="DIR", help="where finished stages are kept (default: in --out)")
    _machine(command)


def _evaluate(command: argparse.ArgumentParser) -> None:
    command.add_argument("pred", type=Path, metavar="PRED", help="a folder of predicted masks")
    command.add_argument("truth", type=Path, metavar="TRUTH", help="a folder of true masks, same names")
    command.add_argument("--classes", type=Path, metavar="FILE", help="class names, one a line (default: 1, 2, ...)")
    command.add_argument(
        "--white", choices=("object", "ignore"), help="what 255 means in masks that hold only 0 and 255"
    )
    command.add_argument("--no-background", action="store_true", help="0 is not a class: the mean goes over 1..C")


def _report(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", type=Path, metavar="RUN")


def _cache(command: argparse.ArgumentParser) -> None:
    command.add_argument("action", choices=("ls", "gc"))
    command.add_argument(
        "cache", type=Path, metavar="DIR", nargs="?", help="default: TAGSEG_CACHE, else runs/.tagseg-cache"
    )
    command.add_argument("--forget-missing", action="store_true", help="runs whose folder is gone no longer count")
    command.add_argument("--dry-run", action="store_true", help="say what would be removed")


def _request(args: argparse.Namespace) -> Any:
    from tagseg.data.folder import Reading
    from tagseg.runs.setup import Request

    reading = Reading(
        tags=args.tags,
        negative=tuple(args.negative),
        limit=args.limit,
        max_bad=args.max_bad,
        workers=args.workers,
        follow_links=args.follow_links,
    )
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
        reading=reading,
        command=f"tagseg {shlex.join(_portable(args.words))}",
    )


def _portable(words: list[str]) -> list[str]:
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
        command=f"tagseg {shlex.join(_portable(args.words))}",
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
    say(f"masks read by the fit: {document['masks_read_by_fit']}")
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
    from tagseg.data.folder import Reading
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
        reading=Reading(limit=args.limit, max_bad=args.max_bad, workers=args.workers, follow_links=args.follow_links),
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
    from tagseg.data.folder import Reading
    from tagseg.data.foreign_maps import MapReading
    from tagseg.runs.refine import Config, RefineRequest, budgeted

    images = Reading(limit=args.limit, max_bad=args.max_bad, workers=args.workers, follow_links=args.follow_links)
    given = {name: getattr(args, name.replace("-", "_")) for name in _CRF}
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
