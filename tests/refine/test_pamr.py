"""Maps refined by PAMR: the same alone and in a batch, cut like maps and background refined together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import coarse_maps
from tagseg.ops.geometry import enlarge
from tagseg.ops.pamr import pamr
from tagseg.refine import pamr as stages
from tagseg.refine.pamr import Pamr, refine
from tagseg.refine.threshold import from_maps
from tagseg.store import Run
from tagseg.types import ClassMaps, UsageError

SMALL = Pamr(iterations=3, dilations=(1, 2, 4), batch=3, device="cpu")


def mixed() -> tuple[list[np.ndarray], list[ClassMaps]]:
    """Four photos of two sizes with one, three, no and two tagged classes."""
    rng = np.random.default_rng(8)
    sizes, counts = [(20, 24), (20, 24), (20, 24), (16, 20)], [1, 3, 0, 2]
    images = [rng.integers(0, 256, (3, *size)).astype(np.uint8) for size in sizes]
    maps = [coarse_maps.coarse(f"{k} classes", np.arange(1, k + 1), s, 4) for s, k in zip(sizes, counts, strict=True)]
    return images, maps


def test_each_image_gets_what_the_operator_gives_it() -> None:
    images, maps = mixed()
    for image, before, after in zip(images, maps, refine(images, maps, SMALL), strict=True):
        assert (after.id, after.size) == (before.id, before.size)
        assert np.array_equal(after.classes, before.classes)
        if len(before.classes):
            photo = torch.from_numpy(image)[None].float() / 255
            scores = torch.from_numpy(enlarge(before.scores, before.size))[None]
            expected = pamr(photo, scores, 3, (1, 2, 4))[0].numpy()
            assert after.scores.shape == (len(before.classes), *before.size)
            assert after.scores == pytest.approx(expected, abs=1e-6)


def test_background_need_not_take_part() -> None:
    images, maps = mixed()
    for image, before, after in zip(images, maps, refine(images, maps, SMALL), strict=True):
        if len(before.classes):
            scores = enlarge(before.scores, before.size)
            both = torch.from_numpy(np.concatenate([np.full((1, *before.size), 0.5, np.float32), scores]))[None]
            photo = torch.from_numpy(image)[None].float() / 255
            together = pamr(photo, both, 3, (1, 2, 4))[0].numpy()
            gap = np.sort(together, axis=0)
            clear = gap[-1] - gap[-2] > 1e-5  # rounding may decide equal scores either way
            assert clear.mean() > 0.99
            found = from_maps(after, 0.5, True).pixels
            assert np.array_equal(found[clear], together.argmax(0)[clear])


def test_the_stage_refines_every_image_whatever_the_workers(tmp_path: Path) -> None:
    tagged, outputs = coarse_maps.tagged_set(), []
    for workers in (1, 4):
        run = Run(tmp_path / str(workers), workers=workers)
        maps = coarse_maps.made(run, tagged)
        found = stages.maps(run, tagged, maps, SMALL)
        outputs.append(found.record["outputs"])
    assert outputs[0] == outputs[1]
    assert found.ids == list(tagged.ids)
    for one in found:
        (expected,) = refine([tagged.source.read(one.id)], [maps.get(one.id)], SMALL)
        assert one.scores == pytest.approx(expected.scores, abs=5e-4)  # float16 on disk


def test_without_iterations_maps_are_only_enlarged(tmp_path: Path) -> None:
    tagged, run = coarse_maps.tagged_set(2), Run(tmp_path)
    maps = coarse_maps.made(run, tagged)
    for one in stages.maps(run, tagged, maps, replace(SMALL, iterations=0)):
        before = maps.get(one.id)
        assert one.scores == pytest.approx(enlarge(before.scores, before.size), abs=5e-4)


def test_the_device_is_known_before_the_stage_is(tmp_path: Path) -> None:
    tagged, run = coarse_maps.tagged_set(1), Run(tmp_path)
    with pytest.raises(UsageError, match="device=auto must be resolved"):
        stages.maps(run, tagged, coarse_maps.made(run, tagged), Pamr())
