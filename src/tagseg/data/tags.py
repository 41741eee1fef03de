"""tags.csv to a table of tags: every doubtful line has its own message with line number and nearest name."""

from __future__ import annotations

import csv
import difflib
import io
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tagseg.types import MAX_CLASSES, DataError, UsageError

_SHOWN = 10
_TAG_HEADERS = ("tags", "tag", "labels", "label")
Resolve = Callable[[str], str | None]


@dataclass(frozen=True)
class TagTable:
    """`rows`: id -> the tags of that image (an empty set is a negative); `classes` in their order; soft `warnings`."""

    classes: tuple[str, ...]
    rows: Mapping[str, frozenset[str]]
    warnings: tuple[str, ...] = ()


@dataclass
class _Reading:
    """What has been found so far in one file."""

    path: Path
    names: Collection[str]
    classes: tuple[str, ...] | None
    rows: dict[str, frozenset[str]] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    strangers: int = 0


def normalise(text: str) -> str:
    """The one rule for names of tags and files: Unicode NFC, no space around. Letter case is kept."""
    return unicodedata.normalize("NFC", text).strip()


def nearest(name: str, known: Collection[str]) -> str:
    """'; the nearest is X', or nothing where no name is near. Case and spaces are looked through first."""
    same = [k for k in known if _fold(k) == _fold(name)]
    found = same or difflib.get_close_matches(name, list(known)[:5000], n=1)
    return f"; the nearest is {found[0]!r}" if found else ""


def read_tags(path: Path, resolve: Resolve, names: Collection[str], classes: Sequence[str] | None = None) -> TagTable:
    """Read `file,tags` (tags split by ; or |) or one 0/1 column for each class.

    `resolve` gives the image id that a file name means, or None; `names` are the known file names, for messages;
    `classes` fixes names and order (classes.txt), else they are the tags found, sorted.
    Errors: `DataError` that lists the lines at fault: unknown tag, two rows for one image that differ, wrong cells.
    Warnings: rows without an image, repeated rows and tags, a class with fewer than two images.
    """
    reading = _Reading(path, names, tuple(classes) if classes is not None else None)
    lines = _records(path)
    header_line, header = next(lines, (0, []))
    columns = _columns(path, header_line, header, reading)
    for line, cells in lines:
        if any(cell.strip() for cell in cells):
            _take(reading, line, cells, header, columns, resolve)
    if reading.strangers > _SHOWN:
        reading.warnings.append(f"{path}: {reading.strangers} rows in all name no image of this folder")
    _compare_seen(reading)
    _raise_errors(path, reading)
    found = reading.classes if reading.classes is not None else tuple(sorted(reading.seen))
    _check_found(path, reading, found)
    return TagTable(found, reading.rows, tuple(reading.warnings))


def read_classes(path: Path) -> tuple[str, ...]:
    """classes.txt: one name a line; line k is mask value k. Errors: `DataError` with line numbers."""
    found: dict[str, int] = {}
    for line, text in enumerate(read_text(path).splitlines(), 1):
        name = normalise(text)
        if not name:
            continue
        if name in found:
            raise DataError(f"{path}:{line}: class {name!r} stands on line {found[name]} already; remove one")
        _refuse_background(f"{path}:{line}", name)
        found[name] = line
    if not 1 <= len(found) <= MAX_CLASSES:
        raise DataError(f"{path}: found {len(found)} classes, expected 1..{MAX_CLASSES}, one name a line")
    return tuple(found)


