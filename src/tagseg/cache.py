"""The artifact cache as a whole: which runs point where, what lies in it, and the removal of what nobody points to."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagseg.disk import lock, write_atomic
from tagseg.store import RECORD, SCRATCH
from tagseg.types import EnvironmentFault, IntegrityError

RUNS = ".runs"
_OURS = re.compile(r"(?P<stage>[\w.]+)-[0-9a-f]{24}(?P<partial>\.partial)?")


@dataclass(frozen=True)
class Entry:
    """One folder of the cache. `made` is its time stamp, `used_by` the run folders that point to it."""

    name: str
    stage: str
    megabytes: float
    seconds: float
    made: float
    used_by: tuple[str, ...]


def register(cache: Path, run_folder: Path, artifacts: Iterable[Path]) -> Path:
    """Note that a run points to these artifacts, so that `gc` keeps them, finished or half-done.

    Call it with the paths of the plan before anything runs: an artifact that nobody has registered may go at any time.
    Registering a run again replaces what it pointed to before.
    """
    place = str(run_folder.resolve())
    note = cache / RUNS / f"{hashlib.sha256(place.encode('utf-8', 'surrogateescape')).hexdigest()[:24]}.json"
    names = sorted({path.name for path in artifacts})
    write_atomic(note, json.dumps({"run": place, "artifacts": names}, indent=1).encode())
    return note


def listing(cache: Path) -> list[Entry]:
    """Every artifact in the cache, half-done ones (`.partial`) included, by name."""
    return _entries(cache, _registered(cache))


def gc(cache: Path, *, forget_missing: bool = False, dry_run: bool = False) -> list[Entry]:
    """Remove the artifacts and half-done folders that no registered run points to; give back what was removed.

    A run whose folder has vanished still counts, for it may have been moved, unless `forget_missing`.
    What is being built is kept, and so is everything whose name is not one that a stage gives.
    """
    notes = _registered(cache)
    missing = {note for note, content in notes.items() if forget_missing and not Path(content["run"]).exists()}
    kept = {note: content for note, content in notes.items() if note not in missing}
    unused = [entry for entry in _entries(cache, kept) if not entry.used_by]
    if dry_run:
        return [entry for entry in unused if _remove(cache, entry.name, dry_run=True)]
    for note in missing:
        note.unlink(missing_ok=True)
    return [entry for entry in unused if _remove(cache, entry.name, dry_run=False)]


def _remove(cache: Path, name: str, *, dry_run: bool) -> bool:
    """Whether the folder was (or, dry, could be) removed: not while a process holds its lock."""
    try:
        with lock(cache / ".locks" / name.removesuffix(".partial"), wait=False):
            if not dry_run:
                (cache / name / RECORD).unlink(missing_ok=True)  # first: half removed must not look finished
                shutil.rmtree(cache / name)
    except EnvironmentFault:
        return False
    return True


def _registered(cache: Path) -> dict[Path, dict[str, Any]]:
    """The notes of all runs. One that cannot be read is an error: what it points to is not known and must be kept."""
    notes = {}
    for note in sorted((cache / RUNS).glob("*.json")):
        try:
            content = json.loads(note.read_text())
            notes[note] = {"run": str(content["run"]), "artifacts": set(content["artifacts"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IntegrityError(
                f"{note}: the note of a run cannot be read ({error}); remove it, then run that run's command again "
                "to have its artifacts kept"
            ) from error
    return notes


def _entries(cache: Path, notes: dict[Path, dict[str, Any]]) -> list[Entry]:
    found = []
    for folder in sorted(cache.iterdir()) if cache.is_dir() else []:
        match = _OURS.fullmatch(folder.name)
        if match and folder.is_dir() and not folder.is_symlink():
            name = folder.name.removesuffix(".partial")
            used_by = tuple(sorted(content["run"] for content in notes.values() if name in content["artifacts"]))
            found.append(_entry(folder, match["stage"], used_by))
    return found


def _entry(folder: Path, stage: str, used_by: tuple[str, ...]) -> Entry:
    record = folder / RECORD
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    made = (record if record.exists() else folder).stat().st_mtime
    return Entry(folder.name, stage, size / 2**20, _seconds(folder), made, used_by)


def _seconds(folder: Path) -> float:
    """What it cost: from the record, or from the scratch of a half-done one; 0 where neither can be read."""
    try:
        if (folder / RECORD).exists():
            return float(json.loads((folder / RECORD).read_text())["seconds"])
        return float((folder / SCRATCH / "seconds").read_text())
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
