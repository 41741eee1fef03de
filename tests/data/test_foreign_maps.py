"""Folders of maps from elsewhere: layouts, whose the channels are, what fits no image, and what the key is made of."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagseg.data.folder import Reading, TooManyBad
from tagseg.data.foreign_folders import OpenedMaps, open_maps
from tagseg.data.foreign_maps import MapReading, label_probabilities
from tagseg.ops.crf import unary_from_labels
from tagseg.types import DataError, UsageError

SIZE = (8, 12)
LAX = MapReading(images=Reading(max_bad=0.9))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a", "sub/b", "c.d"):
        path = tmp_path / "photos" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1], (90, 120, 60)).save(path)
    return tmp_path / "photos"


def put(root: Path, name: str, array: np.ndarray) -> Path:
    path = root / "maps" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(array).save(path)
    else:
        np.save(path, array)
    return root / "maps"


def flat(*values: float, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Maps (K,h,w), each of one value."""
    return np.ones((len(values), *size), np.float32) * np.array(values, np.float32)[:, None, None]


def reasons(opened: OpenedMaps) -> dict[str, str]:
    return {bad.path: bad.reason for bad in opened.bad}


def test_one_file_for_each_image(tmp_path: Path, photos: Path) -> None:
    for name in ("a", "sub/b", "c.d"):
        maps = put(tmp_path, f"{name}.npy", flat(0.25, 0.5, 0.0, size=(4, 6)))
    opened = open_maps(maps, photos, MapReading(background="none"))
    assert opened.images.ids == opened.maps.ids == ("a", "c.d", "sub/b")
    assert opened.images.classes == ("1", "2", "3")
    found = opened.maps.get("sub/b")
    assert found.background is None
    assert found.maps.classes.tolist() == [1, 2]  # the third is 0 everywhere: not in the image
    assert (found.maps.scores[:, 0, 0].tolist(), found.maps.size) == ([0.25, 0.5], SIZE)
    assert opened.images.tags.tolist() == [[True, True, False]] * 3


def test_the_list_of_classes_tells_whether_there_is_a_background(tmp_path: Path, photos: Path) -> None:
    maps = put(tmp_path, "a.npy", flat(0.5, 0.25, 0.25))
    with pytest.raises(UsageError, match=r"3 maps an image.*They sum to 1.*--background first or --background none"):
        open_maps(maps, photos)
    (maps / "classes.txt").write_text("cat\ndog\n")
    opened = open_maps(maps, photos)
    found = opened.maps.get("a")
    assert (opened.maps.classes, found.maps.classes.tolist()) == (("cat", "dog"), [1, 2])
    assert found.background is not None
    assert float(found.background[0, 0]) == 0.5
    assert any("background has a map of its own" in note for note in opened.notes)
    (maps / "classes.txt").write_text("cat\ndog\newe\n")
    assert open_maps(maps, photos).maps.get("a").background is None
    (maps / "classes.txt").write_text("cat\ndog\newe\nfox\n")
    with pytest.raises(DataError, match="3 maps an image for 4 classes"):
        open_maps(maps, photos)


def test_one_folder_for_each_class(tmp_path: Path, photos: Path) -> None:
    put(tmp_path, "dog/a.png", np.full(SIZE, 255, np.uint8))
    put(tmp_path, "cat/a.png", np.full(SIZE, 51, np.uint8))
    maps = put(tmp_path, "dog/sub/b.png", np.full(SIZE, 102, np.uint8))
    opened = open_maps(maps, photos)
    assert opened.maps.classes == ("cat", "dog")
    assert opened.maps.get("a").maps.scores[:, 0, 0] == pytest.approx([0.2, 1.0])
    assert opened.maps.get("sub/b").maps.classes.tolist() == [2]
    assert opened.notes == ("one folder of maps for each class: cat, dog", "1 images have no map and were passed over",
                            "the background has no map")
    for name in ("a", "sub/b"):
        put(tmp_path, f"background/{name}.png", np.full(SIZE, 51, np.uint8))
    found = open_maps(maps, photos).maps.get("sub/b")
    assert found.background is not None
    assert found.background[0, 0] == pytest.approx(0.2)
    (tmp_path / "names.txt").write_text("dog\nkat\n")
    with pytest.raises(DataError, match=r"'cat' is not in the list; the nearest is 'kat'"):
        open_maps(maps, photos, MapReading(classes=tmp_path / "names.txt"))


