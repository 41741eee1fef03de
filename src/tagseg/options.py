"""What each command of the command line takes: names, defaults, help."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

CRF = {
    "sxy-gaussian": (float, "pixels (default: 3)"),
    "compat-gaussian": (float, "weight of the smoothness kernel (default: 3)"),
    "sxy-bilateral": (float, "pixels (default: 50)"),
    "srgb": (float, "grey levels (default: 5)"),
    "compat-bilateral": (float, "weight of the appearance kernel (default: 10)"),
    "iterations": (int, "mean-field steps (default: 10)"),
}


def names(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    return tuple(part for part in text.split(",") if part)


def asked(command: argparse.ArgumentParser, method: str | None = None) -> None:
    """What `run` and `plan` take. A `method` that is named (to adapt a run of it) is not asked for, and what it would
    refuse is not offered.
    """
    if method is not None:
        command.set_defaults(method=method)
    else:
        _method(command)
    command.add_argument(
        "data", metavar="DATA", help="a folder of images with tags.csv, one folder a class, or scenes:NAME"
    )
    command.add_argument(
        "--out", type=Path, metavar="RUN", default=Path("runs/run"), help="the run folder (default: runs/run)"
    )
    command.add_argument(
        "--train", type=names, default=(), metavar="SPLIT[,SPLIT]", help="splits to learn from (default: all images)"
    )
    command.add_argument(
        "--val", type=names, default=(), metavar="SPLIT", help="splits to predict without tags and score"
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
        "--only", type=names, default=(), metavar="CLASS[,CLASS]", help="of DATA, the rest is background (all)"
    )
    command.add_argument(
        "--negative", action="append", default=[], metavar="FOLDER", help="a folder of images without any class"
    )
    files(command)
    command.add_argument(
        "--k-masks", type=int, default=0, metavar="K", help="also score the threshold that is best on K masks"
    )
    _from_elsewhere(command, offered=method is None)
    machine(command)
    command.add_argument("--precision", default="auto", metavar="NAME", help="auto, fp32 or bf16")
    command.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="where finished stages are kept (TAGSEG_CACHE; default: beside the run)",
    )


def _from_elsewhere(command: argparse.ArgumentParser, offered: bool) -> None:
    """What is given besides images and tags; where it is not `offered` a request for it is still answered in words."""

    def add(name: str, text: str, **more: Any) -> None:
        command.add_argument(name, help=text if offered else argparse.SUPPRESS, **more)

    add("--saliency", "saliency maps made elsewhere: ID.png, ID.npy", type=Path, metavar="DIR")
    add("--saliency-from", "what made them and what that was trained with", metavar="TEXT")
    add("--aux", "images with masks of other classes (transfernet)", metavar="DATA")
    add("--aux-splits", "its splits (all)", type=names, default=(), metavar="SPLIT[,SPLIT]")
    add("--aux-only", "its classes (all)", type=names, default=(), metavar="CLASS[,CLASS]")
    add("--aux-rest", "what DATA's classes in the images of --aux are (with --aux-only): background; or drop such "
        "images; or ignore these pixels, which looks at DATA's masks", default="background",
        metavar="NAME")  # fmt: skip
    add("--picks", "masks picked among candidates (tagseg pick)", type=Path, metavar="FILE")


def _method(command: argparse.ArgumentParser) -> None:
    command.add_argument("method", metavar="METHOD", help="cam, dfs, esol, mcof, priors or transfernet")


def adapt(command: argparse.ArgumentParser) -> None:
    """What `adapt` takes: as `run`, after the run whose decoder is used."""
    command.add_argument("adapt", type=Path, metavar="RUN", help="a finished run of transfernet")
    asked(command, method="transfernet")


def files(command: argparse.ArgumentParser) -> None:
    """How a folder of images is read."""
    command.add_argument("--limit", type=int, metavar="N", help="at most N images (of each set)")
    command.add_argument(
        "--max-bad", type=float, default=0.01, metavar="SHARE", help="share of unusable files that is accepted"
    )
    command.add_argument("--follow-links", action="store_true", help="links that leave the folder count, too")
    command.add_argument(
        "--window", type=float, nargs=2, metavar=("CENTRE", "WIDTH"), help="of DICOM files, instead of their own"
    )


def machine(command: argparse.ArgumentParser) -> None:
    """Device and workers."""
    command.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu or cuda[:N]")
    command.add_argument("--workers", type=int, default=2, metavar="N", help="threads for work on single images")


def demo(command: argparse.ArgumentParser) -> None:
    """What `demo` takes."""
    command.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="RUN")
    command.add_argument("--seed", type=int, default=0, metavar="N")
    command.add_argument("--data", default="scenes:basic?train=400&val=100", help="which generated scenes")
    machine(command)


def doctor(command: argparse.ArgumentParser) -> None:
    """What `doctor` takes."""
    command.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu or cuda[:N]")


def predict(command: argparse.ArgumentParser) -> None:
    """What `predict` takes."""
    command.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    command.add_argument("images", type=Path, metavar="IMAGES", help="a folder of images")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="where masks are written")
    command.add_argument("--save", type=names, default=("mask",), metavar="KIND,...", help="mask, overlay, confidence")
    command.add_argument("--post", action="store_true", help="slower: several scales, flip and dense CRF")
    files(command)
    machine(command)


def refine(command: argparse.ArgumentParser) -> None:
    """What `refine` takes."""
    command.add_argument("maps", type=Path, metavar="MAPS", help="ID.npy, ID.npz or ID.png, or CLASS/ID.png")
    command.add_argument("--images", type=Path, required=True, metavar="DIR", help="the images, same relative names")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="where results are written")
    command.add_argument(
        "--with",
        type=names,
        default=("crf",),
        dest="steps",
        metavar="STEP,...",
        help="affinity, superpixels, pamr, crf, or several (default: crf)",
    )
    command.add_argument(
        "--save", type=names, default=("mask",), metavar="KIND,...", help="mask, overlay, confidence, probabilities"
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
    for name, (kind, text) in CRF.items():
        command.add_argument(f"--{name}", type=kind, metavar="N" if kind is int else "X", help=text)
    command.add_argument("--backbone", default="auto", metavar="NAME", help="of the affinity network (mobilenet_v2)")
    command.add_argument("--weights", metavar="PATH", help="its pretrained weights: a file, a folder, or none")
    command.add_argument("--budget", default="standard", metavar="NAME", help="its training: quick, standard or paper")
    command.add_argument("--precision", default="auto", metavar="NAME", help="auto, fp32 or bf16")
    command.add_argument("--seed", type=int, default=0, metavar="N")
    command.add_argument(
        "--set", action="append", default=[], dest="sets", metavar="NAME=VALUE", help="such as superpixels.kind=slic"
    )
    files(command)
    command.add_argument("--cache", type=Path, metavar="DIR", help="where finished stages are kept (default: in --out)")
    machine(command)


def saliency(command: argparse.ArgumentParser) -> None:
    """What `saliency` takes."""
    command.add_argument("images", type=Path, metavar="IMAGES", help="a folder of images; tags are not read")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="where maps are written")
    command.add_argument(
        "--kind",
        choices=("rbd", "mbd", "ft"),
        help="against the background (rbd, the default), enclosed (mbd), far from the mean colour (ft)",
    )
    command.add_argument("--save", type=names, default=("map",), metavar="KIND,...", help="map, overlay, array")
    command.add_argument(
        "--set", action="append", default=[], dest="sets", metavar="NAME=VALUE", help="such as superpixels.kind=slic"
    )
    files(command)
    command.add_argument("--workers", type=int, default=2, metavar="N", help="threads for work on single images")
    command.add_argument("--cache", type=Path, metavar="DIR", help="where finished stages are kept (default: in --out)")


def evaluate(command: argparse.ArgumentParser) -> None:
    """What `evaluate` takes."""
    command.add_argument("pred", type=Path, metavar="PRED", help="a folder of predicted masks")
    command.add_argument("truth", type=Path, metavar="TRUTH", help="a folder of true masks, same names")
    command.add_argument("--classes", type=Path, metavar="FILE", help="class names, one a line (default: 1, 2, ...)")
    command.add_argument(
        "--white", choices=("object", "ignore"), help="what 255 means in masks that hold only 0 and 255"
    )
    command.add_argument("--no-background", action="store_true", help="0 is not a class: the mean goes over 1..C")


def pick(command: argparse.ArgumentParser) -> None:
    """What `pick` takes."""
    command.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    command.add_argument("--data", metavar="DATA", help="where its images lie by now (default: where they lay)")
    command.add_argument("--picks", type=Path, metavar="FILE", help="where picks are kept (default: RUN/picks.csv)")
    command.add_argument("--limit", type=int, default=100, metavar="N", help="at most N images (default: 100)")
    command.add_argument("--port", type=int, default=0, metavar="N", help="of the page (default: any free one)")
    command.add_argument("--open", action="store_true", help="open the page in the browser")


def report(command: argparse.ArgumentParser) -> None:
    """What `report` takes."""
    command.add_argument("run", type=Path, metavar="RUN")


def cache(command: argparse.ArgumentParser) -> None:
    """What `cache` takes."""
    command.add_argument("action", choices=("ls", "gc"))
    command.add_argument(
        "cache", type=Path, metavar="DIR", nargs="?", help="default: TAGSEG_CACHE, else runs/.tagseg-cache"
    )
    command.add_argument("--forget-missing", action="store_true", help="runs whose folder is gone no longer count")
    command.add_argument("--dry-run", action="store_true", help="say what would be removed")
