"""A folder of photos to sets: images with tags.csv, or one folder for each class; nothing is ever written there."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tagseg.data.chosen import chosen, chosen_tags
from tagseg.data.dicom import Window
from tagseg.data.files import BadFile, FileImages, FileMasks, relative, scan
from tagseg.data.images import MAX_PIXELS
from tagseg.data.index import MaskedSet, TaggedSet, spread, with_masks
from tagseg.data.tags import TagTable, nearest, normalise, rare_classes, read_classes, read_tags, read_text
from tagseg.data.tree import Tree, walk
from tagseg.types import DataError, UsageError

_SHOWN = 5
_RESERVED = ("masks", "splits")


@dataclass(frozen=True, eq=False)
class Opened:
    """What was understood of a folder: the images, the part with truth, and everything that was left out or odd.

    `bad` and `ignored` are rows (path, reason, detail); `layout` says in words how the folder was read.
    """

    images: TaggedSet
    truth: MaskedSet | None
    bad: tuple[BadFile, ...] = ()
    ignored: tuple[BadFile, ...] = ()
    warnings: tuple[str, ...] = ()
    layout: str = ""


class TooManyBad(DataError):
    """More files than accepted cannot be used; `bad` lists all of them."""

    def __init__(self, message: str, bad: tuple[BadFile, ...]) -> None:
        super().__init__(message)
        self.bad = bad


@dataclass(frozen=True)
class Reading:
    """How to read a folder.

    `tags`: a tags file elsewhere; `negative`: folders whose images hold no class; `limit`: at most so many images;
    `max_bad`: the share of bad files above which nothing is opened; `follow_links`: links out of the folder count;
    `max_pixels`: larger images are refused; `workers`: threads that decode; `window`: centre and width that DICOM files
    are seen through, instead of their own; `only`: these classes, the others' pixels are background.
    """

    tags: Path | None = None
    negative: tuple[str, ...] = ()
    limit: int | None = None
    max_bad: float = 0.01
    follow_links: bool = False
    max_pixels: int = MAX_PIXELS
    workers: int = 2
    window: Window | None = None
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        centre, width = self.window or (0.0, 1.0)
        if not (math.isfinite(centre) and 1 <= width < math.inf):
            raise UsageError(f"--window {centre:g} {width:g}: expected a centre and a width of 1 or more")


def open_set(data: str | Path, splits: Sequence[str] | None = None, how: Reading | None = None) -> Opened:
    """Open a folder, or a generated set ("scenes:basic?train=400"); `splits` None means all images.

    Every image opened is decoded once, so that a cut file is found now and not in the night.
    Errors: `UsageError` for paths, splits and options; `DataError` for contents, naming files and lines.
    """
    how = how or Reading()
    if str(data).startswith("scenes:"):
        from tagseg.data.generated import scenes  # the generator is needed by few

        truth = scenes(str(data), splits, limit=how.limit)
        return _only(Opened(truth.without_masks(), truth, layout="generated scenes with exact masks"), how.only)
    root = _folder(data)
    place, tree = _images(root, how)
    table, layout = _tagged(root, place, tree, how)
    ids, bad, warnings = _chosen(root, tree, splits)
    name = f"{root.name}:{'+'.join(splits) if splits else 'all'}"
    images, bad = _usable(root, name, tree, table, ids, bad, how)
    masks, odd = _masks(root, tree, how)
    opened = Opened(images, with_masks(images, masks), tuple(bad), tuple(tree.ignored),
                    (*table.warnings, *warnings, *_untagged(images), *_converted(images), *odd), layout)
    opened = _only(opened, how.only)
    rare = rare_classes(replace(table, classes=opened.images.classes), images.ids)
    return replace(opened, warnings=(*opened.warnings, *rare))


def _only(opened: Opened, classes: tuple[str, ...]) -> Opened:
    if not classes:
        return opened
    truth = chosen(opened.truth, classes) if opened.truth else None
    return replace(opened, images=chosen_tags(opened.images, classes), truth=truth,
                   layout=f"{opened.layout}; only {', '.join(classes)}")  # fmt: skip


def open_images(data: str | Path, classes: tuple[str, ...], how: Reading | None = None) -> Opened:
    """Open a folder of images of which nothing is known, to predict on; tags and splits in it are not read."""
    how, root = how or Reading(), _folder(data)
    _, tree = _images(root, how)
    images, bad = _usable(root, root.name, tree, TagTable(classes, {}), list(tree.files), list(tree.bad.values()), how)
    return Opened(images, None, tuple(bad), tuple(tree.ignored), tuple(_converted(images)), "images without tags")


# ---- where things are ----

def _folder(data: str | Path) -> Path:
    root = Path(data).expanduser()
    if root.is_dir():
        return root.resolve()
    found = "a file" if root.exists() else "nothing"
    beside = [p.name for p in root.parent.iterdir() if p.is_dir()] if root.parent.is_dir() else []
    near = difflib.get_close_matches(root.name, beside, n=1)
    raise UsageError(f"{data}: found {found}, expected a folder of images" + (f"; is it {near[0]!r}?" if near else ""))


def _images(root: Path, how: Reading) -> tuple[Path, Tree]:
    """The folder that ids are relative to, and its images."""
    inner = root / "images"
    place = inner if inner.is_dir() else root
    if place.is_symlink() and not how.follow_links and not place.resolve().is_relative_to(root):
        raise DataError(f"{inner}: a link out of the data folder; allow it with --follow-links")
    skip = [] if place == inner else [root / name for name in _RESERVED]
    tree = walk(place, root, skip=skip, follow_links=how.follow_links)
    if not tree.files and not tree.bad:
        raise DataError(f"{place}: found no image among {len(tree.ignored)} files, expected .jpg, .png, .tif, ...")
    return place, tree


def _tagged(root: Path, place: Path, tree: Tree, how: Reading) -> tuple[TagTable, str]:
    listed = root / "classes.txt"
    classes = read_classes(listed) if listed.is_file() else None
    path = how.tags or root / "tags.csv"
    if how.tags is not None or path.is_file():
        table = read_tags(path, tree.resolve, tree.names, classes)
        return _with_negatives(table, tree, how.negative), f"images in {place.name}/ and tags in {path.name}"
    if not any("/" in id for id in tree.files):
        raise DataError(f"{root}: found {len(tree.files)} images and no tags, expected tags.csv with the header "
                        "'file,tags', a tags file given by name, or one folder for each class")
    table = _class_folders(root, tree, classes, how.negative)
    return table, f"one folder for each class: {', '.join(table.classes)}"


def _class_folders(root: Path, tree: Tree, classes: tuple[str, ...] | None, negative: tuple[str, ...]) -> TagTable:
    """The first part of each id is its tag; images beside the folders are untagged."""
    folders = sorted({id.split("/")[0] for id in tree.files if "/" in id})
    _check_negative(negative, folders)
    found = tuple(name for name in folders if name not in set(map(normalise, negative)))
    unknown = [name for name in found if classes is not None and name not in classes]
    if unknown and classes is not None:
        near = nearest(unknown[0], classes)
        raise DataError(f"{root / 'classes.txt'}: folder {unknown[0]!r} is not in the list{near}")
    if "background" in found:
        raise DataError(f"{root}: 'background' is not a class; name its folder as negative")
    if not found:
        raise DataError(f"{root}: every folder is named as negative, expected one folder for each class as well")
    rows = {id: frozenset({id.split("/")[0]} & set(found)) for id in tree.files if "/" in id}
    return TagTable(classes or found, rows)


def _with_negatives(table: TagTable, tree: Tree, negative: tuple[str, ...]) -> TagTable:
    """Images below a negative folder need no row."""
    if not negative:
        return table
    folders = sorted({id.split("/")[0] for id in tree.files if "/" in id})
    _check_negative(negative, folders)
    inside = [id for id in tree.files if "/" in id and id.split("/")[0] in set(map(normalise, negative))]
    tagged = [id for id in inside if table.rows.get(id)]
    if tagged:
        raise DataError(f"{tagged[0]!r} lies in a negative folder and has tags {sorted(table.rows[tagged[0]])}; "
                        "empty its tag field or move it")
    return TagTable(table.classes, {**table.rows, **{id: frozenset[str]() for id in inside}}, table.warnings)


def _check_negative(negative: tuple[str, ...], folders: Collection[str]) -> None:
    for name in map(normalise, negative):
        if name not in folders:
            raise UsageError(f"negative folder {name!r} holds no image{nearest(name, folders)}; "
                             f"the folders are {', '.join(folders) or 'none'}")


# ---- which images ----

def _chosen(root: Path, tree: Tree, splits: Sequence[str] | None) -> tuple[list[str], list[BadFile], list[str]]:
    """The ids to open, what is bad among them already, and warnings."""
    if splits is None:
        return list(tree.files), list(tree.bad.values()), []
    ids: dict[str, None] = {}
    bad: list[BadFile] = []
    warnings: list[str] = []
    for split in splits:
        path = _split_file(root, split)
        for line, name in _lines(path):
            id = tree.resolve(name)
            if id is None:
                near = nearest(name, tree.names) if len(bad) < _SHOWN else ""
                bad.append(BadFile(name, "missing", f"listed in {relative(path, root)}:{line}{near}"))
            elif id in tree.bad:
                bad.append(tree.bad[id])
            elif id in ids:
                warnings.append(f"{path}:{line}: {name!r} is listed already")
            else:
                ids[id] = None
    return list(ids), bad, warnings


def _split_file(root: Path, split: str) -> Path:
    known = {path.stem: path for path in sorted((root / "splits").glob("*.txt"))}
    if split in known:
        return known[split]
    if not known:
        raise UsageError(f"split {split!r}: {root} has no splits/NAME.txt; leave the split out to open all images")
    raise UsageError(f"split {split!r} is unknown{nearest(split, known)}; there are {', '.join(known)}")


def _lines(path: Path) -> list[tuple[int, str]]:
    text = read_text(path).replace("\r\n", "\n")
    return [(line, name) for line, name in enumerate(text.split("\n"), 1) if name.strip()]


def _usable(root: Path, name: str, tree: Tree, table: TagTable, ids: list[str], bad: list[BadFile],
            how: Reading) -> tuple[TaggedSet, list[BadFile]]:
    """Decode all, leave out what fails, and refuse a set of which too much does."""
    ids = list(spread(ids, how.limit)) if how.limit is not None else sorted(ids)
    source = FileImages({id: tree.files[id] for id in ids}, how.max_pixels, how.window)
    bad = bad + scan(source, ids, root, workers=how.workers)
    good = [id for id in ids if id in source.facts]
    _judge(root, bad, len(good), how.max_bad)
    tags = np.array([[c in table.rows.get(id, ()) for c in table.classes] for id in good], dtype=np.bool_)
    tagged = np.array([id in table.rows for id in good], dtype=np.bool_)
    return TaggedSet(name, table.classes, tuple(good), tags.reshape(len(good), -1), tagged, source), bad


def _judge(root: Path, bad: list[BadFile], good: int, max_bad: float) -> None:
    if good and len(bad) <= max_bad * (good + len(bad)):
        return
    listed = "\n".join(f"  {file.path!r}: {file.reason}: {file.detail}" for file in bad[:_SHOWN])
    more = f"\n  ... and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    raise TooManyBad(f"{root}: {len(bad)} of {good + len(bad)} images cannot be used, expected at most {max_bad:.1%} "
                     f"(--max-bad) and at least one good one; repair or remove them\n{listed}{more}", tuple(bad))


def _untagged(images: TaggedSet) -> list[str]:
    bare = [id for id, known in zip(images.ids, images.tagged, strict=True) if not known]
    if not bare:
        return []
    return [f"{len(bare)} images have no tag row and are predicted but not learned from: {', '.join(bare[:_SHOWN])}"
            + (", ..." if len(bare) > _SHOWN else "")]


def _converted(images: TaggedSet) -> list[str]:
    """What was done to pixels on the way in, and to how many images."""
    assert isinstance(images.source, FileImages)
    counts = Counter(note for id in images.ids for note in images.source.fact(id).notes)
    return [f"{count} of {len(images)} images: {note}" for note, count in sorted(counts.items())]


def _masks(root: Path, tree: Tree, how: Reading) -> tuple[FileMasks, list[str]]:
    """The masks that have an image; they are found, not opened."""
    place = root / "masks"
    if not place.is_dir():
        return FileMasks({}), []
    found = walk(place, root, suffixes=(".png",), follow_links=how.follow_links)
    strangers = [id for id in found.files if id not in tree.files]
    odd = [f"{len(items)} {what} in masks/, the first is {items[0]!r}" for items, what in (
        (strangers, "masks have no image"), ([file.path for file in found.bad.values()], "masks lie behind links"),
        ([file.path for file in found.ignored if file.reason != "hidden"], "files that are no .png")) if items]
    return FileMasks({id: path for id, path in found.files.items() if id in tree.files}), odd


