"""Saliency as a stage: the same for any tags and workers, on the superpixels it is given, or taken from elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import coarse_maps
from tagseg.artifacts import SuperpixelSet
from tagseg.data.index import Images
from tagseg.data.saliency_folder import open_saliency
from tagseg.localize.saliency import Import, Saliency, imported, maps, measure
from tagseg.ops.background_saliency import rbd
from tagseg.ops.geometry import enlarge
from tagseg.ops.saliency import ft, mbd
from tagseg.refine.superpixels import Superpixels, cut
from tagseg.store import Run
from tagseg.types import DataError, UsageError

FINE = Superpixels(kind="grid", regions=64)
KINDS = ("rbd", "mbd", "ft")


def segments(run: Run, images: Images, kind: str = "rbd") -> tuple[SuperpixelSet, ...]:
    return (cut(run, images, FINE),) if kind == "rbd" else ()


def of_kind(kind: str) -> Saliency:
    return Saliency(kind=kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_has_one_map_of_its_own_size(tmp_path: Path, kind: str) -> None:
    images, run = coarse_maps.tagged_set().images(), Run(tmp_path)
    found = maps(run, images, segments(run, images, kind), of_kind(kind))
    assert found.ids == list(images.ids)
    assert found.meta == {"classes": ["object"], "grid": 1, "kind": kind}
    for one in found:
        image = images.source.read(one.id)
        ids = segments(run, images)[0].get(one.id)
        expected = rbd(image, ids) if kind == "rbd" else {"mbd": mbd, "ft": ft}[kind](image)
        assert (one.classes.tolist(), one.size, one.scores.shape) == ([1], image.shape[1:], (1, *image.shape[1:]))
        assert one.scores[0] == pytest.approx(expected, abs=5e-4)  # float16 on disk
        assert one.scores.max() == 1


def test_the_config_reaches_the_measures() -> None:
    tagged = coarse_maps.tagged_set(count=1)
    image, ids = tagged.source.read(tagged.ids[0]), np.arange(1600, dtype=np.int32).reshape(40, 40) // 100
    cfg = Saliency(geodesic=3.0, spatial=0.7, colour=25.0, passes=1)
    assert np.array_equal(measure("a", image, ids, cfg), rbd(image, ids, geodesic=3.0, spatial=0.7, colour=25.0))
    for other in ({"geodesic": 10.0}, {"spatial": 0.25}, {"colour": 10.0}):
        assert not np.allclose(measure("a", image, ids, replace(cfg, **other)), measure("a", image, ids, cfg))
    assert np.array_equal(measure("a", image, None, replace(cfg, kind="mbd")), mbd(image, 1))
    assert not np.allclose(mbd(image, 1), mbd(image, 3))


def test_tags_and_workers_change_nothing_and_other_superpixels_do(tmp_path: Path) -> None:
    tagged = coarse_maps.tagged_set()
    one, four = (Run(tmp_path / str(n), workers=n) for n in (1, 4))
    first = maps(one, tagged.images(), segments(one, tagged.images()), Saliency())
    same = maps(four, replace(tagged, tags=~tagged.tags).images(), segments(four, tagged.images()), Saliency())
    assert first.key == same.key
    assert first.record["outputs"] == same.record["outputs"]
    coarse = maps(one, tagged.images(), (cut(one, tagged.images(), replace(FINE, regions=9)),), Saliency())
    assert coarse.key != first.key
    assert coarse.record["outputs"] != first.record["outputs"]


@pytest.mark.parametrize(("kind", "given", "expected"), [("rbd", 0, 1), ("rbd", 2, 1), ("mbd", 1, 0), ("ft", 1, 0)])
def test_superpixels_are_for_rbd_alone(tmp_path: Path, kind: str, given: int, expected: int) -> None:
    images, run = coarse_maps.tagged_set().images(), Run(tmp_path)
    with pytest.raises(UsageError, match=f"saliency '{kind}': found {given} sets of superpixels, expected {expected}"):
        maps(run, images, segments(run, images) * given, of_kind(kind))


def test_superpixels_of_another_image_are_an_error() -> None:
    tagged = coarse_maps.tagged_set(count=1)
    image = tagged.source.read(tagged.ids[0])
    with pytest.raises(DataError, match=r"superpixels of 'a': found \(8, 8\), expected the image's \(40, 40\)"):
        measure("a", image, np.zeros((8, 8), np.int32), Saliency())
    with pytest.raises(DataError, match="found None"):
        measure("a", image, None, Saliency())


# ---------------------------------------------------------------------------------------------------- from elsewhere


def given_maps(images: Images, folder: Path) -> dict[str, np.ndarray]:
    """Maps of every image in `folder`, of different sizes and kinds of file."""
    found = {}
    for number, id in enumerate(images.ids):
        side = (40, 10, 20)[number % 3]
        values = np.random.default_rng(number).random((side, side), np.float32)
        path = folder / f"{id}{('.npy', '.png')[number % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % 2:
            Image.fromarray(np.round(values * 65535).astype(np.uint16)).save(path)
        else:
            np.save(path, values)
        found[id] = values
    return found


def test_maps_from_elsewhere_are_taken_as_they_are(tmp_path: Path) -> None:
    images, run = coarse_maps.tagged_set().images(), Run(tmp_path / "cache")
    wanted = given_maps(images, tmp_path / "maps")
    found = imported(run, images, open_saliency(tmp_path / "maps", "a friend"), Import())
    assert found.ids == list(images.ids)
    assert found.meta == {"classes": ["object"], "origin": "a friend"}
    for one in found:
        assert (one.classes.tolist(), one.size) == ([1], (40, 40))
        assert one.scores[0] == pytest.approx(wanted[one.id], abs=5e-4)
        assert enlarge(one.scores, one.size).shape == (1, 40, 40)


def test_only_the_maps_of_the_images_count(tmp_path: Path) -> None:
    images, run = coarse_maps.tagged_set().images(), Run(tmp_path / "cache")
    given_maps(images, tmp_path / "maps")
    first = imported(run, images, open_saliency(tmp_path / "maps", "a friend"), Import())
    np.save(tmp_path / "maps" / "further.npy", np.ones((3, 3), np.float32))
    again = imported(run, images, open_saliency(tmp_path / "maps", "a friend"), Import())
    assert (again, [step.state for step in run.steps]) == (first, ["ran", "done"])
    other = imported(run, images, open_saliency(tmp_path / "maps", "another friend"), Import())
    assert other.key != first.key


def test_a_missing_or_strange_map_is_an_error(tmp_path: Path) -> None:
    images = coarse_maps.tagged_set().images()
    given_maps(images, tmp_path / "maps")
    np.save(tmp_path / "maps" / f"{images.ids[2]}.npy", np.ones((40, 20), np.float32))
    with pytest.raises(DataError, match="maps of 40x20 for an image of 40x40"):
        imported(Run(tmp_path / "cache"), images, open_saliency(tmp_path / "maps", "me"), Import())
    (tmp_path / "maps" / f"{images.ids[2]}.npy").unlink()
    with pytest.raises(DataError, match=f"1 of 5 images have no saliency map: '{images.ids[2]}'"):
        imported(Run(tmp_path / "cache", planning=True), images, open_saliency(tmp_path / "maps", "me"), Import())
