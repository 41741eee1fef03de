"""Which of several candidate masks a person picked for an image: a small CSV file, written after every pick."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tagseg.data.tags import nearest, read_text
from tagseg.disk import write_atomic
from tagseg.types import DataError

HEAD = ("file", "candidate")


@dataclass(frozen=True, eq=False)
class Picks:
    """Names of candidates by image id. A value that stages take: its key is made of what was picked."""

    chosen: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.chosen)

    @cached_property
    def key(self) -> str:
        """sha256 over ids and names."""
        return hashlib.sha256(json.dumps(["picks", sorted(self.chosen.items())]).encode()).hexdigest()

    def of(self, name: str) -> list[str]:
        """The images whose pick is this candidate."""
        return sorted(id for id, chosen in self.chosen.items() if chosen == name)

    def among(self, ids: Collection[str]) -> Picks:
        """Those of these images."""
        known = set(ids)
        return Picks({id: name for id, name in self.chosen.items() if id in known})


def read_picks(path: Path, candidates: Collection[str]) -> Picks:
    """Read a file of picks. Errors: `DataError` naming the line: another header, an unknown candidate, an id twice."""
    rows = list(csv.reader(io.StringIO(read_text(path))))
    if not rows or tuple(rows[0]) != HEAD:
        raise DataError(f"{path}:1: found {','.join(rows[0]) if rows else 'an empty file'}, expected the header "
                        f"'{','.join(HEAD)}', as `tagseg pick` writes it")
    chosen: dict[str, str] = {}
    for line, row in enumerate(rows[1:], 2):
        if not row:
            continue
        if len(row) != 2 or row[0] in chosen:
            what = "listed already" if row[0] in chosen else f"{len(row)} fields, expected 2"
            raise DataError(f"{path}:{line}: {row[0]!r}: {what}")
        if row[1] not in candidates:
            near = nearest(row[1], list(candidates))
            raise DataError(f"{path}:{line}: candidate {row[1]!r} is unknown{near}; expected {', '.join(candidates)}")
        chosen[row[0]] = row[1]
    return Picks(chosen)


def write_picks(path: Path, picks: Mapping[str, str]) -> None:
    """Write all picks, sorted by id, in one atomic step."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([HEAD, *sorted(picks.items())])
    write_atomic(path, text.getvalue().encode("utf-8", "surrogateescape"))
