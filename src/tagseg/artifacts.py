"""The kinds on disk: weights, maps, labels, superpixels, regions, scores; one reader and writer each, no pickle."""

from __future__ import annotations

import io
import json
import mmap
import tarfile
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tagseg.disk import atomic_file, write_atomic
from tagseg.store import Artifact, Work
from tagseg.types import F32, I32, U8, ClassMaps, DataError, IntegrityError, Labels

if TYPE_CHECKING:
    from torch import Tensor

U16 = NDArray[np.uint16]
SHARD = 128
INDEX = "index.json"
META = "meta.json"


class Weights(Artifact):
    """A trained network: tensors by name and what is needed to build the network again."""

    @cached_property
    def meta(self) -> dict[str, Any]:
        self.record  # noqa: B018  (checks the bytes)
        return json.loads((self.path / META).read_text())

    def tensors(self) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        self.record  # noqa: B018
        return load_file(self.path / "weights.safetensors")


def write_weights(work: Work, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    from safetensors.torch import save

    write_atomic(
        work.folder / "weights.safetensors", save({n: t.detach().cpu().contiguous() for n, t in tensors.items()})
    )
    write_atomic(work.folder / META, json.dumps(meta, indent=1).encode())


class Scores(Artifact):
    """A JSON document: metrics, a curve, or a choice made from data."""

    def read(self) -> dict[str, Any]:
        self.record  # noqa: B018
        return json.loads((self.path / "scores.json").read_text())


def write_scores(work: Work, scores: dict[str, Any]) -> None:
    write_atomic(work.folder / "scores.json", json.dumps(scores, indent=1, allow_nan=False).encode())


class _Shards:
    """Members of plain tar files, memory-mapped, found by name through the index that is written last."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._maps = folder, dict[str, mmap.mmap]()
        document = json.loads((folder / INDEX).read_text())
        self.ids: list[str] = document["ids"]
        self.members: dict[str, list[Any]] = document["members"]
        self.meta: dict[str, Any] = document["meta"]

    def bytes(self, member: str) -> bytes:
        shard, offset, size = self.members[member]
        if shard not in self._maps:
            with open(self._folder / shard, "rb") as handle:
                self._maps[shard] = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        mapped = self._maps[shard]
        found = mapped[offset : offset + size]
        if hasattr(mmap, "MADV_DONTNEED"):  # pages that were read would count as this process's memory from now on
            mapped.madvise(mmap.MADV_DONTNEED)
        return found


class _ShardedSet(Artifact):
    @cached_property
    def _shards(self) -> _Shards:
        self.record  # noqa: B018
        return _Shards(self.path)

    @property
    def ids(self) -> list[str]:
        return self._shards.ids

    @property
    def meta(self) -> dict[str, Any]:
        return self._shards.meta

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, sample: str) -> bool:
        return f"{_stem(sample)}.json" in self._shards.members

    def _member(self, sample: str, suffix: str) -> bytes:
        if (name := f"{_stem(sample)}{suffix}") not in self._shards.members:
            raise DataError(f"{self.path.name} holds no {suffix} of {sample!r}; it has {len(self)} ids")
        return self._shards.bytes(name)


class MapSet(_ShardedSet):
    """Class maps of a set of images, float16 on disk, in [0,1]."""

    def get(self, sample: str) -> ClassMaps:
        note = json.loads(self._member(sample, ".json"))
        scores = np.load(io.BytesIO(self._member(sample, ".maps.npy")), allow_pickle=False).astype(np.float32)
        image = np.asarray(note["image"], np.float32) if "image" in note else None
        size = (note["size"][0], note["size"][1])
        return ClassMaps(sample, np.asarray(note["classes"], np.int64), scores, size, image)

    def __iter__(self) -> Iterator[ClassMaps]:
        return map(self.get, self.ids)


class LabelSet(_ShardedSet):
    """Labels of a set of images as palette PNG, with an optional confidence PNG."""

    def get(self, sample: str) -> Labels:
        confidence = f"{_stem(sample)}.confidence.png"
        return Labels(
            sample,
            read_png(self._member(sample, ".png")),
            read_png(self._shards.bytes(confidence)) if confidence in self._shards.members else None,
        )

    def __iter__(self) -> Iterator[Labels]:
        return map(self.get, self.ids)


class SuperpixelSet(_ShardedSet):
    """Superpixels of a set of images: ids 0..n-1 of each image's regions, as grey PNG of 16 bits."""

    def get(self, sample: str) -> I32:
        """int32 (H,W)."""
        return read_png(self._member(sample, ".superpixels.png")).astype(np.int32)


class RegionSet(_ShardedSet):
    """Probabilities of the regions of a set of images: float32 (J,C+1), background first."""

    def get(self, sample: str) -> F32:
        """float32 (J,C+1)."""
        return np.load(io.BytesIO(self._member(sample, ".regions.npy")), allow_pickle=False)


def write_maps(
    work: Work, ids: Iterable[str], produce: Callable[[list[str]], Iterable[ClassMaps]], meta: dict[str, Any]
) -> None:
    """Write the maps of `ids` shard by shard; `produce` gets the ids of one shard and gives their maps in order."""
    _write_shards(work, list(ids), lambda members: ((m.id, _map_members(m)) for m in produce(members)), meta)


def write_labels(
    work: Work, ids: Iterable[str], produce: Callable[[list[str]], Iterable[Labels]], meta: dict[str, Any]
) -> None:
    """Write the labels of `ids` shard by shard; `produce` gets the ids of one shard and gives their labels in order."""
    _write_shards(work, list(ids), lambda members: ((m.id, _label_members(m)) for m in produce(members)), meta)


def written_labels(work: Work) -> LabelSet:
    """What `write_labels` has written for a stage that is not finished: for a last look at all of it."""
    found = LabelSet("", work.folder)
    found.__dict__["_shards"] = _Shards(work.folder)  # it has no record yet that could be checked
    return found


def write_superpixels(
    work: Work, ids: Iterable[str], produce: Callable[[list[str]], Iterable[tuple[str, I32]]], meta: dict[str, Any]
) -> None:
    """Write the superpixels of `ids` shard by shard; `produce` gives (id, int32 (H,W)) for the ids of one shard."""
    _write_shards(work, list(ids), lambda members: ((i, _superpixel_members(i, s)) for i, s in produce(members)), meta)


def write_regions(
    work: Work, ids: Iterable[str], produce: Callable[[list[str]], Iterable[tuple[str, F32]]], meta: dict[str, Any]
) -> None:
    """Write the regions' probabilities of `ids`; `produce` gives (id, float32 (J,C+1)) for the ids of one shard."""
    _write_shards(work, list(ids), lambda members: ((i, _region_members(i, s)) for i, s in produce(members)), meta)


def _map_members(maps: ClassMaps) -> dict[str, bytes]:
    buffer = io.BytesIO()
    np.save(buffer, maps.scores.astype(np.float16), allow_pickle=False)
    note: dict[str, Any] = {"id": maps.id, "classes": maps.classes.tolist(), "size": list(maps.size)}
    if maps.image is not None:
        note["image"] = maps.image.tolist()
    return {".json": json.dumps(note).encode(), ".maps.npy": buffer.getvalue()}


def _label_members(labels: Labels) -> dict[str, bytes]:
    members = {
        ".json": json.dumps({"id": labels.id, "size": list(labels.pixels.shape)}).encode(),
        ".png": png(labels.pixels, palette=True),
    }
    return (
        members if labels.confidence is None else {**members, ".confidence.png": png(labels.confidence, palette=False)}
    )


def _superpixel_members(sample: str, regions: I32) -> dict[str, bytes]:
    count = int(regions.max()) + 1
    if count > 2**16:
        raise DataError(f"superpixels of {sample!r}: found {count}, at most {2**16} can be stored; ask for larger ones")
    note = {"id": sample, "size": list(regions.shape), "count": count}
    return {".json": json.dumps(note).encode(), ".superpixels.png": png(regions.astype(np.uint16), palette=False)}


def _region_members(sample: str, shares: F32) -> dict[str, bytes]:
    buffer = io.BytesIO()
    np.save(buffer, shares.astype(np.float32, copy=False), allow_pickle=False)
    return {".json": json.dumps({"id": sample, "count": len(shares)}).encode(), ".regions.npy": buffer.getvalue()}


def _write_shards(
    work: Work,
    ids: list[str],
    produce: Callable[[list[str]], Iterable[tuple[str, dict[str, bytes]]]],
    meta: dict[str, Any],
) -> None:
    """Shard membership is a function of the full id list; finished shards are kept; the index comes last."""
    if len(set(ids)) != len(ids):
        raise DataError(f"{work.stage}: found {len(ids) - len(set(ids))} repeated ids, expected each id once")
    parts = [ids[i : i + SHARD] for i in range(0, len(ids), SHARD)]
    names = [f"shard-{i:06d}.tar" for i in range(len(parts))]
    work.resumed_at = sum((work.folder / n).exists() for n in names)
    for number, (name, members) in enumerate(zip(names, parts, strict=True)):
        if (work.folder / name).exists():
            continue
        with (
            atomic_file(work.folder / name) as handle,
            tarfile.open(fileobj=handle, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for done, (wanted, (sample, files)) in enumerate(zip(members, produce(members), strict=True)):
                if wanted != sample:
                    raise IntegrityError(f"{work.stage}: produced {sample!r} where {wanted!r} was asked for")
                for suffix, data in files.items():
                    entry = tarfile.TarInfo(f"{_stem(sample)}{suffix}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
                work.tick(number * SHARD + done + 1, len(ids))
    members_at = {n: [shard, o, s] for shard in names for n, o, s in _offsets(work.folder / shard)}
    write_atomic(work.folder / INDEX, json.dumps({"ids": ids, "members": members_at, "meta": meta}).encode())


def _offsets(shard: Path) -> Iterator[tuple[str, int, int]]:
    with tarfile.open(shard) as tar:
        yield from ((m.name, m.offset_data, m.size) for m in tar)


def _stem(sample: str) -> str:
    """An id as a member name: a dot would end WebDataset's key, so it is escaped, and so is the escape."""
    return sample.replace("%", "%25").replace(".", "%2E")


def palette() -> list[int]:
    """The VOC colours by bit interleaving: index 0 black, 255 light."""
    colours = []
    for index in range(256):
        rgb, rest = [0, 0, 0], index
        for bit in range(7, -1, -1):
            rgb = [c | ((rest >> k & 1) << bit) for k, c in enumerate(rgb)]
            rest >>= 3
        colours += rgb
    return colours


def png(pixels: U8 | U16, *, palette: bool, spacing: tuple[float, float] | None = None) -> bytes:
    """uint8 (H,W) as PNG bytes, with the VOC palette or as grey; uint16 (H,W) as grey.

    `spacing`: millimetres between rows and between columns, kept in the file (pHYs, pixels a metre).
    """
    from PIL import Image

    image, buffer = Image.fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    if palette:
        image.putpalette(_PALETTE)
    size = {} if spacing is None else {"dpi": (25.4 / spacing[1], 25.4 / spacing[0])}
    image.save(buffer, "PNG", compress_level=3, **size)
    return buffer.getvalue()


_PALETTE = palette()


def read_png(data: bytes) -> U8:
    """The indices of a PNG that `png` wrote, (H,W), uint8 or uint16 as written."""
    from PIL import Image

    return np.array(Image.open(io.BytesIO(data), formats=["PNG"]))
