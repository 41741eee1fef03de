"""The files of a data folder by id: what counts as an image, what is passed over, and why."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from tagseg.data.files import BadFile, relative
from tagseg.data.images import SUFFIXES, is_unnamed_dicom
from tagseg.types import DataError, EnvironmentFault

_SHOWN = 5


@dataclass(frozen=True)
class Tree:
    """`files`: id -> path; `names`: file name as lists give it -> id; `bad` by id; `ignored` with reasons.

    Names and ids are relative to the folder that was walked, posix, in Unicode form NFC, so that a list written on
    one system finds files copied from another.
    """

    files: dict[str, Path] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    bad: dict[str, BadFile] = field(default_factory=dict)
    ignored: list[BadFile] = field(default_factory=list)

    def resolve(self, name: str) -> str | None:
        """The id that a list or a table means by `name`: with suffix or without, below images/ or not."""
        name = unicodedata.normalize("NFC", name)
        for form in (name, name.strip(), name.strip().replace("\\", "/")):
            for short in (form, form.removeprefix("./").removeprefix("images/")):
                if short in self.names:
                    return self.names[short]
                if short in self.files or short in self.bad:
                    return short
        return None


def walk(folder: Path, root: Path, *, suffixes: Collection[str] = SUFFIXES, skip: Collection[Path] = (),
         follow_links: bool = False) -> Tree:
    """Find the images below `folder`. Hidden files and other names are ignored and listed; DICOM files need no name.

    A link that leaves `root` is bad unless `follow_links`. Errors: `DataError` where two files have one id (`a.jpg`
    beside `a.png`), `EnvironmentFault` where a folder cannot be listed.
    """
    root = root.resolve()
    tree = Tree()
    clashes: list[str] = []
    judge = _Walk(folder, root, suffixes, skip, follow_links, tree)
    for path in _entries(folder, judge, set()):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() not in suffixes and not (suffixes is SUFFIXES and is_unnamed_dicom(path)):
            tree.ignored.append(BadFile(relative(path, root), "not-an-image-name", f"expected {' '.join(suffixes)}"))
        elif not _is_text(name):
            tree.bad[name] = BadFile(relative(path, root), "name-not-utf8", "rename the file")
        else:
            suffix = path.suffix if path.suffix.lower() in suffixes else ""
            _add(tree, unicodedata.normalize("NFC", name), suffix, path, root, clashes)
    if clashes:
        more = f" and {len(clashes) - _SHOWN} more" if len(clashes) > _SHOWN else ""
        raise DataError("two files with one id (the path without suffix): " + "; ".join(clashes[:_SHOWN]) + more
                        + "; remove or rename one of each")
    return tree


# ---- inside ----

def _add(tree: Tree, name: str, suffix: str, path: Path, root: Path, clashes: list[str]) -> None:
    id = name[:len(name) - len(suffix)]
    if id in tree.files:
        clashes.append(f"{relative(tree.files[id], root)!r} and {relative(path, root)!r}")
        return
    tree.files[id] = path
    tree.names[name] = id


@dataclass(frozen=True)
class _Walk:
    place: Path
    root: Path
    suffixes: Collection[str]
    skip: Collection[Path]
    follow: bool
    tree: Tree


def _entries(folder: Path, walk: _Walk, visited: set[Path]) -> list[Path]:
    """All files below `folder` in sorted order; links and hidden names are judged here."""
    if folder.resolve() in visited:  # links in a circle
        return []
    visited.add(folder.resolve())
    found: list[Path] = []
    for path in _listed(folder):
        if path.is_dir() and not _passed_over(path, walk):
            found += _entries(path, walk, visited)
        elif not path.is_dir() and not _passed_over(path, walk):
            found.append(path)
    return found


def _passed_over(path: Path, walk: _Walk) -> bool:
    """Whether a name or a link keeps a path out; the reason is listed."""
    where = relative(path, walk.root)
    if path in walk.skip:
        return True
    if path.name.startswith("."):
        walk.tree.ignored.append(BadFile(where, "hidden", "names with a leading dot are passed over"))
        return True
    if walk.follow or not path.is_symlink():
        return False
    if path.is_dir() and path.resolve().is_relative_to(walk.root):
        walk.tree.ignored.append(BadFile(where, "link-inside", "its files are found at their own place"))
        return True
    if path.resolve().is_relative_to(walk.root) or not (path.is_dir() or path.suffix.lower() in walk.suffixes):
        return False
    name = unicodedata.normalize("NFC", path.relative_to(walk.place).as_posix())
    walk.tree.bad[name.removesuffix(path.suffix) if path.suffix else name] = _link(path, walk.root)
    return True


def _link(path: Path, root: Path) -> BadFile:
    return BadFile(relative(path, root), "link-outside",
                   f"points to {relative(path.resolve(), root)}, outside the data folder; --follow-links allows it")


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise EnvironmentFault(f"{folder}: the folder cannot be listed ({error.strerror}); check it") from error


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