def test_labels_are_what_unary_from_labels_makes_of_them() -> None:
    labels = np.array([[0, 2, 255], [5, 5, 0]], np.uint8)
    values, shares = label_probabilities(labels, 0.7)
    assert values == (0, 2, 5)
    ranks = np.array([[0, 1, 255], [2, 2, 0]])
    assert -np.log(shares) == pytest.approx(unary_from_labels(ranks, 3, gt_prob=0.7), abs=1e-6)


def test_labels_from_elsewhere(tmp_path: Path, photos: Path) -> None:
    maps = put(tmp_path, "a.png", np.repeat(np.array([[0, 0, 2, 2, 255, 255]], np.uint8), 8, 0).repeat(2, 1))
    opened = open_maps(maps, photos, MapReading(labels=True, gt_prob=0.8))
    found = opened.maps.get("a")
    assert (opened.maps.classes, found.maps.classes.tolist()) == (("1", "2"), [2])
    assert found.maps.scores[0, 0, ::4] == pytest.approx([0.2, 0.8, 0.5])
    put(tmp_path, "sub/b.png", np.zeros((4, 6), np.uint8))
    assert reasons(open_maps(maps, photos, replace(LAX, labels=True))) == {"maps/sub/b.png": "size"}


@pytest.mark.parametrize(("grid", "fits"), [
    ((8, 12), True), ((4, 6), True), ((3, 4), True), ((1, 1), True), ((12, 8), False), ((8, 8), False),
    ((16, 24), False), ((4, 12), False)])
def test_maps_must_be_a_copy_of_the_image(tmp_path: Path, photos: Path, grid: tuple[int, int], fits: bool) -> None:
    maps = put(tmp_path, "a.npy", flat(0.5, size=grid))
    if fits:
        assert open_maps(maps, photos).maps.ids == ("a",)
        return
    with pytest.raises(TooManyBad, match=f"size: maps of {grid[0]}x{grid[1]} for an image of 8x12"):
        open_maps(maps, photos)


def test_bad_files_are_listed_and_the_others_go_on(tmp_path: Path, photos: Path) -> None:
    put(tmp_path, "a.npy", flat(0.5, 0.5))
    put(tmp_path, "sub/b.npy", flat(0.5, 7.0))
    maps = put(tmp_path, "stranger.npy", flat(0.5, 0.5))
    put(tmp_path, "c.d.npy", flat(0.5, 0.5))
    (photos / "c.d.jpg").write_bytes(b"<html>")
    how = replace(LAX, background="none")
    opened = open_maps(maps, photos, how)
    assert opened.maps.ids == ("a",)
    assert reasons(opened) == {
        "maps/sub/b.npy": "range", "maps/stranger.npy": "no-image", "photos/c.d.jpg": "not-an-image"}
    with pytest.raises(TooManyBad, match=r"(?s)3 of 4 .*expected at most 1.0%.*values from 0.5 to 7") as caught:
        open_maps(maps, photos, MapReading(background="none"))
    assert len(caught.value.bad) == 3


def test_maps_of_other_classes_are_bad(tmp_path: Path, photos: Path) -> None:
    put(tmp_path, "a.npy", flat(0.5, 0.5))
    put(tmp_path, "c.d.npy", flat(0.5, 0.5))
    maps = put(tmp_path, "sub/b.npy", flat(0.5, 0.5, 0.5))
    assert reasons(open_maps(maps, photos, replace(LAX, background="none"))) == {"maps/sub/b.npy": "channels"}


