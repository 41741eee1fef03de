"""A folder of maps or labels made by another program: matched to images by name, every file checked, the rest said."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tagseg.data.files import BadFile, FileImages, relative, scan
from tagseg.data.folder import Reading, TooManyBad
from tagseg.data.foreign_maps import Fact, Files, ForeignMaps, MapReading, Size, by, read
from tagseg.data.index import TaggedSet, spread
from tagseg.data.map_files import SUFFIXES, BadMap
from tagseg.data.tags import nearest, read_classes
from tagseg.data.tree import Tree, walk
from tagseg.disk import file_sha256
from tagseg.ops.scores import to_probabilities
from tagseg.types import BACKGROUND, DataError, UsageError

_SHOWN = 5
_DARK = 0.15


@dataclass(frozen=True, eq=False)
class OpenedMaps:
    """Images that have usable maps, the maps, what was left out, and in words how all was read."""

    images: TaggedSet
    maps: ForeignMaps
    bad: tuple[BadFile, ...]
    notes: tuple[str, ...]


def open_maps(maps: Path, images: Path, how: MapReading | None = None) -> OpenedMaps:
    """Match the maps below `maps` to the images of the same relative name below `images`; read and check all once.

    Layouts: ID.npy, ID.npz or ID.png, or CLASS/ID.png, one for each class. Images without maps are passed over, maps
    without an image are bad. Bad files are named with their folder, as both folders may hold the name.
    Errors: `UsageError` where the reading must be said, `DataError` (`TooManyBad`) else.
    """
    how = how or MapReading()
    _check(maps, images, how)
    photos = _photos(images, maps, how.images)
    files, folders, bad, notes = _matched(maps, images, photos, how)
    listed = _listed(maps, how, folders)
    ids = spread(files, how.images.limit) if how.images.limit is not None else tuple(sorted(files))
    source = FileImages({id: photos.files[id] for id in ids}, how.images.max_pixels, how.images.window)
    bad += scan(source, ids, images.resolve().parent, workers=how.images.workers)
    sizes = {id: source.facts[id].size for id in ids if id in source.facts}
    facts, wrong = _examined(maps, files, sizes, listed, how)
    _judge(maps, bad + wrong, len(facts), how.images.max_bad)
    first = _first_is_background(maps, facts, listed, how)
    names = listed or tuple(str(c) for c in range(1, _highest(facts, first) + 1))
    misfits = _misfits(maps, files, facts, names, first)
    good = tuple(id for id in facts if id not in misfits)
    bad += wrong + list(misfits.values())
    _judge(maps, bad, len(good), how.images.max_bad)
    found = ForeignMaps(names, first, {id: files[id] for id in good}, sizes, {id: facts[id] for id in good}, how)
    _check_backgrounds(maps, found)
    tagged = TaggedSet(images.resolve().name, names, good, found.tags(), np.ones(len(good), np.bool_), source)
    left = len(photos.files) - len(files)
    notes += [f"{left} images have no map and were passed over"] * (left > 0) + _said(found, bool(listed))
    return OpenedMaps(tagged, found, tuple(bad), tuple(notes))


# ---- where things are ----

def _check(maps: Path, images: Path, how: MapReading) -> None:
    for folder, what in ((maps, "maps"), (images, "images")):
        if not folder.is_dir():
            found = "a file" if folder.exists() else "nothing"
            raise UsageError(f"{folder}: found {found}, expected a folder of {what}")
    for name, value in (("--gt-prob", how.gt_prob), ("--floor", how.floor)):
        if not (0 < value < 1 or (name == "--floor" and value == 0)):
            raise UsageError(f"{name} {value}: expected a number between 0 and 1, both excluded")


def _photos(images: Path, maps: Path, how: Reading) -> Tree:
    """The images by id, as `open_images` finds them; maps among them are no images."""
    root = images.resolve()
    place = root / "images" if (root / "images").is_dir() else root
    tree = walk(place, root, skip=[maps.resolve()], follow_links=how.follow_links)
    if not tree.files:
        raise DataError(f"{place}: found no image among {len(tree.ignored)} files, expected .jpg, .png, .tif, ...")
    return tree


def _matched(
    maps: Path, images: Path, photos: Tree, how: MapReading
) -> tuple[Files, tuple[str, ...], list[BadFile], list[str]]:
    """Files by image id, class folders if there are such, files without an image, and the layout in words."""
    root = maps.resolve()
    tree = walk(root, root, suffixes=SUFFIXES, skip=[images.resolve()], follow_links=how.images.follow_links)
    whole = [name for name in tree.files if name in photos.files]
    split = [name for name in tree.files if "/" in name and name.split("/", 1)[1] in photos.files]
    if not whole and not split:
        raise DataError(f"{maps}: no {', '.join(SUFFIXES)} has the name of an image: found {_some(tree.files)} for the "
                        f"images {_some(photos.files)}; expected ID.npy, or CLASS/ID.png, for an image ID.jpg")
    if whole and split:
        raise DataError(f"{maps}: {whole[0]!r} is named as an image and {split[0]!r} as CLASS/ID; expected one of "
                        "these layouts: move the others away")
    if split and how.labels:
        raise UsageError(f"--labels: {maps} holds a folder for each class, expected one file of indices for each image")
    files: dict[str, tuple[tuple[str, Path], ...]] = {}
    for name in whole or sorted(split):
        folder, id = ("", name) if whole else name.split("/", 1)
        files[id] = (*files.get(id, ()), (folder, tree.files[name]))
    strays = sorted(tree.files.keys() - {*whole, *split})
    bad = [BadFile(relative(tree.files[name], root.parent), "no-image", "no image has this name") for name in strays]
    folders = tuple(sorted({name.split("/", 1)[0] for name in split}))
    text = f"one file of {'labels' if how.labels else 'maps'} for each image"
    if folders:
        text = f"one folder of maps for each class: {', '.join(folders)}"
    return files, folders, [*bad, *tree.bad.values()], [text]


def _listed(maps: Path, how: MapReading, folders: tuple[str, ...]) -> tuple[str, ...] | None:
    """The class names where they are known before a map is read: from a list, else from the class folders."""
    file = how.classes or (maps / "classes.txt" if (maps / "classes.txt").is_file() else None)
    named = tuple(name for name in folders if name != "background")
    if file is None:
        return named or None
    listed = read_classes(file)
    unknown = [name for name in named if name not in listed]
    if unknown:
        raise DataError(f"{file}: the folder of maps {unknown[0]!r} is not in the list{nearest(unknown[0], listed)}")
    return listed


# ---- what they hold ----

def _examined(maps: Path, files: Files, sizes: Mapping[str, Size], listed: tuple[str, ...] | None,
              how: MapReading) -> tuple[dict[str, Fact], list[BadFile]]:
    """Read the maps of every usable image once: facts of the good ones, reasons for the others."""
    def one(id: str) -> Fact | BadFile:
        try:
            return _fact(files[id], sizes[id], listed, how)
        except BadMap as bad:
            return BadFile(relative(Path(bad.path), maps.resolve().parent), bad.reason, bad.detail)

    with ThreadPoolExecutor(how.images.workers) as pool:
        found = dict(zip(sizes, pool.map(one, sizes), strict=True))
    return ({id: fact for id, fact in found.items() if isinstance(fact, Fact)},
            [bad for bad in found.values() if isinstance(bad, BadFile)])


def _fact(files: tuple[tuple[str, Path], ...], size: Size, listed: tuple[str, ...] | None, how: MapReading) -> Fact:
    stored, path = read(files, how), files[0][1]
    channels, values = stored.values, stored.classes
    if how.labels and channels.shape[1:] != size:
        raise BadMap(path, "size", f"labels of {by(channels.shape[1:])} for an image of {by(size)}; expected its size")
    check_fit(path, (channels.shape[1], channels.shape[2]), size)
    if files[0][0] and listed is not None:
        values = tuple(BACKGROUND if name == "background" else listed.index(name) + 1 for name, _ in files)
    peaks, shares = channels.max((1, 2)), to_probabilities(channels).max((1, 2))
    sums = bool(np.abs(channels.sum(0) - 1).max() < 0.01)
    digest = hashlib.sha256("".join(file_sha256(path) for _, path in files).encode()).hexdigest()
    return Fact(values, tuple(peaks.tolist()), tuple(shares.tolist()), sums, digest)


def check_fit(path: Path, grid: Size, size: Size) -> None:
    """Maps are the image's size or a smaller copy, each side rounded by less than one cell."""
    (h, w), (height, width) = grid, size
    if h <= height and w <= width and abs(h * width - w * height) < height + width:
        return
    turned = "; it fits the photo before its EXIF rotation" if abs(w * width - h * height) < height + width else ""
    raise BadMap(path, "size", f"maps of {by(grid)} for an image of {by(size)} (HxW); expected its size, or a "
                 f"smaller copy of the same aspect ratio{turned}")


