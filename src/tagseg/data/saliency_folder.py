"""Saliency maps that another program made, by image id, with the word of who gives them on how they were made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from tagseg.data.files import relative
from tagseg.data.foreign_folders import check_fit
from tagseg.data.index import Images
from tagseg.data.map_files import SUFFIXES, BadMap, read_map
from tagseg.data.tree import walk
from tagseg.disk import file_sha256
from tagseg.types import DataError, UsageError

_SHOWN = 5


@dataclass(frozen=True, eq=False)
class SaliencyFolder:
    """Maps by image id, read from their files each time: a value that stages take, with a key made of content.

    `origin`: what made them and what that was trained with, as it was told.
    """

    folder: Path
    origin: str
    files: Mapping[str, Path]
    digests: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(sorted(self.files))

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def key(self) -> str:
        """sha256 over the origin, the ids and the bytes of every file."""
        for id in self.ids:
            if id not in self.digests:  # shared by what `select` gives, so that no file is read twice for it
                self.digests[id] = file_sha256(self.files[id])
        content = [[id, self.digests[id]] for id in self.ids]
        return hashlib.sha256(json.dumps(["saliency", self.origin, content]).encode()).hexdigest()

    def get(self, id: str) -> Float32[np.ndarray, "h w"]:
        """One map in [0,1], of the size it is stored in. Errors: `BadMap`; `DataError` where there is none."""
        if id not in self.files:
            raise DataError(_missing(self, [id], 1))
        found = read_map(self.files[id]).values
        if len(found) != 1:
            raise BadMap(self.files[id], "channels", f"found {len(found)} maps, expected one of how salient pixels are")
        return found[0]

    def select(self, ids: Collection[str]) -> SaliencyFolder:
        """The maps of these images alone; no other file enters its key. Errors: `DataError` where an image has none."""
        missing = sorted(set(ids) - self.files.keys())
        if missing:
            raise DataError(_missing(self, missing, len(ids)))
        return replace(self, files={id: self.files[id] for id in ids})


def open_saliency(folder: Path, origin: str) -> SaliencyFolder:
    """Find ID.png (grey, 8 or 16 bits), ID.npy or ID.npz below a folder; ids are paths without suffix, as of images.

    Errors: `UsageError` without an origin or a folder, `DataError` without usable names.
    """
    if not origin.strip():
        raise UsageError("--saliency-from: found no words, expected what made the maps and what that was trained with: "
                         "most saliency networks, and DRFI, learn from pixel masks, and then a run does not rest on "
                         "tags alone; the report has to say so. For example --saliency-from 'U2-Net, DUTS-TR masks'")
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UsageError(f"--saliency {folder}: found {'a file' if root.exists() else 'nothing'}, expected a folder")
    root = root.resolve()
    tree = walk(root, root, suffixes=SUFFIXES)
    if tree.bad:
        first = next(iter(tree.bad.values()))
        raise DataError(f"{folder}: {len(tree.bad)} files cannot be used, the first is {first.path!r}: {first.reason}: "
                        f"{first.detail.removesuffix('; --follow-links allows it')}; put the files themselves there")
    if not tree.files:
        raise DataError(f"{folder}: found no map among {len(tree.ignored)} files, expected ID{', ID'.join(SUFFIXES)}")
    return SaliencyFolder(root, origin.strip(), tree.files)


def check_maps(given: SaliencyFolder, images: Images, workers: int = 2) -> None:
    """Read every image's map once, before any work. Errors: `DataError` that names the first that cannot be used."""
    def one(id: str) -> BadMap | None:
        try:
            check_fit(given.files[id], given.get(id).shape, images.source.size(id))
        except BadMap as bad:
            return bad
        return None

    given = given.select(images.ids)
    with ThreadPoolExecutor(workers) as pool:
        wrong = [bad for bad in pool.map(one, images.ids) if bad is not None]
    if wrong:
        files = (f"  {relative(Path(b.path), given.folder)!r}: {b.reason}: {b.detail}" for b in wrong[:_SHOWN])
        listed, more = "\n".join(files), f"\n  ... and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise DataError(f"{given.folder}: {len(wrong)} of {len(images)} saliency maps cannot be used, expected one for "
                        f"each image; repair them\n{listed}{more}")


def _missing(given: SaliencyFolder, missing: list[str], wanted: int) -> str:
    """What is said where images have no map; a folder too high up is the usual reason."""
    listed = ", ".join(repr(id) for id in missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
    return (f"{given.folder}: {len(missing)} of {wanted} images have no saliency map: {listed}; expected a file of the "
            f"same relative name ({', '.join(SUFFIXES)}) for each{_deeper(given.files, missing[0])}")


def _deeper(files: Iterable[str], id: str) -> str:
    """The subfolder in which the name is found, if there is one."""
    place = next((name.removesuffix(f"/{id}") for name in files if name.endswith(f"/{id}")), None)
    return "" if place is None else f"; is it the folder {place!r} in there?"
