"""Some classes of a set: what is said of the others is not looked at, and their pixels are background."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8

from tagseg.data.index import MaskedSet, TaggedSet
from tagseg.data.tags import nearest
from tagseg.types import IGNORE, UsageError


@dataclass(frozen=True, eq=False)
class ChosenMasks:
    """The masks of a set with other values: `table` holds the new value of each old one."""

    whole: MaskedSet
    table: bytes

    @property
    def ids(self) -> Collection[str]:
        return self.whole.ids

    def read(self, id: str) -> UInt8[np.ndarray, "h w"]:
        """Values are checked against all classes of the set before any is changed."""
        return np.frombuffer(self.table, np.uint8)[self.whole.mask(id)]

    def digest(self, id: str) -> str:
        return hashlib.sha256(self.whole.masks.digest(id).encode() + self.table).hexdigest()


def chosen_tags(tagged: TaggedSet, classes: Sequence[str], flag: str = "--only") -> TaggedSet:
    """The same images with the tags of some classes, in the order given; an image with none of them is a negative.

    Errors: `UsageError` that begins with `flag`, for a class that is not in the set, and one named twice.
    """
    for name in classes:
        if name not in tagged.classes:
            raise UsageError(f"{flag}: {tagged.name!r} has no class {name!r}{nearest(name, tagged.classes)}; "
                             f"expected some of {', '.join(tagged.classes[:20])}")
    if len(set(classes)) < len(classes):
        raise UsageError(f"{flag} {','.join(classes)}: expected each class once")
    columns = [tagged.classes.index(name) for name in classes]
    return replace(tagged, classes=tuple(classes), tags=tagged.tags[:, columns], has_background=True)


def chosen(masked: MaskedSet, classes: Sequence[str], flag: str = "--only", *, unknown: Collection[str] = ()
           ) -> MaskedSet:  # fmt: skip
    """`chosen_tags` with masks: pixels of the other classes are background (0), those of `unknown` ones 255."""
    tagged, table = chosen_tags(masked.tagged, classes, flag), np.zeros(256, np.uint8)
    table[IGNORE] = IGNORE
    for value, name in enumerate(masked.classes, 1):
        if name in classes:
            table[value] = classes.index(name) + 1
        elif name in unknown:
            table[value] = IGNORE
    return MaskedSet(tagged, ChosenMasks(masked, table.tobytes()))