def _first_is_background(maps: Path, facts: Mapping[str, Fact], listed: tuple[str, ...] | None,
                         how: MapReading) -> bool:
    """Whether channels that nothing names start with the background: said, or told by the number of classes."""
    plain = [fact for fact in facts.values() if fact.values is None]
    if how.background != "auto" or not plain:
        return how.background == "first"
    count = Counter(len(fact.scores) for fact in plain).most_common(1)[0][0]
    if listed is not None and count in (len(listed), len(listed) + 1):
        return count == len(listed) + 1
    if listed is not None:
        raise DataError(f"{maps}: found {count} maps an image for {len(listed)} classes, expected {len(listed)}, or "
                        f"{len(listed) + 1} with the background first; complete the list of classes (--classes)")
    if count == 1:
        return False
    hint = "They sum to 1 at each pixel, as with a background. " if all(fact.sums for fact in plain) else ""
    raise UsageError(f"{maps}: found {count} maps an image and no list of classes: is the first one the background? "
                     f"{hint}Say --background first or --background none, or name the classes with --classes FILE")


def _highest(facts: Mapping[str, Fact], first: bool) -> int:
    """The number of classes where no list says it."""
    plain = Counter(len(fact.scores) for fact in facts.values() if fact.values is None).most_common(1)
    named = [max(fact.values) for fact in facts.values() if fact.values]
    return max([1, *named, *(count - first for count, _ in plain)])