def test_a_background_for_some_images_only_is_an_error(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "maps").mkdir()
    np.savez(tmp_path / "maps" / "a.npz", maps=flat(0.5, 0.5), classes=np.array([0, 1]))
    np.savez(tmp_path / "maps" / "c.d.npz", maps=flat(0.5, 0.5), classes=np.array([2, 1]))
    with pytest.raises(DataError, match="1 of 2 images have no map of the background"):
        open_maps(tmp_path / "maps", photos)
    (tmp_path / "maps" / "a.npz").unlink()
    assert open_maps(tmp_path / "maps", photos).maps.get("c.d").maps.classes.tolist() == [1, 2]


def test_the_floor_leaves_out_what_is_weak_everywhere(tmp_path: Path, photos: Path) -> None:
    maps = put(tmp_path, "a.npy", flat(0.9, 0.04, 0.06))
    opened = open_maps(maps, photos, MapReading(background="first", floor=0.05))
    assert opened.maps.get("a").maps.classes.tolist() == [2]
    assert opened.maps.dropped() == 1
    assert "1 maps under 0.05 everywhere were left out" in opened.notes
    assert not any("--floor" in note for note in opened.notes)
    put(tmp_path, "a.npy", flat(0.9, 0.04, 0.03, 0.03))
    assert any("every class counts as present in every image: --floor 0.05" in note
               for note in open_maps(maps, photos, MapReading(background="first")).notes)


def test_the_key_is_content_and_reading(tmp_path: Path, photos: Path) -> None:
    maps = put(tmp_path, "a.npy", flat(0.9, 0.1))
    how = MapReading(background="first")
    key = open_maps(maps, photos, how).maps.key
    shutil.move(maps, tmp_path / "moved")
    assert open_maps(tmp_path / "moved", photos, how).maps.key == key
    assert open_maps(tmp_path / "moved", photos, MapReading(background="none")).maps.key != key
    np.save(tmp_path / "moved" / "a.npy", flat(0.9, 0.2))
    assert open_maps(tmp_path / "moved", photos, how).maps.key != key


def test_photos_of_another_size_give_another_key(tmp_path: Path, photos: Path) -> None:
    """A stage writes the image's size beside the maps, so that size is part of what it was made from."""
    maps, how = put(tmp_path, "a.npy", flat(0.9, 0.1, size=(4, 6))), MapReading(background="first")
    key = open_maps(maps, photos, how).maps.key
    Image.new("RGB", (24, 16), (90, 120, 60)).save(photos / "a.jpg")
    assert open_maps(maps, photos, how).maps.key != key
    Image.new("RGB", SIZE[::-1], (10, 20, 30)).save(photos / "a.jpg")
    assert open_maps(maps, photos, how).maps.key == key


def test_names_that_fit_nothing_and_names_that_fit_twice(tmp_path: Path, photos: Path) -> None:
    maps = put(tmp_path, "z.npy", flat(0.5))
    with pytest.raises(DataError, match=r"found 'z' for the images 'a', 'c.d', 'sub/b'; expected ID.npy"):
        open_maps(maps, photos)
    put(tmp_path, "a.npy", flat(0.5))
    put(tmp_path, "cat/a.npy", flat(0.5))
    with pytest.raises(DataError, match="'a' is named as an image and 'cat/a' as CLASS/ID"):
        open_maps(maps, photos)
    with pytest.raises(UsageError, match="expected a folder of maps"):
        open_maps(tmp_path / "none", photos)
    for wrong in (MapReading(floor=1.0), MapReading(gt_prob=0.0)):
        with pytest.raises(UsageError, match="expected a number between 0 and 1"):
            open_maps(maps, photos, wrong)


def test_class_indices_taken_for_probabilities_are_noticed(tmp_path: Path, photos: Path) -> None:
    maps = put(tmp_path, "a.png", np.full(SIZE, 20, np.uint8))
    assert any("give --labels" in note for note in open_maps(maps, photos).notes)
