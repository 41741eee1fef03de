"""A folder of results of one call on a folder of images: what an earlier call left there, what this one writes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from tagseg.data.files import BadFile
from tagseg.disk import write_atomic
from tagseg.runs.run import table

Place = tuple[str, str]  # a folder of the results ("" the folder itself) and the suffix of what lies there


def inner_cache(named: Path | None, out: Path) -> Path:
    """--cache, else TAGSEG_CACHE, else a folder inside --out."""
    named = named or (Path(os.environ["TAGSEG_CACHE"]) if os.environ.get("TAGSEG_CACHE") else None)
    return (named or out / ".tagseg-cache").resolve()


def clear(out: Path, marker: str, places: Iterable[Place]) -> None:
    """Take away what an earlier call wrote here: the marker lists its ids."""
    places = list(places)
    for id in (out / marker).read_bytes().decode("utf-8", "surrogateescape").split("\n"):
        for folder, suffix in places if id else ():
            (out / folder / f"{id}{suffix}").unlink(missing_ok=True)


def mark(out: Path, marker: str, ids: Iterable[str]) -> None:
    """Note the ids of what is written here."""
    write_atomic(out / marker, "\n".join(ids).encode("utf-8", "surrogateescape"))


def list_bad(out: Path, bad: Iterable[BadFile]) -> None:
    """bad_files.csv: everything that was left out, and why."""
    write_atomic(out / "bad_files.csv", table([("file", "reason", "detail"), *bad]))