def read_text(path: Path) -> str:
    """A text file as UTF-8, with or without a byte-order mark. HTML and binary files are a `DataError`."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UsageError(f"{path}: {error.strerror}; expected a readable text file") from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: found UTF-16 text, expected UTF-8; save it as 'CSV UTF-8'")
    if b"\0" in data:
        raise DataError(f"{path}: found binary data, expected text; a spreadsheet must be exported as CSV")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[:error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: found bytes that are not UTF-8; save the file as UTF-8") from None
    if text.lstrip()[:1] == "<":
        raise DataError(f"{path}: found HTML or XML, expected text lines; was a web page saved instead of the file?")
    return text


def rare_classes(table: TagTable, ids: Collection[str]) -> list[str]:
    """A warning for each class with fewer than two of the images in `ids`: nothing can be learned from those."""
    warnings = []
    for name in table.classes:
        count = sum(name in table.rows.get(id, ()) for id in ids)
        if count < 2:
            warnings.append(f"class {name!r} has {count} image{'s' if count != 1 else ''}, expected at least 2; "
                            "add images or drop the class")
    return warnings


# ---- inside ----

def _fold(name: str) -> str:
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name)).casefold()


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of each record; a quoted cell may span lines. `strict` finds a quote that never closes."""
    text = read_text(path)
    first = text.split("\n", 1)[0]
    delimiter = next((d for d in (",", "\t", ";") if d in first), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for cells in reader:
            yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{line}: {error}; check the quotes from this line on") from None


def _columns(path: Path, line: int, header: list[str], reading: _Reading) -> tuple[str, ...] | None:
    """None for `file,tags`, else the class of each further column."""
    names = [normalise(cell) for cell in header]
    if len(names) < 2 or names[0].lower() not in ("file", "filename", "file_name", "image", "id"):
        raise DataError(f"{path}:{line or 1}: the first line is {','.join(header)[:80]!r}, expected 'file,tags' or "
                        "'file' and one column for each class")
    if len(names) == 2 and names[1].lower() in _TAG_HEADERS:
        return None
    for name in names[1:]:
        _note_tag(reading, line, name)
    repeated = {name for name in names[1:] if names.count(name) > 1}
    if repeated:
        reading.errors.append(f"{path}:{line}: columns with one name: {', '.join(sorted(repeated))}")
    return tuple(names[1:])


def _take(reading: _Reading, line: int, cells: list[str], header: list[str], columns: tuple[str, ...] | None,
          resolve: Resolve) -> None:
    if len(cells) != len(header):
        hint = "; split several tags by ; or |" if columns is None else ""
        reading.errors.append(f"{reading.path}:{line}: found {len(cells)} cells, expected {len(header)}{hint}")
        return
    if columns is None:
        tags = _split(reading, line, cells[1])
    else:
        tags = _flags(reading, line, cells[1:], columns)
    id = resolve(cells[0])
    if id is None:
        _note_stranger(reading, line, cells[0])
    elif id not in reading.rows:
        reading.rows[id], reading.lines[id] = tags, line
    elif reading.rows[id] == tags:
        reading.warnings.append(f"{reading.path}:{line}: {cells[0]!r} stands on line {reading.lines[id]} already")
    else:
        reading.errors.append(
            f"{reading.path}:{line}: {cells[0]!r} has {_words(tags)} here and {_words(reading.rows[id])} on line "
            f"{reading.lines[id]}; keep one row, with all of its tags")


def _note_stranger(reading: _Reading, line: int, name: str) -> None:
    """The nearest name is looked for a few times only: thousands of rows may belong to images left elsewhere."""
    reading.strangers += 1
    if reading.strangers <= _SHOWN:
        reading.warnings.append(f"{reading.path}:{line}: no image {name!r}" + nearest(name, reading.names))


def _split(reading: _Reading, line: int, cell: str) -> frozenset[str]:
    names = [name for name in map(normalise, re.split(r"[;|]", cell)) if name]
    for name in names:
        _note_tag(reading, line, name)
    for name in sorted({name for name in names if names.count(name) > 1}):
        reading.warnings.append(f"{reading.path}:{line}: tag {name!r} stands twice")
    return frozenset(names)


def _flags(reading: _Reading, line: int, cells: list[str], columns: tuple[str, ...]) -> frozenset[str]:
    for name, cell in zip(columns, cells, strict=True):
        if cell.strip() not in ("0", "1"):
            reading.errors.append(f"{reading.path}:{line}: found {cell!r} in column {name!r}, expected 0 or 1")
    return frozenset(name for name, cell in zip(columns, cells, strict=True) if cell.strip() == "1")


def _note_tag(reading: _Reading, line: int, name: str) -> None:
    if not name:
        reading.errors.append(f"{reading.path}:{line}: found a column without a name, expected a class name")
        return
    known = reading.classes
    if known is not None and name not in known:
        near = nearest(name, known) or f"; the classes are {', '.join(known[:20])}"
        reading.errors.append(f"{reading.path}:{line}: tag {name!r} is not in the class list{near}")
    elif known is None and _fold(name) == "background":
        reading.errors.append(f"{reading.path}:{line}: 'background' is not a tag; leave the field empty instead")
    reading.seen.setdefault(name, line)


def _compare_seen(reading: _Reading) -> None:
    """Without a class list, 'Dog' and 'dog' would become two classes."""
    if reading.classes is not None:
        return
    first: dict[str, str] = {}
    for name, line in reading.seen.items():
        other = first.setdefault(_fold(name), name)
        if other != name:
            reading.errors.append(
                f"{reading.path}:{line}: tag {name!r} differs from {other!r} (line {reading.seen[other]}) in case or "
                "spaces only; use one, or list both in classes.txt")


def _raise_errors(path: Path, reading: _Reading) -> None:
    if reading.errors:
        more = len(reading.errors) - _SHOWN
        tail = [f"... and {more} more"] if more > 0 else []
        raise DataError("\n".join([*reading.errors[:_SHOWN], *tail]))


def _check_found(path: Path, reading: _Reading, classes: tuple[str, ...]) -> None:
    if not reading.rows:
        hint = "; " + reading.warnings[0] if reading.warnings else ""
        raise DataError(f"{path}: no row names an image of this folder, expected file names as in 'a.jpg'{hint}")
    if not classes:
        raise DataError(f"{path}: every tag field is empty, expected at least one tag")


def _refuse_background(where: str, name: str) -> None:
    if _fold(name) == "background":
        raise DataError(f"{where}: 'background' is not a class: mask value 0 stands for it; remove the line")


def _words(tags: frozenset[str]) -> str:
    return repr(";".join(sorted(tags))) if tags else "no tag"
