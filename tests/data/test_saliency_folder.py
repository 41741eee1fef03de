"""Saliency maps from elsewhere: found by name, read in every form, refused without a word on where they come from."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import coarse_maps
from tagseg.data.index import Images
from tagseg.data.saliency_folder import check_maps, open_saliency
from tagseg.types import DataError, UsageError

MAP = np.arange(12, dtype=np.float32).reshape(3, 4) / 11
WHO = "a network trained on masks"


def put(folder: Path, name: str, values: np.ndarray = MAP) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, maps=values)
    else:
        Image.fromarray(values).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "maps"
    put(place, "train/a.npy")
    put(place, "train/b.npz", MAP[None])
    put(place, "c.png", np.round(255 * MAP).astype(np.uint8))
    put(place, "d.PNG", np.round(65535 * MAP).astype(np.uint16))
    (place / "made by.txt").write_text("me")
    return place


def test_every_form_is_read(folder: Path) -> None:
    found = open_saliency(folder, f" {WHO} ")
    assert found.ids == ("c", "d", "train/a", "train/b")
    assert (len(found), found.origin) == (4, WHO)
    for id, within in (("train/a", 0), ("train/b", 0), ("c", 0.5 / 255), ("d", 0.5 / 65535)):
        values = found.get(id)
        assert (values.dtype, values.shape) == (np.float32, (3, 4))
        assert values == pytest.approx(MAP, abs=within + 1e-7)


def test_the_key_is_made_of_content_and_origin(folder: Path, tmp_path: Path) -> None:
    key = open_saliency(folder, WHO).key
    folder = folder.rename(tmp_path / "moved")
    first = open_saliency(folder, WHO)
    assert first.key == key
    assert open_saliency(folder, "DRFI").key != key
    part = first.select(["c", "train/a"])
    assert (part.ids, part.origin) == (("c", "train/a"), WHO)
    assert part.key != key
    put(folder, "e.npy")
    more = open_saliency(folder, WHO)
    assert more.key != key
    assert more.select(["train/a", "c"]).key == part.key
    put(folder, "train/a.npy", 1 - MAP)
    assert open_saliency(folder, WHO).select(["c", "train/a"]).key != part.key


@pytest.mark.parametrize("origin", ["", "  \n"])
def test_without_an_origin_nothing_is_opened(folder: Path, origin: str) -> None:
    with pytest.raises(UsageError, match=r"--saliency-from: found no words.*learn from pixel masks.*tags alone"):
        open_saliency(folder, origin)


@pytest.mark.parametrize(("make", "error", "says"), [
    (lambda f: None, UsageError, "found nothing, expected a folder"),
    (lambda f: f.write_text(""), UsageError, "found a file, expected a folder"),
    (lambda f: put(f, "notes/a.jpg", np.zeros((2, 2), np.uint8)), DataError, r"no map among 1 files, expected ID\.npy"),
    (lambda f: (put(f, "a.npy"), put(f, "a.png", np.zeros((2, 2), np.uint8))), DataError, "two files with one id"),
    (lambda f: (put(f.parent / "far", "a.npy"), put(f, "b.npy"), (f / "a.npy").symlink_to("../far/a.npy")),
     DataError, r"1 files cannot be used, the first is 'a\.npy': link-outside.*put the files themselves there"),
])
def test_folders_that_cannot_be_used(tmp_path: Path, make: Callable[[Path], object], error: type[Exception],
                                     says: str) -> None:
    make(tmp_path / "maps")
    with pytest.raises(error, match=says):
        open_saliency(tmp_path / "maps", WHO)


def test_images_without_a_map_are_counted_and_the_first_named(folder: Path) -> None:
    found = open_saliency(folder, WHO)
    with pytest.raises(DataError, match=r"2 of 3 images have no saliency map: 'x', 'y'; expected a file of the same"):
        found.select(["c", "y", "x"])
    with pytest.raises(DataError, match=r"1 of 1 images have no saliency map: 'b'.*is it the folder 'train' in there"):
        found.get("b")


def images() -> Images:
    return coarse_maps.tagged_set(count=3, side=24).images()


def test_maps_are_looked_at_before_any_work(tmp_path: Path) -> None:
    wanted = images()
    for id, shape in zip(wanted.ids, ((24, 24), (6, 6), (1, 1)), strict=True):
        put(tmp_path / "maps", f"{id}.npy", np.full(shape, 0.5, np.float32))
    put(tmp_path / "maps", "other.npy", np.full((3, 3), np.nan, np.float32))  # of no image: not looked at
    check_maps(open_saliency(tmp_path / "maps", WHO), wanted)


@pytest.mark.parametrize(("values", "says"), [
    (np.ones((24, 12), np.float32), r"000001.npy': size: maps of 24x12 for an image of 24x24"),
    (np.ones((48, 48), np.float32), r"size: maps of 48x48 for an image of 24x24"),
    (np.ones((2, 24, 24), np.float32), "channels: found 2 maps, expected one"),
    (np.full((24, 24), 3.5, np.float32), r"range: values from 3.5 to 3.5, expected \[0, 1\]"),
    (np.ones((24, 24), np.int64), "not-floats"),
])
def test_what_cannot_be_a_map_is_named(tmp_path: Path, values: np.ndarray, says: str) -> None:
    wanted = images()
    for id in wanted.ids:
        put(tmp_path / "maps", f"{id}.npy", np.ones((24, 24), np.float32))
    put(tmp_path / "maps", f"{wanted.ids[1]}.npy", values)
    with pytest.raises(DataError, match="1 of 3 saliency maps cannot be used") as caught:
        check_maps(open_saliency(tmp_path / "maps", WHO), wanted)
    assert re.search(says, str(caught.value))
