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

import numpy as np

from tagseg.data.tags import nearest, read_text
from tagseg.disk import write_atomic
from tagseg.types import U8, DataError

HEAD = ("file", "candidate", "mask")


@dataclass(frozen=True, eq=False)
class Picks:
    """Names of candidates by image id. A value that stages take: its key is made of what was picked.

    `seen`: the `fingerprint` of the mask that the person looked at, where it is known.
    """

    chosen: Mapping[str, str] = field(default_factory=dict)
    seen: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.chosen)

    @cached_property
    def key(self) -> str:
        """sha256 over ids and names."""
        return hashlib.sha256(json.dumps(["picks", sorted(self.chosen.items())]).encode()).hexdigest()

    @cached_property
    def looked(self) -> Looked:
        """What was seen, as a value of its own: it changes no mask."""
        return Looked(self.seen)

    def of(self, name: str) -> list[str]:
        """The images whose pick is this candidate."""
        return sorted(id for id, chosen in self.chosen.items() if chosen == name)

    def among(self, ids: Collection[str]) -> Picks:
        """Those of these images."""
        known = set(ids)
        return Picks({id: name for id, name in self.chosen.items() if id in known},
                     {id: mask for id, mask in self.seen.items() if id in known})


@dataclass(frozen=True, eq=False)
class Looked:
    """Fingerprints of the masks that a person looked at, by image id."""

    masks: Mapping[str, str]

    @cached_property
    def key(self) -> str:
        """sha256 over ids and fingerprints."""
        return hashlib.sha256(json.dumps(["looked", sorted(self.masks.items())]).encode()).hexdigest()


def fingerprint(mask: U8) -> str:
    """Twelve digits that tell one mask (H,W) from another."""
    return hashlib.sha256(str(mask.shape).encode() + np.ascontiguousarray(mask).tobytes()).hexdigest()[:12]


def read_picks(path: Path, candidates: Collection[str]) -> Picks:
    """Read a file of picks. Errors: `DataError` naming the line: another header, an unknown candidate, an id twice.

    The last column, the fingerprint of the mask that was seen, may be empty or missing: files that people write.
    """
    try:
        rows = list(csv.reader(io.StringIO(read_text(path))))
    except csv.Error as error:
        raise DataError(f"{path}: cannot be read as CSV ({error}); expected lines of '{','.join(HEAD)}'") from error
    if not rows or tuple(rows[0]) not in (HEAD, HEAD[:2]):
        raise DataError(f"{path}:1: found {','.join(rows[0]) if rows else 'an empty file'}, expected the header "
                        f"'{','.join(HEAD)}', as `tagseg pick` writes it")
    chosen, seen, fields = dict[str, str](), dict[str, str](), len(rows[0])
    for line, row in enumerate(rows[1:], 2):
        if not row:
            continue
        if len(row) != fields or row[0] in chosen:
            what = "listed already" if row[0] in chosen else f"{len(row)} fields, expected {fields}"
            raise DataError(f"{path}:{line}: {row[0]!r}: {what}")
        if row[1] not in candidates:
            near = nearest(row[1], list(candidates))
            raise DataError(f"{path}:{line}: candidate {row[1]!r} is unknown{near}; expected {', '.join(candidates)}")
        chosen[row[0]] = row[1]
        if fields > 2 and row[2]:
            seen[row[0]] = row[2]
    return Picks(chosen, seen)


def write_picks(path: Path, picks: Mapping[str, str], seen: Mapping[str, str] | None = None) -> None:
    """Write all picks, sorted by id, with the fingerprints of what was `seen`, in one atomic step."""
    text, masks = io.StringIO(), seen or {}
    rows = [(id, name, masks.get(id, "")) for id, name in sorted(picks.items())]
    odd = any("\r" in id for id in picks)  # which the usual rules leave unquoted
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if odd else csv.QUOTE_MINIMAL).writerows([HEAD, *rows])
    write_atomic(path, text.getvalue().encode("utf-8", "surrogateescape"))