def _misfits(maps: Path, files: Files, facts: Mapping[str, Fact], names: tuple[str, ...],
             first: bool) -> dict[str, BadFile]:
    """Images whose maps are not those of the classes."""
    found = {}
    for id, fact in facts.items():
        where = relative(files[id][0][1], maps.resolve().parent)
        if fact.values is None and len(fact.scores) != len(names) + first:
            found[id] = BadFile(where, "channels", f"found {len(fact.scores)} maps, expected {len(names) + first}")
        elif fact.values is not None and max(fact.values) > len(names):
            found[id] = BadFile(where, "classes", f"found class {max(fact.values)}, expected 1..{len(names)}")
    return found


def _check_backgrounds(maps: Path, found: ForeignMaps) -> None:
    without = [id for id in found.ids if BACKGROUND not in found.values(id)]
    if without and len(without) < len(found.ids):
        raise DataError(f"{maps}: {len(without)} of {len(found.ids)} images have no map of the background, the first "
                        f"is {without[0]!r}; expected one for all images or for none: refine them in two folders")


def _judge(maps: Path, bad: list[BadFile], good: int, max_bad: float) -> None:
    """The rule of image folders: at least one good, and no more bad than accepted."""
    if good and len(bad) <= max_bad * (good + len(bad)):
        return
    listed = "\n".join(f"  {file.path!r}: {file.reason}: {file.detail}" for file in bad[:_SHOWN])
    more = f"\n  ... and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    raise TooManyBad(f"{maps}: {len(bad)} of {good + len(bad)} images or maps cannot be used, expected at most "
                     f"{max_bad:.1%} (--max-bad) and at least one good one; repair or remove them\n{listed}{more}",
                     tuple(bad))


def _said(found: ForeignMaps, listed: bool) -> list[str]:
    """The reading in words."""
    notes = [] if listed else [f"no list of classes: they are called 1 to {len(found.classes)}"]
    notes.append("labels with background 0 and 255 unsure" if found.how.labels else
                 f"the background has {'a map of its own' if found.has_background else 'no map'}")
    if not found.how.floor and len(found.classes) > 2 and bool(found.tags().all()):
        notes.append("every class counts as present in every image: --floor 0.05 leaves out those that are not seen")
    if found.how.floor:
        notes.append(f"{found.dropped()} maps under {found.how.floor:g} everywhere were left out")
    grey = all(path.suffix.lower() == ".png" for files in found.files.values() for _, path in files)
    if grey and not found.how.labels and max(max(fact.scores) for fact in found.facts.values()) < _DARK:
        notes.append("the PNG files are nearly black: if they hold class indices, give --labels")
    return notes


def _some(names: Mapping[str, Path]) -> str:
    shown = [repr(name) for name in list(names)[:3]]
    return ", ".join(shown) + (", ..." if len(names) > 3 else "") or "none"
